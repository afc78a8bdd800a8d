//! The program `clickhouse-front`: ClickHouse's HTTP interface to the engine in `libchdb.so`,
//! for tests on machines on which no server can be installed.
//!
//! It supports what the `clickhouse` crate needs: a statement in the URL or the body,
//! server-side parameters in the URL or a form, settings and the database as URL parameters,
//! every format of the engine, and errors with ClickHouse's text and code. It supports neither
//! compression nor users. A response is complete before its first byte is sent, so an exception
//! never arrives mid-stream.

mod engine;
mod request;
mod sessions;

use crate::engine::{Engine, Output};
use crate::sessions::Sessions;
use anyhow::Context as _;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use clap::Parser;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tokio::signal::unix::{SignalKind, signal};

/// Stack size of each thread. The engine parses and analyses on the calling thread and expects a
/// stack as large as those of its own threads.
const THREAD_STACK_BYTES: usize = 8 << 20;

#[derive(Debug, Parser)]
#[command(about, version)]
struct Args {
    /// Path of libchdb.so
    #[arg(long)]
    lib: PathBuf,
    /// Directory of the tables; only one process may use it at a time
    #[arg(long)]
    data: PathBuf,
    /// Address to listen on; with port 0, a free port is chosen and printed
    #[arg(long, default_value = "127.0.0.1:8123")]
    listen: SocketAddr,
    /// Number of statements that may run concurrently
    #[arg(long, default_value_t = 16)]
    sessions: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(THREAD_STACK_BYTES)
        .build()?
        .block_on(serve(args))
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    std::fs::create_dir_all(&args.data)
        .with_context(|| format!("cannot create {}", args.data.display()))?;
    let data_dir = args.data.canonicalize()?;
    let engine = Engine::load(&args.lib, &data_dir)?;
    let sessions = Arc::new(Sessions::open(engine, args.sessions.max(1), &data_dir)?);

    let app = Router::new()
        .route("/ping", get(ping))
        .route("/", get(answer).post(answer))
        .layer(DefaultBodyLimit::disable())
        .with_state(sessions);
    let listener = tokio::net::TcpListener::bind(args.listen).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app)
        .with_graceful_shutdown(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await?;
    // Dropping the router closed every session, and closing the last one stopped the engine.
    Ok(())
}

async fn ping() -> &'static str {
    "Ok.\n"
}

async fn answer(State(sessions): State<Arc<Sessions>>, request: Request) -> Response {
    let statement = match request::read(request).await {
        Ok(statement) => statement,
        Err(error) => return refusal(&error.to_string()),
    };
    let begun = Instant::now();
    match sessions.run(statement).await {
        Ok(Ok(output)) => success(output, begun),
        Ok(Err(message)) => refusal(&message),
        Err(error) => {
            let internal = (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"));
            internal.into_response()
        }
    }
}

fn success(output: Output, begun: Instant) -> Response {
    let summary = format!(
        r#"{{"read_rows":"{}","written_rows":"{}","elapsed_ns":"{}"}}"#,
        output.rows_read,
        output.rows_written,
        begun.elapsed().as_nanos()
    );
    ([("X-ClickHouse-Summary", summary)], output.bytes).into_response()
}

/// Returns ClickHouse's own error text, with the status that its HTTP interface uses for the
/// error code.
fn refusal(message: &str) -> Response {
    let code = message
        .strip_prefix("Code: ")
        .and_then(|rest| rest.split('.').next())
        .and_then(|code| code.parse::<u32>().ok());
    // Codes by line: syntax errors, types and unknown names; unknown tables and databases;
    // timeouts; too many queries.
    let status = match code {
        Some(6 | 26 | 27 | 32 | 33 | 36 | 38 | 41 | 43 | 47 | 53 | 62 | 115 | 117 | 456 | 457)
        | None => StatusCode::BAD_REQUEST,
        Some(60 | 81) => StatusCode::NOT_FOUND,
        Some(159) => StatusCode::REQUEST_TIMEOUT,
        Some(202) => StatusCode::TOO_MANY_REQUESTS,
        Some(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let code = code.unwrap_or(1000).to_string();
    let body = format!("{message}\n");
    (status, [("X-ClickHouse-Exception-Code", code)], body).into_response()
}
