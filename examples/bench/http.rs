//! A load generator that costs little: keep-alive connections, requests made beforehand, answers
//! looked at only as far as needed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// How long a call that was told to come back waits.
const PAUSE: Duration = Duration::from_millis(50);
/// For a load that ends when all is sent.
const LOAD_MAX: Duration = Duration::from_mins(1);
/// More than are answered, for a load that ends when its time is up.
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

/// A connection that is kept.
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
        tokio::time::timeout(CALL_MAX, self.exchange(request)).await.context("no answer in time")?
    }

    /// Calls until there is an answer that does not say to come back, which must be as expected; how
    /// often it was told so.
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
            let status: u16 = text.get(9..12).context("no status")?.parse()?;
            let length = text.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            });
            (status, length.context("an answer without a length")?)
        };
        while self.buffer.len() < head + length {
            self.read_more().await?;
        }
        Ok(Answer { status, body: &self.buffer[head..head + length] })
    }

    async fn read_more(&mut self) -> anyhow::Result<()> {
        ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "the connection was closed");
        Ok(())
    }
}

/// What an answer must be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) status: u16,
    /// What its body must contain.
    pub(crate) text: &'static str,
}

/// When the next turn begins.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// When the last one is answered, for so long.
    Answered(Duration),
    /// So many times a second, whether answers come or not.
    PerSecond(f64),
}

/// Requests, made beforehand, and how they are sent.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) requests: Vec<Vec<u8>>,
    /// The answers of a turn: so many requests in a row belong together, and one connection sends them.
    pub(crate) turn: &'static [Expected],
    pub(crate) connections: usize,
    pub(crate) pace: Pace,
}

impl Load {
    /// Ends when all is sent.
    pub(crate) fn all(
        requests: impl IntoIterator<Item = Vec<u8>>,
        turn: &'static [Expected],
        connections: usize,
    ) -> Self {
        let requests = requests.into_iter().collect();
        Self { requests, turn, connections, pace: Pace::Answered(LOAD_MAX) }
    }

    /// Ends when the time is up.
    pub(crate) fn for_time<Requests: IntoIterator<Item = Vec<u8>>>(
        duration: Duration,
        make_turn: impl FnMut() -> Requests,
        turn: &'static [Expected],
        connections: usize,
    ) -> Self {
        let pace = Pace::Answered(duration);
        Self::repeated((TURNS_PER_SECOND_MAX, duration), make_turn, turn, connections, pace)
    }

    /// So many turns a second, for so long.
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

    /// The requests of a turn; none where there are no more.
    fn requests(&self, turn: usize) -> Option<&[Vec<u8>]> {
        self.requests.chunks(self.turn.len()).nth(turn)
    }
}

/// What a load did.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) turns: usize,
    pub(crate) elapsed: Duration,
    /// Calls that were told to come back.
    pub(crate) refused: usize,
    latencies: Vec<Duration>,
}

impl Measured {
    pub(crate) fn per_second(&self) -> f64 {
        crate::report::float(self.turns) / self.elapsed.as_secs_f64()
    }

    /// What the share of the turns took, or less.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        percentile(&self.latencies, percent)
    }
}

pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or_default()
}

/// A load under way.
#[derive(Debug)]
struct Drive {
    load: Load,
    started: Instant,
    next: AtomicUsize,
    /// Turns that may begin, where the pace is set.
    due: Semaphore,
}

impl Drive {
    /// The requests of the next turn, and when it should have begun: what a turn waits for a
    /// connection is a part of its latency. None when it is over.
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

    /// Lets turns begin when they are due, on a thread that sleeps more exactly than tokio's timers.
    fn keep_pace(&self, rate: f64) {
        for turn in 0..self.load.requests.len() / self.load.turn.len() {
            std::thread::sleep(self.due_at(turn, rate).saturating_duration_since(Instant::now()));
            self.due.add_permits(1);
        }
        // every connection finds that there is nothing left
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

/// Sends all requests, or those that the time is enough for. Every answer is looked at.
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
