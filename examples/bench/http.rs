//! A load generator with little overhead: keep-alive connections, requests built in advance, and
//! answers read only as far as needed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// The pause before a call that got 503 is repeated.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest time of a load that ends when all requests are sent.
const LOAD_MAX: Duration = Duration::from_mins(1);
/// More turns than any service answers, for a load that ends after a given time.
const TURNS_PER_SECOND_MAX: f64 = 40_000.0;
const CALL_MAX: Duration = Duration::from_secs(30);

pub(crate) fn post(path: &str, key: &str, media_type: &str, body: &str) -> Vec<u8> {
    method("POST", path, key, media_type, body)
}

pub(crate) fn put(path: &str, key: &str, media_type: &str, body: &str) -> Vec<u8> {
    method("PUT", path, key, media_type, body)
}

pub(crate) fn get(path: &str, key: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\n\r\n").into_bytes()
}

fn method(method: &str, path: &str, key: &str, media_type: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A keep-alive connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
}

impl Answer<'_> {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(self.body).into_owned()
    }
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(4096) })
    }

    /// Sends a whole request and reads the whole answer.
    pub(crate) async fn call(&mut self, request: &[u8]) -> anyhow::Result<Answer<'_>> {
        tokio::time::timeout(CALL_MAX, self.exchange(request))
            .await
            .context("the service must answer in time")?
    }

    /// Repeats a call until its status is not 503. The answer must then be as expected. Returns the
    /// number of 503 answers.
    async fn insist(&mut self, request: &[u8], expected: Expected) -> anyhow::Result<usize> {
        let mut refused = 0;
        loop {
            let answer = self.call(request).await?;
            if answer.status == expected.status && contains(answer.body, expected.text) {
                return Ok(refused);
            }
            ensure!(answer.status == 503, "{}: {}", answer.status, answer.text());
            refused += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<Answer<'_>> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let head = loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            self.read_more().await?;
        };
        let (status, length) = {
            let text = std::str::from_utf8(&self.buffer[..head])?;
            let status: u16 = text.get(9..12).context("the answer must have a status")?.parse()?;
            let length = text.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            });
            (status, length.context("the answer must have a length")?)
        };
        while self.buffer.len() < head + length {
            self.read_more().await?;
        }
        Ok(Answer { status, body: &self.buffer[head..head + length] })
    }

    async fn read_more(&mut self) -> anyhow::Result<()> {
        ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "the service closed the connection");
        Ok(())
    }
}

/// The required answer to a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) status: u16,
    /// A text that the body must contain.
    pub(crate) text: &'static str,
}

/// The rule for the start of the next turn.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// A pause after the answer to the last turn.
    Answered(Duration),
    /// A number of turns per second, independent of answers.
    PerSecond(f64),
}

/// Requests, built in advance, and the way to send them.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) requests: Vec<Vec<u8>>,
    /// The answers of a turn. One connection sends the requests of a turn in order.
    pub(crate) turn: &'static [Expected],
    pub(crate) connections: usize,
    pub(crate) pace: Pace,
}

impl Load {
    /// Builds a load that ends when all requests are sent.
    pub(crate) fn all(
        requests: impl IntoIterator<Item = Vec<u8>>,
        turn: &'static [Expected],
        connections: usize,
    ) -> Self {
        let requests = requests.into_iter().collect();
        Self { requests, turn, connections, pace: Pace::Answered(LOAD_MAX) }
    }

    /// Builds a load that ends after a duration.
    pub(crate) fn for_time<Requests: IntoIterator<Item = Vec<u8>>>(
        duration: Duration,
        make_turn: impl FnMut() -> Requests,
        turn: &'static [Expected],
        connections: usize,
    ) -> Self {
        let pace = Pace::Answered(duration);
        Self::repeated((TURNS_PER_SECOND_MAX, duration), make_turn, turn, connections, pace)
    }

    /// Builds a load with a fixed number of turns per second for a duration.
    pub(crate) fn at_rate<Requests: IntoIterator<Item = Vec<u8>>>(
        rate: f64,
        duration: Duration,
        make_turn: impl FnMut() -> Requests,
        turn: &'static [Expected],
        connections: usize,
    ) -> Self {
        Self::repeated((rate, duration), make_turn, turn, connections, Pace::PerSecond(rate))
    }

