//! The HTTP server: accepts connections, limits their number, ends those whose client is silent for
//! too long, and shuts down gracefully.
//!
//! `axum::serve` sets no timer for headers, so a client that sends one byte a minute would hold
//! a connection forever. This module therefore uses hyper-util, and `activity` for the timeouts of
//! clients that send nothing.

#![expect(
    clippy::disallowed_methods,
    reason = "waits for clients, not for a store"
)]

use crate::config::Server;
use crate::http::activity::{Activity, AnswerBody, Timeouts, WatchedStream};
use crate::http::token::TOKEN_BYTES_MAX;
use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// Pause after a failed accept. After an error such as "too many open files", an immediate retry
/// would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const HTTP2_STREAMS_MAX: u32 = 250;
/// Headers of one HTTP/2 request. HTTP/1 has a bound of its own, about 400 KiB. Both have room for
/// the largest token.
const HTTP2_HEADERS_BYTES_MAX: u32 = 64 * 1_024;
const _: () = assert!(HTTP2_HEADERS_BYTES_MAX as usize >= 2 * TOKEN_BYTES_MAX);

/// Serves until `close`. Then finishes the requests in flight, for as long as the configuration
/// allows.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    config: &Server,
    close: CancellationToken,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // `activity` has this timeout, because hyper's would end idle connections too.
        .header_read_timeout(None)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .max_header_list_size(HTTP2_HEADERS_BYTES_MAX)
        .max_concurrent_streams(HTTP2_STREAMS_MAX);
    let builder = Arc::new(builder);
    let timeouts = Timeouts {
        header: Duration::from_millis(config.header_timeout_ms),
        idle: Duration::from_millis(config.idle_timeout_ms),
    };
    let places = Arc::new(Semaphore::new(config.connections_max));
    let connections = TaskTracker::new();
    loop {
        // The permit is taken first. Connections beyond the limit wait in the kernel's queue,
        // where they cost nothing.
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place,
            () = close.cancelled() => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = close.cancelled() => break,
        };
        match accepted {
            Ok((stream, address)) => {
                let connection = Connection {
                    builder: builder.clone(),
                    router: router.clone(),
                    stream,
                    address,
                    timeouts,
                };
                let close = close.clone();
                connections.spawn(async move {
                    connection.serve(close).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection; trying again after a pause");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    let bound = Duration::from_millis(config.shutdown_timeout_ms);
    if tokio::time::timeout(bound, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            "requests took longer than the shutdown timeout; stopping without finishing them"
        );
    }
}

struct Connection {
    builder: Arc<auto::Builder<TokioExecutor>>,
    router: Router,
    stream: TcpStream,
    address: SocketAddr,
    timeouts: Timeouts,
}

impl Connection {
    /// Serves until the client or the host ends the connection. The host ends it on `close` and
    /// when the client is silent for too long, in both cases after the requests in flight.
    async fn serve(self, close: CancellationToken) {
        // Disables Nagle's algorithm, so that small responses do not wait for the client's
        // acknowledgements.
        let _ = self.stream.set_nodelay(true);
        let activity = Activity::begin();
        let service = service(self.router, self.address, activity.clone());
        let stream = WatchedStream {
            stream: self.stream,
            activity: activity.clone(),
        };
        let connection = self
            .builder
            .serve_connection_with_upgrades(TokioIo::new(stream), service);
        let end = GracefulShutdown::new();
        let mut served = pin!(end.watch(connection.into_owned()));
        let silent = tokio::select! {
            ended = &mut served => return log_end(ended),
            () = activity.overdue(self.timeouts) => true,
            () = close.cancelled() => false,
        };
        let finished = async {
            tokio::select! {
                ended = served => log_end(ended),
                () = end.shutdown() => {}
            }
        };
        if !silent {
            return finished.await;
        }
        tracing::debug!("no request arrived in time; closing the connection");
        // A request that arrives in this moment is still answered.
        let _ = tokio::time::timeout(self.timeouts.header, finished).await;
    }
}

fn service(
    router: Router,
    address: SocketAddr,
    activity: Arc<Activity>,
) -> impl Clone
+ Send
+ hyper::service::Service<
    hyper::Request<Incoming>,
    Response = hyper::Response<AnswerBody>,
    Error = Infallible,
    Future: Send,
> {
    hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        let active = activity.request(request.version() == hyper::Version::HTTP_2);
        request.extensions_mut().insert(ConnectInfo(address));
        let answer = router.clone().oneshot(request);
        async move {
            let Ok(response) = answer.await;
            Ok::<_, Infallible>(response.map(|body| AnswerBody {
                body,
                request: active,
            }))
        }
    })
}

fn log_end(ended: Result<(), impl std::fmt::Display>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended with an error");
    }
}
