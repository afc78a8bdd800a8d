//! A load generator with little overhead: keep-alive connections, requests rendered beforehand,
//! and responses read by their length. The CPU time that it saves is left for the servers.

use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Returns the bytes of one request.
pub type MakeRequest = Box<dyn Fn() -> Vec<u8>>;

pub struct Load {
    pub address: SocketAddr,
    /// Requests, which the connections take in turn.
    pub requests: Vec<MakeRequest>,
}

#[derive(Debug, Default)]
pub struct Report {
    latencies_ms: Vec<f64>,
    pub failures: usize,
    length: Duration,
}

impl Report {
    /// Merges the reports of several generators that ran at the same time.
    pub fn together(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut together = Self::default();
        for part in parts {
            together.latencies_ms.extend(part.latencies_ms);
            together.failures += part.failures;
            together.length = together.length.max(part.length);
        }
        together
    }

    /// Merges the reports of one generator that ran several times.
    pub fn in_turn(parts: Vec<Self>) -> Self {
        let length = parts.iter().map(|part| part.length).sum();
        Self {
            length,
            ..Self::together(parts)
        }
    }

    pub fn per_second(&self) -> f64 {
        self.latencies_ms.len() as f64 / self.length.as_secs_f64()
    }

    pub fn percentile_ms(&self, share: f64) -> f64 {
        percentile(&self.latencies_ms, share)
    }
}

/// Percentile by the nearest-rank method. `share` is between 0 and 1.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted
        .get(rank.clamp(1, sorted.len().max(1)) - 1)
        .copied()
        .unwrap_or(f64::NAN)
}

/// Sends requests one after the other on every connection for `length`. Any response other than
/// a 2xx is a failure.
pub async fn run(load: &Load, connections: usize, length: Duration) -> anyhow::Result<Report> {
    let started = Instant::now();
    let clients = (0..connections).map(|first| client(load, first, connections, started + length));
    let mut report = Report::together(futures::future::try_join_all(clients).await?);
    report.length = started.elapsed();
    Ok(report)
}

/// Starts `per_second` requests a second, even if earlier ones are still open, so that a server
/// that falls behind shows it. Latency is measured from the time at which a request was due.
pub async fn pace(load: &Load, per_second: usize, length: Duration) -> anyhow::Result<Report> {
    pace_looking(load, per_second, length, |_| ()).await
}

/// A response and the time of its arrival.
pub struct Answer<'a> {
    pub at: Instant,
    /// Number of the request, from 0.
    pub turn: usize,
    pub took_ms: f64,
    pub status: u16,
    pub body: &'a [u8],
}

/// Like [`pace`], but calls `look` with every response.
pub async fn pace_looking(
    load: &Load,
    per_second: usize,
    length: Duration,
    look: impl Fn(Answer<'_>),
) -> anyhow::Result<Report> {
    const CONNECTIONS: usize = 64;
    let look = &look;
    let (started, interval) = (
        Instant::now(),
        Duration::from_secs(1) / u32::try_from(per_second)?,
    );
    let clients = (0..CONNECTIONS).map(|first| async move {
        let mut stream = connect(load.address).await?;
        let (mut report, mut buffer) = (Report::default(), Vec::new());
        for turn in (first..).step_by(CONNECTIONS) {
            let due = interval * u32::try_from(turn)?;
            if due >= length {
                break;
            }
            tokio::time::sleep_until((started + due).into()).await;
            let request = load.requests[turn % load.requests.len()]();
            let (status, body) = exchange(&mut stream, &request, &mut buffer).await?;
            let took = started.elapsed().saturating_sub(due);
            report.latencies_ms.push(took.as_secs_f64() * 1_000.0);
            report.failures += usize::from(!(200..300).contains(&status));
            let (at, body) = (Instant::now(), &buffer[body..]);
            look(Answer {
                at,
                turn,
                took_ms: took.as_secs_f64() * 1_000.0,
                status,
                body,
            });
        }
        Ok::<_, anyhow::Error>(report)
    });
    let mut report = Report::together(futures::future::try_join_all(clients).await?);
    report.length = started.elapsed();
    Ok(report)
}

async fn client(load: &Load, first: usize, step: usize, until: Instant) -> anyhow::Result<Report> {
    let mut stream = connect(load.address).await?;
    let (mut report, mut buffer, mut turn) = (Report::default(), Vec::new(), first);
    while Instant::now() < until {
        let request = load.requests[turn % load.requests.len()]();
        turn += step;
        let started = Instant::now();
        let status = exchange(&mut stream, &request, &mut buffer).await?.0;
        report
            .latencies_ms
            .push(started.elapsed().as_secs_f64() * 1_000.0);
        report.failures += usize::from(!(200..300).contains(&status));
    }
    Ok(report)
}

/// Sends one request on its own connection and returns the body of the response.
pub async fn fetch(address: SocketAddr, request: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut buffer = Vec::new();
    let (status, body) = exchange(&mut connect(address).await?, request, &mut buffer).await?;
    anyhow::ensure!(
        (200..300).contains(&status),
        "status {status}: {}",
        String::from_utf8_lossy(&buffer[body..])
    );
    Ok(buffer.split_off(body))
}

async fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends a request and reads the response into `buffer`. Returns the status and the offset of
/// the body.
async fn exchange(
    stream: &mut TcpStream,
    request: &[u8],
    buffer: &mut Vec<u8>,
) -> anyhow::Result<(u16, usize)> {
    stream.write_all(request).await?;
    buffer.clear();
    loop {
        anyhow::ensure!(
            stream.read_buf(buffer).await? > 0,
            "the server closed the connection"
        );
        let Some(head) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
            continue;
        };
        let text = std::str::from_utf8(&buffer[..head])?;
        let status = text.split(' ').nth(1).unwrap_or_default().parse()?;
        let length = text.lines().find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length: ")?
                .trim()
                .parse()
                .ok()
        });
        let end = head + 4 + length.unwrap_or(0usize);
        while buffer.len() < end {
            anyhow::ensure!(
                stream.read_buf(buffer).await? > 0,
                "the server closed the connection"
            );
        }
        return Ok((status, head + 4));
    }
}
