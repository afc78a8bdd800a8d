//! A host under test, and a small community for it to rank.

use crate::services::Stack;
pub use crate::services::nova;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest time that a busy machine may return degraded feeds when a test needs a complete one.
const WHOLE_WITHIN: Duration = Duration::from_secs(180);

/// Runs `nova` with these arguments and returns its output.
pub fn run(arguments: &[&str]) -> Output {
    nova().args(arguments).output().unwrap()
}

/// Reads a component built from `tests/guests` by file name, e.g. `endless_loop.wasm`.
pub fn guest(file: &str) -> Vec<u8> {
    std::fs::read(
        Path::new(nova_policy::COMPONENTS_DIR)
            .join("guests")
            .join(file),
    )
    .unwrap()
}

/// Reads a bundled module, e.g. `weighted_scorer.wasm`.
pub fn shipped_module(file: &str) -> Vec<u8> {
    std::fs::read(
        Path::new(nova_policy::COMPONENTS_DIR)
            .join("policies")
            .join(file),
    )
    .unwrap()
}

/// Settings for starting a host.
pub struct Setup {
    data_dir: Option<PathBuf>,
    community: Option<Community>,
    imported: Option<PathBuf>,
    config: Option<String>,
    variables: Vec<(String, String)>,
    serve_variables: Vec<(String, String)>,
    serve_arguments: Vec<String>,
    address_space_gib: Option<u64>,
}

impl Setup {
    /// Adds an argument to `nova serve`, after the harness's own arguments.
    pub fn serve_argument(mut self, argument: &str) -> Self {
        self.serve_arguments.push(argument.to_owned());
        self
    }

    /// Sets the text of the configuration file, which the host watches for changes.
    pub fn config(mut self, text: &str) -> Self {
        self.config = Some(text.to_owned());
        self
    }

    /// Sets an environment variable for the host only, not for the import that precedes it.
    pub fn serve_variable(mut self, name: &str, value: &str) -> Self {
        self.serve_variables
            .push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs on this stack instead of the embedded stores.
    pub fn stack(mut self, stack: &Stack) -> Self {
        let variables = stack.variables().into_iter();
        self.variables
            .extend(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
        self
    }

    /// Imports the files in this directory before the host starts.
    pub fn import(mut self, directory: &Path) -> Self {
        self.imported = Some(directory.to_owned());
        self
    }

    /// Limits the host's address space (`ulimit -v`).
    pub fn address_space_gib(mut self, gib: u64) -> Self {
        self.address_space_gib = Some(gib);
        self
    }

    pub fn community(mut self, community: Community) -> Self {
        self.community = Some(community);
        self
    }

    /// Uses a data directory that outlives this host.
    pub fn data_dir(mut self, path: &Path) -> Self {
        self.data_dir = Some(path.to_owned());
        self
    }

    pub fn start(self) -> Host {
        let temporary = tempfile::tempdir().unwrap();
        let data_dir = self
            .data_dir
            .unwrap_or_else(|| temporary.path().join("data"));
        if let Some(community) = &self.community {
            community.import(&data_dir, &self.variables);
        }
        if let Some(directory) = &self.imported {
            import(directory, &data_dir, &self.variables);
        }
        let mut command = match self.address_space_gib {
            None => nova(),
            Some(gib) => limited(nova(), gib),
        };
        command
            // A test machine may be slow, and the host is built without optimisation.
            .env("NOVA_POLICY_DEADLINE_MS_MAX", "1000")
            .env("NOVA_POLICY_CPU_PERCENT", "100")
            .envs(self.variables)
            .envs(self.serve_variables)
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&data_dir)
            .args(&self.serve_arguments);
        let config_path = temporary.path().join("nova.toml");
        if let Some(text) = &self.config {
            std::fs::write(&config_path, text).unwrap();
            command.arg("--config").arg(&config_path);
        }
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let printed = child.stdout.take().unwrap();
        std::thread::spawn({
            let log = log.clone();
            move || follow(printed, &log, |_| {})
        });
        let url = wait_for_address(&mut child, &log);
        Host {
            child,
            url,
            data_dir,
            config_path,
            log,
            client: Client::new(),
            _temporary: temporary,
        }
    }
}

/// Returns a command that runs `command`, which has no arguments yet, with a limit on its address
/// space.
fn limited(command: Command, gib: u64) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell
        .env_clear()
        .envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .args(["-c", "ulimit -v \"$0\" && exec \"$@\""])
        .arg((gib << 20).to_string())
        .arg(command.get_program());
    shell
}