    fn repeated<Requests: IntoIterator<Item = Vec<u8>>>(
        (rate, duration): (f64, Duration),
        make_turn: impl FnMut() -> Requests,
        turn: &'static [Expected],
        connections: usize,
        pace: Pace,
    ) -> Self {
        let turns = crate::report::whole(rate * duration.as_secs_f64());
        let requests = std::iter::repeat_with(make_turn).take(turns).flatten().collect();
        Self { requests, turn, connections, pace }
    }

    /// Returns the requests of a turn; none after the last one.
    fn requests(&self, turn: usize) -> Option<&[Vec<u8>]> {
        self.requests.chunks(self.turn.len()).nth(turn)
    }
}

/// The results of a load.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) turns: usize,
    pub(crate) elapsed: Duration,
    /// The number of calls that got 503.
    pub(crate) refused: usize,
    latencies: Vec<Duration>,
}

impl Measured {
    pub(crate) fn per_second(&self) -> f64 {
        crate::report::float(self.turns) / self.elapsed.as_secs_f64()
    }

    /// Returns the latency that a percentage of the turns stayed within.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        percentile(&self.latencies, percent)
    }
}

pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or_default()
}

/// A running load.
#[derive(Debug)]
struct Drive {
    load: Load,
    started: Instant,
    next: AtomicUsize,
    /// Permits for due turns, at a fixed rate.
    due: Semaphore,
}

impl Drive {
    /// Returns the requests of the next turn and its due time; none after the end. The wait of a turn
    /// for a connection counts in its latency.
    async fn next(&self) -> anyhow::Result<Option<(Instant, &[Vec<u8>])>> {
        if matches!(self.load.pace, Pace::PerSecond(_)) {
            self.due.acquire().await?.forget();
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let Some(requests) = self.load.requests(turn) else { return Ok(None) };
        let now = Instant::now();
        Ok(match self.load.pace {
            Pace::Answered(time_max) if now > self.started + time_max => None,
            Pace::Answered(_) => Some((now, requests)),
            Pace::PerSecond(rate) => Some((self.due_at(turn, rate), requests)),
        })
    }

    fn due_at(&self, turn: usize, rate: f64) -> Instant {
        self.started + Duration::from_secs_f64(crate::report::float(turn) / rate)
    }

    /// Releases turns when they are due, on a thread, because it sleeps more exactly than tokio's
    /// timers.
    fn keep_pace(&self, rate: f64) {
        for turn in 0..self.load.requests.len() / self.load.turn.len() {
            std::thread::sleep(self.due_at(turn, rate).saturating_duration_since(Instant::now()));
            self.due.add_permits(1);
        }
        // lets every connection see that no turn is left
        self.due.add_permits(self.load.connections);
    }

    async fn one_connection(&self, mut connection: Connection) -> anyhow::Result<(Vec<Duration>, usize)> {
        let (mut latencies, mut refused) = (Vec::with_capacity(4096), 0);
        while let Some((begun, requests)) = self.next().await? {
            for (request, expected) in requests.iter().zip(self.load.turn) {
                refused += connection.insist(request, *expected).await?;
            }
            latencies.push(begun.elapsed());
        }
        Ok((latencies, refused))
    }
}

/// Sends all requests, or as many as the duration allows. Checks every answer.
pub(crate) async fn drive(address: SocketAddr, load: Load) -> anyhow::Result<Measured> {
    let mut connections = Vec::new();
    for _ in 0..load.connections {
        connections.push(Connection::open(address).await?);
    }
    let started = Instant::now();
    let drive = Arc::new(Drive { load, started, next: AtomicUsize::new(0), due: Semaphore::new(0) });
    if let Pace::PerSecond(rate) = drive.load.pace {
        let drive = Arc::clone(&drive);
        tokio::task::spawn_blocking(move || drive.keep_pace(rate));
    }
    let tasks: Vec<_> = connections
        .into_iter()
        .map(|connection| {
            let drive = Arc::clone(&drive);
            tokio::spawn(async move { drive.one_connection(connection).await })
        })
        .collect();
    let (mut latencies, mut refused) = (Vec::new(), 0);
    for task in tasks {
        let (took, told) = task.await??;
        latencies.extend(took);
        refused += told;
    }
    let elapsed = started.elapsed();
    latencies.sort_unstable();
    Ok(Measured { turns: latencies.len(), elapsed, refused, latencies })
}

fn contains(body: &[u8], expected: &str) -> bool {
    body.windows(expected.len()).any(|window| window == expected.as_bytes())
}
