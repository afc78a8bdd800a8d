//! The reference for throughput: an axum route in its own process that returns fixed bytes.

use crate::generator::{Load, MakeRequest};
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use bytes::Bytes;
use redis::aio::ConnectionManager;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use tempfile::NamedTempFile;

/// Serves the bytes of `file`. If given a Redis URL, each request first reads two small values
/// from Redis, like a cached feed does.
pub fn serve(file: &str, redis_url: Option<&str>) -> anyhow::Result<()> {
    let body = Bytes::from(std::fs::read(file)?);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let redis = match redis_url {
                None => None,
                Some(url) => Some(connect(url).await?),
            };
            let route = get(move || async move {
                if let Some(mut redis) = redis {
                    let mut other = redis.clone();
                    let (mut version, mut pointer) = (redis::cmd("GET"), redis::cmd("HGET"));
                    version.arg("bare:version");
                    pointer.arg("bare:latest").arg("digest");
                    let (version, pointer) = futures::join!(
                        version.query_async::<Vec<u8>>(&mut redis),
                        pointer.query_async::<Vec<u8>>(&mut other)
                    );
                    if version.is_err() || pointer.is_err() {
                        return Err(axum::http::StatusCode::SERVICE_UNAVAILABLE);
                    }
                }
                Ok(([(CONTENT_TYPE, "application/json")], body))
            });
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            println!("{}", listener.local_addr()?);
            Ok(axum::serve(listener, Router::new().route("/api/v1/feed", route)).await?)
        })
}

async fn connect(url: &str) -> anyhow::Result<ConnectionManager> {
    let mut redis = ConnectionManager::new(redis::Client::open(url)?).await?;
    redis::pipe()
        .set("bare:version", 1)
        .hset("bare:latest", "digest", vec![0_u8; 16])
        .exec_async(&mut redis)
        .await?;
    Ok(redis)
}

pub struct Bare {
    child: Child,
    address: SocketAddr,
    _body: NamedTempFile,
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Bare {
    pub fn start(body: &[u8], redis_url: Option<&str>) -> anyhow::Result<Self> {
        let file = NamedTempFile::new()?;
        std::fs::write(file.path(), body)?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("bare")
            .arg(file.path())
            .args(redis_url)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let stdout = child
            .stdout
            .take()
            .ok_or_else(|| anyhow::anyhow!("no output"))?;
        BufReader::new(stdout).read_line(&mut line)?;
        Ok(Self {
            child,
            address: line.trim().parse()?,
            _body: file,
        })
    }

    /// Returns a load with exactly the requests that the host gets.
    pub fn load(&self, like: &Load) -> Load {
        let requests = like.requests.iter().map(|request| {
            let bytes = request();
            Box::new(move || bytes.clone()) as MakeRequest
        });
        Load {
            address: self.address,
            requests: requests.collect(),
        }
    }
}