fn wait_for_address(child: &mut Child, log: &Arc<Mutex<String>>) -> String {
    let (send, receive) = std::sync::mpsc::channel();
    let stderr = child.stderr.take().unwrap();
    let log = log.clone();
    std::thread::spawn(move || {
        follow(stderr, &log, |line| {
            if let Some(rest) = line.strip_prefix("nova: serving on ") {
                let _ = send.send(rest.split(';').next().unwrap().to_owned());
            }
        });
    });
    receive
        .recv_timeout(Duration::from_secs(60))
        .expect("the host did not start")
}

/// Appends a host's output to its log, line by line, until the stream ends. Calls `seen` with
/// each line.
fn follow(says: impl Read, log: &Mutex<String>, mut seen: impl FnMut(&str)) {
    for line in BufReader::new(says).lines().map_while(Result::ok) {
        seen(&line);
        let mut log = log.lock().unwrap();
        log.push_str(&line);
        log.push('\n');
    }
}

/// A running host. Dropping it kills the process.
pub struct Host {
    child: Child,
    pub url: String,
    pub data_dir: PathBuf,
    pub config_path: PathBuf,
    log: Arc<Mutex<String>>,
    client: Client,
    _temporary: TempDir,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the host's log ---\n{}", self.log.lock().unwrap());
        }
    }
}

/// A response: status, headers, and JSON body (a string if the body is not JSON).
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    /// Asserts the status and returns the body.
    #[track_caller]
    pub fn ok(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    /// Asserts a problem response with this status and returns the fields that it names.
    #[track_caller]
    pub fn problem(self, status: u16) -> Vec<String> {
        assert_eq!(self.status, status, "{}", self.body);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(self.body["status"], status);
        assert_eq!(
            self.body["request_id"],
            self.headers["x-request-id"].to_str().unwrap()
        );
        let errors = self.body["errors"].as_array().cloned().unwrap_or_default();
        errors
            .iter()
            .map(|error| error["field"].as_str().unwrap().to_owned())
            .collect()
    }
}

impl Host {
    pub fn setup() -> Setup {
        Setup {
            data_dir: None,
            community: None,
            imported: None,
            config: None,
            variables: Vec::new(),
            serve_variables: Vec::new(),
            serve_arguments: Vec::new(),
            address_space_gib: None,
        }
    }

    /// Starts a host with the small community and no rate limits.
    pub fn with_community() -> Self {
        Self::setup()
            .community(Community::small())
            .variable("NOVA_RATE_LIMIT", "off")
            .start()
    }

    pub fn viewer_token(&self, user: u64) -> String {
        self.token(&["--user", &user.to_string()])
    }

