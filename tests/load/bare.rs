//! The reference: an axum route that returns fixed bytes, in a process of its own.

use crate::generator::{Load, MakeRequest};
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use bytes::Bytes;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use tempfile::NamedTempFile;

pub fn serve(file: &str) -> anyhow::Result<()> {
    let body = Bytes::from(std::fs::read(file)?);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let route = get(move || async move { ([(CONTENT_TYPE, "application/json")], body) });
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            println!("{}", listener.local_addr()?);
            Ok(axum::serve(listener, Router::new().route("/api/v1/feed", route)).await?)
        })
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
    pub fn start(body: &[u8]) -> anyhow::Result<Self> {
        let file = NamedTempFile::new()?;
        std::fs::write(file.path(), body)?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("bare")
            .arg(file.path())
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

    /// The very requests that the host gets.
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
