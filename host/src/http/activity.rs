//! What a connection is doing, so that it can be closed when its client does nothing for too long.
//!
//! Hyper's own timer for headers starts when a connection begins to wait for a request, so it ends
//! idle connections too. Load balancers keep theirs open for a minute and answer 502 if the host
//! closes one that they are about to use. Here the time for headers starts with the first byte of a
//! request, and idle connections have a time of their own. Bytes of a next request that arrive
//! together with a former one start no time for headers: such a connection costs what an idle one
//! costs, and ends as one.

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// How long a client may keep a connection waiting.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// From the first byte of a request to the end of its headers; for the first request, from the
    /// beginning of the connection.
    pub header: Duration,
    /// Between requests.
    pub idle: Duration,
}

/// State of one connection, shared by its stream, its requests and its watcher.
#[derive(Debug)]
pub struct Activity(Mutex<State>);

#[derive(Debug, Clone, Copy)]
struct State {
    /// Number of requests that are not answered completely.
    requests: usize,
    /// What a connection without such requests waits for, and since when.
    waiting_for: Awaited,
    since: Instant,
    /// True once a request came over HTTP/2. There, bytes may arrive that belong to no request.
    is_http2: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    FirstRequest,
    NextRequest,
    /// A request has begun to arrive.
    EndOfHeaders,
}

impl State {
    fn begun(now: Instant) -> Self {
        Self {
            requests: 0,
            waiting_for: Awaited::FirstRequest,
            since: now,
            is_http2: false,
        }
    }

    fn bytes_arrived(&mut self, now: Instant) {
        let is_idle = self.requests == 0 && self.waiting_for == Awaited::NextRequest;
        if is_idle && !self.is_http2 {
            self.waiting_for = Awaited::EndOfHeaders;
            self.since = now;
        }
    }

    fn request_began(&mut self, is_http2: bool) {
        self.requests += 1;
        self.is_http2 = is_http2;
    }

    fn request_ended(&mut self, now: Instant) {
        self.requests -= 1;
        if self.requests == 0 {
            self.waiting_for = Awaited::NextRequest;
            self.since = now;
        }
    }

    /// Returns when the connection is to be closed if nothing happens. `None` while the host owes
    /// an answer.
    fn deadline(&self, timeouts: Timeouts) -> Option<Instant> {
        let time = match self.waiting_for {
            Awaited::FirstRequest | Awaited::EndOfHeaders => timeouts.header,
            Awaited::NextRequest => timeouts.idle,
        };
        (self.requests == 0).then(|| self.since + time)
    }
}

impl Activity {
    pub fn begin() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State::begun(Instant::now()))))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request until the returned value is dropped.
    pub fn request(self: &Arc<Self>, is_http2: bool) -> ActiveRequest {
        self.state().request_began(is_http2);
        ActiveRequest(self.clone())
    }

    /// Returns when the client has kept the connection waiting for too long.
    pub async fn overdue(&self, timeouts: Timeouts) {
        // Whatever begins to wait after a look at the state is due after the shorter timeout at the
        // earliest. So the state is looked at that often, and requests wake nobody.
        let interval = timeouts.header.min(timeouts.idle);
        loop {
            let now = Instant::now();
            let look_again = match self.state().deadline(timeouts) {
                Some(deadline) if deadline <= now => return,
                Some(deadline) => deadline.min(now + interval),
                None => now + interval,
            };
            tokio::time::sleep_until(look_again).await;
        }
    }
}

/// A request that is not answered completely.
#[derive(Debug)]
pub struct ActiveRequest(Arc<Activity>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.state().request_ended(Instant::now());
    }
}

/// The body of an answer. Its request is active until the body has been passed on.
#[derive(Debug)]
pub struct AnswerBody {
    pub body: Body,
    pub request: ActiveRequest,
}

impl hyper::body::Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A client's stream that reports arriving bytes.
#[derive(Debug)]
pub struct WatchedStream {
    pub stream: TcpStream,
    pub activity: Arc<Activity>,
}

impl AsyncRead for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            self.activity.state().bytes_arrived(Instant::now());
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        header: Duration::from_secs(10),
        idle: Duration::from_secs(75),
    };

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_request_has_the_time_for_headers_from_the_beginning() {
        let start = Instant::now();
        let mut state = State::begun(start);
        state.bytes_arrived(start + s(9));
        assert_eq!(state.deadline(TIMEOUTS), Some(start + s(10)));
    }

    #[test]
    fn an_idle_connection_has_the_idle_time_from_its_last_answer() {
        let start = Instant::now();
        let mut state = State::begun(start);
        state.request_began(false);
        assert_eq!(state.deadline(TIMEOUTS), None);
        state.request_ended(start + s(3));
        assert_eq!(state.deadline(TIMEOUTS), Some(start + s(78)));
    }

    #[test]
    fn the_first_byte_of_a_next_request_starts_the_time_for_headers_once() {
        let start = Instant::now();
        let mut state = State::begun(start);
        state.request_began(false);
        // The rest of a body, while the request is being answered.
        state.bytes_arrived(start + s(1));
        state.request_ended(start + s(2));
        for at in [60, 65, 69] {
            state.bytes_arrived(start + s(at));
            assert_eq!(state.deadline(TIMEOUTS), Some(start + s(70)));
        }
    }

    #[test]
    fn pings_keep_no_idle_http2_connection_and_end_none_early() {
        let start = Instant::now();
        let mut state = State::begun(start);
        for _ in 0..2 {
            state.request_began(true);
        }
        state.request_ended(start + s(1));
        assert_eq!(state.deadline(TIMEOUTS), None, "one stream is open");
        state.request_ended(start + s(2));
        state.bytes_arrived(start + s(50));
        assert_eq!(state.deadline(TIMEOUTS), Some(start + s(77)));
    }
}