    /// Returns a viewer's token that is valid on all hosts that share this secret.
    pub fn token_signed_with(&self, secret: &str, user: u64) -> String {
        let output = nova()
            .args(["token", "--user", &user.to_string()])
            .env("NOVA_JWT_SECRET", secret)
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn admin_token(&self, role: &str) -> String {
        self.token(&["--user", "1", "--audience", "admin", "--role", role])
    }

    /// Runs `nova token` with these arguments.
    pub fn token(&self, arguments: &[&str]) -> String {
        let output = nova()
            .arg("token")
            .args(arguments)
            .arg("--data-dir")
            .arg(&self.data_dir)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    pub async fn send(&self, request: RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Answer {
            status,
            headers,
            body,
        }
    }

    pub async fn get(&self, token: &str, path: &str) -> Answer {
        self.send(self.request(Method::GET, path).bearer_auth(token))
            .await
    }

    pub async fn post(&self, token: &str, path: &str, body: &Value) -> Answer {
        self.send(
            self.request(Method::POST, path)
                .bearer_auth(token)
                .json(body),
        )
        .await
    }

    pub async fn put(&self, token: &str, path: &str, body: &Value) -> Answer {
        self.send(
            self.request(Method::PUT, path)
                .bearer_auth(token)
                .json(body),
        )
        .await
    }

    /// Returns the first page of a feed, after asserting a 200.
    pub async fn feed(&self, user: u64) -> Value {
        self.get(&self.viewer_token(user), "/api/v1/feed")
            .await
            .ok(200)
    }

    /// Uploads a policy: the manifest and its module files.
    pub async fn upload(&self, token: &str, manifest: &str, modules: &[(&str, Vec<u8>)]) -> Answer {
        use reqwest::multipart::{Form, Part};
        let mut form = Form::new().text("manifest", manifest.to_owned());
        for (name, bytes) in modules {
            form = form.part(
                (*name).to_owned(),
                Part::bytes(bytes.clone()).file_name((*name).to_owned()),
            );
        }
        self.send(
            self.request(Method::POST, "/admin/v1/policies")
                .bearer_auth(token)
                .multipart(form),
        )
        .await
    }

    /// Value of one series, e.g. `nova_feed_policy_swaps_total{kind="rollback"}`. Returns 0 if
    /// the series is absent.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.send(self.request(Method::GET, "/metrics")).await.body;
        let text = text.as_str().unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Peak resident memory of the host process, in bytes.
    pub fn peak_memory_bytes(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: usize = line
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        kib * 1024
    }

    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Everything that the host has printed so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Sends SIGKILL: the host flushes nothing.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM, waits for the process to end, and returns true if it exited successfully.
    pub fn terminate(&mut self) -> bool {
        self.begin_stop();
        self.wait_for_end()
    }

    /// Sends SIGTERM and returns at once; the host exits after finishing the work it has
    /// started.
    pub fn begin_stop(&self) {
        self.signal("TERM");
    }

    /// Sends a signal, such as `INT`.
    pub fn signal(&self, name: &str) {
        let told = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(told.success());
    }

    /// Waits for the process to end and returns true if it exited successfully.
    pub fn wait_for_end(&mut self) -> bool {
        self.child.wait().unwrap().success()
    }

    /// Returns `127.0.0.1:PORT`, for clients that break the protocol below HTTP.
    pub fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    /// Sends a batch of events as this user.
    pub async fn send_events(&self, user: u64, events: &[Value]) -> Answer {
        let body = serde_json::json!({ "events": events });
        self.post(&self.viewer_token(user), "/api/v1/events", &body)
            .await
    }

    /// Returns every post of a fresh feed, page by page, in order. Retries while the response is
    /// degraded, as it can be on a busy machine.
    pub async fn whole_feed(&self, user: u64, algo: &str) -> Vec<Value> {
        let token = self.viewer_token(user);
        let path = format!("/api/v1/feed?limit=100&algo={algo}");
        let deadline = Instant::now() + WHOLE_WITHIN;
        let mut page = loop {
            let answer = self.get(&token, &path).await;
            if answer.status == 200 && answer.body["degraded"] == serde_json::json!([]) {
                break answer.body;
            }
            assert!(Instant::now() < deadline, "still degraded: {}", answer.body);
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let mut posts = page["posts"].as_array().unwrap().clone();
        while let Some(cursor) = page["cursor"].as_str() {
            let next = format!("{path}&cursor={cursor}");
            page = self.get(&token, &next).await.ok(200);
            posts.extend(page["posts"].as_array().unwrap().clone());
        }
        posts
    }

    /// Returns a post's counters.
    pub async fn post_metrics(&self, operator: &str, post: u64) -> Value {
        self.get(operator, &format!("/debug/post/{post}/metrics"))
            .await
            .ok(200)
    }
}

/// A connection that speaks HTTP/2 from its first byte.
pub struct Http2 {
    url: String,
    requests: hyper::client::conn::http2::SendRequest<String>,
    connection: tokio::task::JoinHandle<()>,
}

impl Http2 {
    pub async fn connect(address: &str) -> Self {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (requests, connection) = hyper::client::conn::http2::handshake(
            hyper_util::rt::TokioExecutor::new(),
            hyper_util::rt::TokioIo::new(stream),
        )
        .await
        .unwrap();
        Self {
            url: format!("http://{address}"),
            requests,
            connection: tokio::spawn(async move {
                let _ = connection.await;
            }),
        }
    }

    /// Sends a request and returns the status of its answer.
    pub async fn get(&mut self, path: &str, token: &str) -> u16 {
        let request = hyper::Request::get(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {token}"))
            .body(String::new())
            .unwrap();
        let answer = self.requests.send_request(request).await.unwrap();
        answer.status().as_u16()
    }

    /// Returns when the host has ended the connection.
    pub async fn ended(self) {
        self.connection.await.unwrap();
    }
}

/// An event as a client sends it, dated `seconds_ago` seconds in the past.
pub fn event(post: u64, author: u64, action: &str, seconds_ago: i64) -> Value {
    let time = chrono::Utc::now() - chrono::Duration::seconds(seconds_ago);
    serde_json::json!({
        "event_time": time.to_rfc3339(), "post_id": post, "author_id": author,
        "action": action, "device": "ios", "app_ver": "1.2.3",
    })
}

/// Runs `nova serve` in a situation in which it must refuse to start. Returns the single line
/// that it writes to standard error.
#[track_caller]
pub fn refusal_to_serve(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let mut child = nova()
        .args(["serve", "--listen", "127.0.0.1:0"])
        .args(arguments)
        .envs(variables.iter().copied())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the host serves although it should refuse to start");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert!(!status.success(), "{text}");
    let lines: Vec<&str> = text.trim_end().lines().collect();
    assert_eq!(lines.len(), 1, "{text}");
    lines[0].to_owned()
}

/// Polls `check` until it returns true. Fails after `within`.
pub async fn eventually<F: Future<Output = bool>>(
    within: Duration,
    what: &str,
    mut check: impl FnMut() -> F,
) {
    let deadline = Instant::now() + within;
    while !check().await {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// Returns the post ids of a feed page, in order.
pub fn post_ids(feed: &Value) -> Vec<u64> {
    feed["posts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|post| post["post_id"].as_u64().unwrap())
        .collect()
}

/// The simplest implementation of `author-saturation` (see docs/semantics.md). Takes (post,
/// author) pairs, best first, and returns the post ids in display order.
pub fn saturated(ranked: &[(u64, u64)]) -> Vec<u64> {
    const TOP: usize = 5;
    const MIN_DISTANCE: usize = 3;
    let mut waiting = ranked.to_vec();
    let mut shown: Vec<(u64, u64)> = Vec::with_capacity(ranked.len());
    while !waiting.is_empty() {
        let at = shown.len();
        let fits = |author: u64, distance: usize| {
            let near = &shown[(at + 1).saturating_sub(distance)..];
            let is_far = near.iter().all(|(_, other)| *other != author);
            let in_top = shown.iter().take(TOP).any(|(_, other)| *other == author);
            is_far && (at >= TOP || !in_top)
        };
        let place = (1..=MIN_DISTANCE).rev().find_map(|distance| {
            waiting
                .iter()
                .position(|(_, author)| fits(*author, distance))
        });
        shown.push(waiting.remove(place.unwrap_or(0)));
    }
    shown.into_iter().map(|(post, _)| post).collect()
}

/// Returns a manifest that takes `stage` from one module file and uses the bundled modules for
/// the other stages.
pub fn manifest(name: &str, version: &str, stage: &str, module: &str) -> String {
    let source = |own: &str, builtin: &str| {
        if own == stage {
            module.to_owned()
        } else {
            format!("builtin:{builtin}")
        }
    };
    format!(
        "name = \"{name}\"\nversion = \"{version}\"\n[dedup]\nmodule = \"{}\"\n[score]\nmodule = \"{}\"\n[saturation]\nmodule = \"{}\"\n",
        source("dedup", "seen-dedup"),
        source("score", "weighted-scorer"),
        source("saturation", "author-saturation"),
    )
}

/// A temporary directory of CSV files to import.
pub struct Community(TempDir);

pub const USERS: u64 = 60;
pub const POSTS: u64 = 240;

impl Community {
    /// Writes a community of 60 users and 240 posts:
    ///
    /// - One post every 20 minutes, by authors 1–30 in turn. The author of post `p` is
    ///   `(p − 1) % 30 + 1`, and the highest id is the newest post.
    /// - User `u` follows `u + 1`, `u + 2` and `u + 3` (mod 60).
    /// - Every third post has likes, and every fifth has comments.
    pub fn small() -> Self {
        let now = chrono::Utc::now();
        let at =
            |minutes_ago: u64| (now - chrono::Duration::minutes(minutes_ago as i64)).to_rfc3339();
        let community = Self(tempfile::tempdir().unwrap());
        let users = (1..=USERS).map(|u| format!("{u},{},user{u},DE,en", at(60 * 24 * u)));
        community.write(
            "users.csv",
            "user_id,created_at,username,country,language",
            users,
        );
        let minutes_ago = |post: u64| (POSTS - post) * 20 + 1;
        let posts = (1..=POSTS)
            .map(|p| format!("{p},{},{},{}", (p - 1) % 30 + 1, at(minutes_ago(p)), p % 7));
        community.write(
            "posts.csv",
            "post_id,author_id,created_at,view_count",
            posts,
        );
        let follows = (1..=USERS)
            .flat_map(|u| (1..=3).map(move |step| format!("{u},{}", (u - 1 + step) % USERS + 1)))
            .map(|edge| format!("{edge},{}", at(1_000)));
        community.write(
            "follows.csv",
            "follower_id,following_id,created_at",
            follows,
        );
        let likes = (3..=POSTS)
            .step_by(3)
            .flat_map(|p| (0..p % 4 + 1).map(move |n| (p, (p + n) % USERS + 1)));
        let likes = likes
            .enumerate()
            .map(|(id, (p, u))| format!("{},{p},{u},{}", id + 1, at(minutes_ago(p))));
        community.write("likes.csv", "like_id,post_id,user_id,created_at", likes);
        let comments = (5..=POSTS)
            .step_by(5)
            .map(|p| format!("{p},{p},{},{}", p % USERS + 1, at(minutes_ago(p))));
        community.write(
            "comments.csv",
            "comment_id,post_id,user_id,created_at",
            comments,
        );
        community
    }

    /// Writes files with these names and contents.
    pub fn of(files: &[(&str, String)]) -> Self {
        let community = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            std::fs::write(community.path().join(name), text).unwrap();
        }
        community
    }

    fn write(&self, file: &str, header: &str, rows: impl Iterator<Item = String>) {
        let rows: Vec<String> = rows.collect();
        std::fs::write(
            self.0.path().join(file),
            format!("{header}\n{}\n", rows.join("\n")),
        )
        .unwrap();
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn import(&self, data_dir: &Path, variables: &[(String, String)]) {
        import(self.path(), data_dir, variables);
    }
}

/// Runs `nova import` on these files, into this data directory or into the stack that the
/// variables name.
fn import(files: &Path, data_dir: &Path, variables: &[(String, String)]) {
    let output = nova()
        .envs(variables.iter().cloned())
        .arg("import")
        .arg(files)
        .arg("--data-dir")
        .arg(data_dir)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
