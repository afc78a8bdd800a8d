//! A TCP proxy that injects faults on request, for use in front of any store.
//!
//! A fault can be changed while the proxy runs, and it applies to open connections as well as to
//! new ones.

use rand::Rng as _;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Everything passes through.
    None,
    /// Connections are reset before a byte is read.
    Refuse,
    /// Connections are accepted but get no answer. Requests sent meanwhile are answered when the
    /// fault ends.
    Silent,
    /// Connections are reset after this many bytes of answers.
    ResetAfter(usize),
    /// Each answer is replaced by the same number of random bytes.
    Garbage,
    /// Each chunk of an answer is delayed by this time.
    Slow(Duration),
}

pub struct FaultProxy {
    address: SocketAddr,
    fault: watch::Sender<Fault>,
    accepting: JoinHandle<()>,
}

impl FaultProxy {
    /// Starts a proxy on a free port in front of `upstream` (a `host:port`). It starts without a
    /// fault.
    pub async fn start(upstream: &str) -> Self {
        Self::start_at("127.0.0.1:0", upstream).await
    }

    /// Starts a proxy at `address`, to which clients connect.
    pub async fn start_at(address: &str, upstream: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (fault, faults) = watch::channel(Fault::None);
        let upstream = upstream.to_owned();
        let accepting = tokio::spawn(async move {
            // Connections end when the proxy is dropped.
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(Connection::new(client, faults.clone()).relay(upstream.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            fault,
            accepting,
        }
    }

    /// Starts a proxy in front of the server that `url` names. The second value is the URL that
    /// goes through the proxy.
    pub async fn in_front_of(url: &str) -> (Self, String) {
        let mut url = reqwest::Url::parse(url).unwrap();
        let port = url.port_or_known_default().unwrap();
        let proxy = Self::start(&format!("{}:{port}", url.host_str().unwrap())).await;
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(proxy.address.port())).unwrap();
        (proxy, url.into())
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

struct Connection {
    client: TcpStream,
    faults: watch::Receiver<Fault>,
    /// Bytes of answers that have passed under the current fault.
    passed: usize,
}

impl Connection {
    fn new(client: TcpStream, faults: watch::Receiver<Fault>) -> Self {
        Self {
            client,
            faults,
            passed: 0,
        }
    }

    /// Relays until one side closes or a fault ends the connection.
    async fn relay(mut self, upstream: String) {
        let mut server: Option<TcpStream> = None;
        let (mut request, mut answer) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        loop {
            let fault = *self.faults.borrow_and_update();
            match fault {
                Fault::Refuse => return self.reset(),
                Fault::Silent => {
                    if self.faults.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                _ => {}
            }
            let server = match &mut server {
                Some(server) => server,
                unconnected => match TcpStream::connect(&upstream).await {
                    Ok(connected) => unconnected.insert(connected),
                    Err(_) => return,
                },
            };
            tokio::select! {
                changed = self.faults.changed() => {
                    self.passed = 0;
                    if changed.is_err() {
                        return;
                    }
                }
                read = self.client.read(&mut request) => {
                    let length = read.unwrap_or(0);
                    if length == 0 || server.write_all(&request[..length]).await.is_err() {
                        return;
                    }
                }
                read = server.read(&mut answer) => {
                    let length = read.unwrap_or(0);
                    if length == 0 {
                        return;
                    }
                    if !self.answer(fault, &mut answer[..length]).await {
                        return self.reset();
                    }
                }
            }
        }
    }

    /// Sends an answer to the client with this fault applied. Returns `false` if the connection
    /// must be reset.
    async fn answer(&mut self, fault: Fault, answer: &mut [u8]) -> bool {
        let mut length = answer.len();
        match fault {
            Fault::Garbage => rand::rng().fill_bytes(answer),
            Fault::Slow(delay) => tokio::time::sleep(delay).await,
            Fault::ResetAfter(bytes) => length = length.min(bytes - self.passed.min(bytes)),
            Fault::None | Fault::Refuse | Fault::Silent => {}
        }
        self.passed += length;
        let written = self.client.write_all(&answer[..length]).await.is_ok();
        written && !matches!(fault, Fault::ResetAfter(bytes) if self.passed >= bytes)
    }

    fn reset(self) {
        // Closing a socket with zero linger sends RST instead of FIN.
        let _ = self.client.set_zero_linger();
    }
}

/// Starts a server that echoes every byte. It ends with the test's runtime.
async fn echo_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = client.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

async fn connected() -> (FaultProxy, TcpStream) {
    let proxy = FaultProxy::start(&echo_server().await).await;
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(exchange(&mut client, b"hello").await.unwrap(), b"hello");
    (proxy, client)
}

/// Sends `request` and reads as many bytes back.
async fn exchange(client: &mut TcpStream, request: &[u8]) -> std::io::Result<Vec<u8>> {
    client.write_all(request).await?;
    let mut answer = vec![0; request.len()];
    client.read_exact(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn refusing_resets_open_and_new_connections_until_the_fault_ends() {
    let (proxy, mut client) = connected().await;
    proxy.set(Fault::Refuse);
    assert!(exchange(&mut client, b"hello").await.is_err());
    let mut other = TcpStream::connect(proxy.address()).await.unwrap();
    assert!(exchange(&mut other, b"hello").await.is_err());
    proxy.set(Fault::None);
    let mut third = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(exchange(&mut third, b"hello").await.unwrap(), b"hello");
}

#[tokio::test]
async fn a_silent_proxy_answers_only_after_the_fault_ends() {
    let (proxy, mut client) = connected().await;
    proxy.set(Fault::Silent);
    let mut other = TcpStream::connect(proxy.address()).await.unwrap();
    for client in [&mut client, &mut other] {
        client.write_all(b"late").await.unwrap();
        let mut byte = [0];
        let answer = tokio::time::timeout(Duration::from_millis(50), client.read(&mut byte));
        assert!(answer.await.is_err());
    }
    proxy.set(Fault::None);
    for client in [&mut client, &mut other] {
        let mut answer = [0; 4];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"late");
    }
}

#[tokio::test]
async fn a_reset_ends_an_answer_in_the_middle() {
    let (proxy, mut client) = connected().await;
    proxy.set(Fault::ResetAfter(3));
    client.write_all(b"hello").await.unwrap();
    let mut answer = Vec::new();
    let error = client.read_to_end(&mut answer).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(answer.len() <= 3, "{answer:?}");
}

#[tokio::test]
async fn garbage_has_the_length_of_the_answer_but_not_its_content() {
    let (proxy, mut client) = connected().await;
    proxy.set(Fault::Garbage);
    let request = [7; 1_000];
    assert_ne!(exchange(&mut client, &request).await.unwrap(), request);
    proxy.set(Fault::None);
    assert_eq!(exchange(&mut client, &request).await.unwrap(), request);
}

#[tokio::test]
async fn a_slow_answer_arrives_late_and_complete() {
    let (proxy, mut client) = connected().await;
    let delay = Duration::from_millis(80);
    proxy.set(Fault::Slow(delay));
    let began = std::time::Instant::now();
    assert_eq!(exchange(&mut client, b"hello").await.unwrap(), b"hello");
    assert!(began.elapsed() >= delay);
}
