//! A load generator that costs little: keep-alive connections, requests made beforehand, answers
//! looked at only as far as needed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

/// How long a call that was told to come back waits.
const PAUSE: Duration = Duration::from_millis(50);
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

/// What a load did.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) calls: usize,
    pub(crate) elapsed: Duration,
    /// Calls that were told to come back.
    pub(crate) refused: usize,
    latencies: Vec<Duration>,
}

impl Measured {
    pub(crate) fn calls_per_second(&self) -> f64 {
        super::report::float(self.calls) / self.elapsed.as_secs_f64()
    }

    /// Of the calls, the share of which took no longer.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        percentile(&self.latencies, percent)
    }
}

pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or_default()
}

/// Sends requests over so many connections, until there are none left or the time is up. Every
/// answer must contain `expected`.
pub(crate) async fn drive(
    address: SocketAddr,
    requests: Vec<Vec<u8>>,
    connections: usize,
    time_max: Duration,
    expected: &'static str,
) -> anyhow::Result<Measured> {
    let requests = Arc::new(requests);
    let next = Arc::new(AtomicUsize::new(0));
    let together = Arc::new(Barrier::new(connections + 1));
    let tasks: Vec<_> = (0..connections)
        .map(|_| {
            let (requests, next, together) =
                (Arc::clone(&requests), Arc::clone(&next), Arc::clone(&together));
            tokio::spawn(async move {
                let opened = Connection::open(address).await;
                together.wait().await;
                one_connection(opened?, &requests, &next, time_max, expected).await
            })
        })
        .collect();
    together.wait().await;
    let started = Instant::now();
    let (mut latencies, mut refused) = (Vec::new(), 0);
    for task in tasks {
        let (took, told) = task.await??;
        latencies.extend(took);
        refused += told;
    }
    let elapsed = started.elapsed();
    latencies.sort_unstable();
    Ok(Measured { calls: latencies.len(), elapsed, refused, latencies })
}

async fn one_connection(
    mut connection: Connection,
    requests: &[Vec<u8>],
    next: &AtomicUsize,
    time_max: Duration,
    expected: &str,
) -> anyhow::Result<(Vec<Duration>, usize)> {
    let deadline = Instant::now() + time_max;
    let (mut latencies, mut refused) = (Vec::with_capacity(4096), 0);
    while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
        let begun = Instant::now();
        if begun > deadline {
            break;
        }
        loop {
            let answer = connection.call(request).await?;
            match answer.status {
                200 if contains(answer.body, expected) => break,
                503 => refused += 1,
                status => bail!("{status}: {}", answer.text()),
            }
            tokio::time::sleep(PAUSE).await;
        }
        latencies.push(begun.elapsed());
    }
    Ok((latencies, refused))
}

fn contains(body: &[u8], expected: &str) -> bool {
    body.windows(expected.len()).any(|window| window == expected.as_bytes())
}
