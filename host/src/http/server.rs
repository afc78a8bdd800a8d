//! The HTTP server: accepts connections, limits their number, sets a deadline for their headers,
//! and shuts down gracefully.
//!
//! `axum::serve` sets no timer for headers, so a client that sends one byte a minute would hold
//! a connection forever. This module therefore uses hyper-util. Its timer starts only when it
//! knows the protocol, and a client that sends nothing never gets that far. A separate deadline
//! for the first request covers that case.

#![expect(
    clippy::disallowed_methods,
    reason = "waits for clients, not for a store"
)]

use crate::config::Server;
use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Pause after a failed accept. After an error such as "too many open files", an immediate retry
/// would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const HTTP2_STREAMS_MAX: u32 = 250;

/// Serves until `stop`. Then finishes the requests in flight, for as long as the configuration
/// allows.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    config: &Server,
    stop: CancellationToken,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(config.header_timeout_ms))
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .max_concurrent_streams(HTTP2_STREAMS_MAX);
    let builder = Arc::new(builder);
    let places = Arc::new(Semaphore::new(config.connections_max));
    let graceful = GracefulShutdown::new();
    loop {
        // The permit is taken first. Connections beyond the limit wait in the kernel's queue,
        // where they cost nothing.
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place,
            () = stop.cancelled() => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, address)) => {
                let connection = Connection {
                    builder: builder.clone(),
                    router: router.clone(),
                    stream,
                    address,
                    first_request_timeout: Duration::from_millis(config.header_timeout_ms),
                };
                let watcher = graceful.watcher();
                tokio::spawn(async move {
                    connection.serve(watcher).await;
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
    let bound = Duration::from_millis(config.shutdown_timeout_ms);
    if tokio::time::timeout(bound, graceful.shutdown())
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
    first_request_timeout: Duration,
}

impl Connection {
    async fn serve(self, watcher: hyper_util::server::graceful::Watcher) {
        // Disables Nagle's algorithm, so that small responses do not wait for the client's
        // acknowledgements.
        let _ = self.stream.set_nodelay(true);
        let (router, address) = (self.router, self.address);
        let first_request = Arc::new(Notify::new());
        let begun = first_request.clone();
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            begun.notify_one();
            request.extensions_mut().insert(ConnectInfo(address));
            let answer = router.clone().oneshot(request);
            async move {
                let Ok(response) = answer.await;
                Ok::<_, Infallible>(response)
            }
        });
        let connection = self
            .builder
            .serve_connection_with_upgrades(TokioIo::new(self.stream), service);
        let silent = async {
            let first = tokio::time::timeout(self.first_request_timeout, first_request.notified());
            if first.await.is_ok() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            ended = watcher.watch(connection.into_owned()) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended with an error");
                }
            }
            () = silent => tracing::debug!("no request arrived in time; closed the connection"),
        }
    }
}
