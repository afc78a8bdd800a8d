//! A host with a generated community, in its own process.

use crate::generator::{Load, MakeRequest, fetch};
use crate::services::{Stack, nova};
use anyhow::Context;
use nova::http::token::{ADMIN_AUDIENCE, Role, TokenKeys, VIEWER_AUDIENCE};
use nova_support::key_file::load_or_make_file;
use serde_json::{Value, json};
use std::cell::Cell;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub struct Host {
    /// Data directory of a host on the real stack. A demo makes its own.
    _data_dir: Option<TempDir>,
    data_dir: PathBuf,
    child: Child,
    address: SocketAddr,
    tokens: TokenKeys,
}

impl Drop for Host {
    fn drop(&mut self) {
        // SIGTERM, so that the demo removes its directory.
        let _ = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        let _ = self.child.wait();
    }
}

const HOUR: Duration = Duration::from_secs(3_600);

impl Host {
    /// Starts `nova demo`: a host as users start it, with a community to rank.
    pub fn start(variables: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut child = nova()
            .args(["demo", "--listen", "127.0.0.1:0"])
            .env("NOVA_RATE_LIMIT", "off")
            .env("LOG_LEVEL", "info")
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().context("no output")?;
        let (mut address, mut data_dir) = (None, None);
        let mut lines = BufReader::new(stdout).lines();
        for line in lines.by_ref() {
            let line = line?;
            if let Some((_, rest)) = line.split_once("on http://") {
                address = rest.split(' ').next().and_then(|text| text.parse().ok());
                data_dir = rest
                    .split_once("(data: ")
                    .and_then(|(_, rest)| Some(PathBuf::from(rest.split_once(',')?.0)));
                break;
            }
        }
        // Keep reading, because the host would otherwise find its output closed.
        std::thread::spawn(move || lines.for_each(drop));
        let (address, data_dir) = (
            address.context("no address")?,
            data_dir.context("no data directory")?,
        );
        let secret = load_or_make_file(&data_dir.join("jwt.key"))?;
        Ok(Self {
            _data_dir: None,
            data_dir,
            child,
            address,
            tokens: TokenKeys::new(&secret, "nova"),
        })
    }

    /// Starts `nova serve` on the real stack, with the community that the demo generates.
    pub fn start_on(stack: &Stack, variables: &[(&str, &str)]) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let (data_dir, files) = (
            directory.path().join("data"),
            directory.path().join("files"),
        );
        std::fs::create_dir_all(&files)?;
        nova::commands::demo::write_community(&files, 1)?;
        let imported = stack
            .nova()
            .arg("import")
            .arg(&files)
            .arg("--data-dir")
            .arg(&data_dir)
            .output()?;
        anyhow::ensure!(
            imported.status.success(),
            "import: {}",
            String::from_utf8_lossy(&imported.stderr)
        );
        Self::serve(stack, variables, directory)
    }

    /// Starts another host on a stack that already has its community.
    pub fn start_beside(stack: &Stack) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        std::fs::create_dir_all(directory.path().join("data"))?;
        Self::serve(stack, &[], directory)
    }

    fn serve(
        stack: &Stack,
        variables: &[(&str, &str)],
        directory: TempDir,
    ) -> anyhow::Result<Self> {
        let data_dir = directory.path().join("data");
        let mut command = stack.nova();
        command.envs(variables.iter().copied());
        Self::spawn(command, data_dir, Some(directory))
    }

    /// Starts `nova serve` on the embedded stores, in a directory that is kept.
    pub fn start_in(data_dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(data_dir)?;
        let command = nova();
        Self::spawn(command, data_dir.to_owned(), None)
    }

    fn spawn(
        mut command: Command,
        data_dir: PathBuf,
        directory: Option<TempDir>,
    ) -> anyhow::Result<Self> {
        let mut child = command
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&data_dir)
            .env("NOVA_RATE_LIMIT", "off")
            .env("LOG_LEVEL", "warn")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = child.stderr.take().context("no output")?;
        let mut lines = BufReader::new(stderr).lines();
        let mut address = None;
        for line in lines.by_ref() {
            let line = line?;
            if let Some(rest) = line.strip_prefix("nova: serving on http://") {
                address = rest.split(';').next().and_then(|text| text.parse().ok());
                break;
            }
        }
        std::thread::spawn(move || lines.for_each(drop));
        let secret = load_or_make_file(&data_dir.join("jwt.key"))?;
        Ok(Self {
            child,
            address: address.context("no address")?,
            tokens: TokenKeys::new(&secret, "nova"),
            _data_dir: directory,
            data_dir,
        })
    }

    /// Values of a metric in the series whose labels contain `label`.
    async fn series(&self, name: &str, label: &str) -> anyhow::Result<Vec<f64>> {
        let text = fetch(self.address, &self.request("GET", "/metrics", "", "")).await?;
        let text = String::from_utf8(text)?;
        let series = text
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(label));
        Ok(series
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect())
    }

    pub async fn metric(&self, name: &str, label: &str) -> anyhow::Result<f64> {
        Ok(self.series(name, label).await?.iter().sum())
    }

    /// Largest value among the series.
    pub async fn most(&self, name: &str, label: &str) -> anyhow::Result<f64> {
        let values = self.series(name, label).await?;
        Ok(values.into_iter().fold(0.0, f64::max))
    }

    /// Publishes one of the test guests as the scorer of a policy with the guest's name and
    /// these parameter values.
    pub fn publish_guest(&self, guest: &str, params: &str) -> anyhow::Result<()> {
        self.publish_guest_with(guest, params, "")
    }

    /// Does the same with more text at the end of the manifest.
    pub fn publish_guest_with(&self, guest: &str, params: &str, rest: &str) -> anyhow::Result<()> {
        let directory = tempfile::tempdir()?;
        let file = format!("{guest}.wasm");
        let bytes = std::fs::read(
            Path::new(nova_policy::COMPONENTS_DIR)
                .join("guests")
                .join(&file),
        )?;
        std::fs::write(directory.path().join(&file), bytes)?;
        let manifest = format!(
            "name = \"{}\"\nversion = \"1.0.0\"\n[dedup]\nmodule = \"builtin:seen-dedup\"\n[score]\nmodule = \"{file}\"\nparams = {{ {params} }}\n[saturation]\nmodule = \"builtin:author-saturation\"\n{rest}",
            guest.replace('_', "-")
        );
        self.push(directory.path(), &manifest)
    }

    fn push(&self, directory: &Path, manifest: &str) -> anyhow::Result<()> {
        std::fs::write(directory.join("policy.toml"), manifest)?;
        let token = self
            .tokens
            .sign("1", ADMIN_AUDIENCE, &[Role::Operator], HOUR)?;
        let pushed = nova()
            .args(["policy", "push"])
            .arg(directory)
            .args(["--host", &format!("http://{}", self.address), "--token"])
            .arg(token)
            .output()?;
        let said = String::from_utf8_lossy(&pushed.stderr);
        anyhow::ensure!(pushed.status.success(), "{said}");
        Ok(())
    }

    /// Publishes `count` policies, whose scorers all differ in their bytes, and serves them all
    /// in one experiment.
    pub async fn run_policies_of_their_own(&self, count: usize) -> anyhow::Result<()> {
        let shipped = Path::new(nova_policy::COMPONENTS_DIR).join("policies/weighted_scorer.wasm");
        self.run_copies(&std::fs::read(shipped)?, count, "", "")
            .await
    }

    /// Does the same with copies of a test guest, which have these parameter values and may use
    /// all the memory that admission allows.
    pub async fn run_guests(&self, guest: &str, count: u32, params: &str) -> anyhow::Result<()> {
        let file = format!("guests/{guest}.wasm");
        let bytes = std::fs::read(Path::new(nova_policy::COMPONENTS_DIR).join(file))?;
        let limits = "[limits]\ndeadline_ms = 1000\nmemory_mb = 256\ninstance = \"reuse\"\n";
        let params = format!("params = {{ {params} }}\n");
        self.run_copies(&bytes, count as usize, &params, limits)
            .await
    }

    async fn run_copies(
        &self,
        scorer: &[u8],
        count: usize,
        params: &str,
        limits: &str,
    ) -> anyhow::Result<()> {
        let mut variations = Vec::new();
        for n in 0..count {
            let directory = tempfile::tempdir()?;
            // A custom section with one byte of content: section id 0, length 3, a name of one
            // letter, the byte.
            let mut bytes = scorer.to_vec();
            bytes.extend([0, 3, 1, b'n', u8::try_from(n)?]);
            std::fs::write(directory.path().join("scorer.wasm"), bytes)?;
            let name = format!("own-{n}");
            let manifest = format!(
                "name = \"{name}\"\nversion = \"1.0.0\"\n[dedup]\nmodule = \"builtin:seen-dedup\"\n[score]\nmodule = \"scorer.wasm\"\n{params}[saturation]\nmodule = \"builtin:author-saturation\"\n{limits}"
            );
            self.push(directory.path(), &manifest)?;
            variations.push(json!({"key": name, "weight": 1.0 / count as f64, "policy": format!("{name}@1.0.0")}));
        }
        let experiment = json!({ "variations": variations });
        self.admin("PUT", "/admin/v1/experiments/own", &experiment)
            .await?;
        self.admin("POST", "/admin/v1/experiments/own/start", &json!({}))
            .await?;
        Ok(())
    }

    /// Waits until the host is ready.
    ///
    /// # Errors
    /// If it is not ready in time.
    pub async fn await_ready(&self, within: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        while fetch(self.address, &self.request("GET", "/readyz", "", ""))
            .await
            .is_err()
        {
            anyhow::ensure!(begun.elapsed() < within, "not ready");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn viewer_token(&self, viewer: u64) -> anyhow::Result<String> {
        self.tokens
            .sign(&viewer.to_string(), VIEWER_AUDIENCE, &[], HOUR)
    }

    pub fn request(&self, method: &str, path: &str, token: &str, body: &str) -> Vec<u8> {
        let length = body.len();
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}",
            self.address
        )
        .into_bytes()
    }

    /// Requests for the first page of several viewers.
    pub fn feed_load(&self, viewers: u64) -> anyhow::Result<Load> {
        self.path_load("/api/v1/feed", 1..viewers + 1)
    }

    /// Requests for one path by several viewers.
    pub fn path_load(&self, path: &str, viewers: std::ops::Range<u64>) -> anyhow::Result<Load> {
        let request = |viewer| {
            let bytes = self.request("GET", path, &self.viewer_token(viewer)?, "");
            Ok(Box::new(move || bytes.clone()) as MakeRequest)
        };
        let requests: anyhow::Result<Vec<MakeRequest>> = viewers.map(request).collect();
        Ok(Load {
            address: self.address,
            requests: requests?,
        })
    }

    /// Batches of events, each different from all others.
    pub fn event_load(&self, viewers: u64, batch: usize) -> anyhow::Result<Load> {
        let request = |viewer| {
            let (token, address) = (self.viewer_token(viewer)?, self.address);
            // A post repeats only after 3,000 others, so its event falls into another second.
            let next = Cell::new(0);
            let make = move || {
                let first = next.replace(next.get() + batch as u64);
                let events: Vec<Value> = (first..first + batch as u64)
                    .map(|n| event(1 + n % 3_000, "view"))
                    .collect();
                let body = json!({ "events": events }).to_string();
                let length = body.len();
                format!("POST /api/v1/events HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
            };
            Ok(Box::new(make) as MakeRequest)
        };
        let requests: anyhow::Result<Vec<MakeRequest>> = (1..=viewers).map(request).collect();
        Ok(Load {
            address: self.address,
            requests: requests?,
        })
    }

    async fn admin(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let token = self
            .tokens
            .sign("1", ADMIN_AUDIENCE, &[Role::Operator], HOUR)?;
        let answer = fetch(
            self.address,
            &self.request(method, path, &token, &body.to_string()),
        )
        .await?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Activates two policies in turn. Returns the number of activations.
    pub async fn swap_every(&self, interval: Duration, length: Duration) -> anyhow::Result<usize> {
        let (started, mut swaps) = (Instant::now(), 0);
        while started.elapsed() + interval < length {
            tokio::time::sleep(interval).await;
            self.activate(["decay-diversity", "baseline"][swaps % 2])
                .await?;
            swaps += 1;
        }
        Ok(swaps)
    }

    /// Activates a published policy, given by the name of its guest.
    pub async fn activate_version(&self, guest: &str, version: &str) -> anyhow::Result<()> {
        let path = format!(
            "/admin/v1/policies/{}/{version}/activate",
            guest.replace('_', "-")
        );
        self.admin("POST", &path, &json!({})).await?;
        Ok(())
    }

    /// Activates version 1.0.0 of a bundled policy.
    pub async fn activate(&self, policy: &str) -> anyhow::Result<()> {
        let path = format!("/admin/v1/policies/{policy}/1.0.0/activate");
        self.admin("POST", &path, &json!({})).await?;
        Ok(())
    }

    /// Returns the name of the policy that ranks a viewer's feed now.
    pub async fn ranking_policy(&self, viewer: u64) -> anyhow::Result<String> {
        let token = self.viewer_token(viewer)?;
        let request = self.request("GET", "/api/v1/feed?limit=1", &token, "");
        let feed: Value = serde_json::from_slice(&fetch(self.address, &request).await?)?;
        let name = feed["policy"]["name"].as_str();
        Ok(name.context("no policy")?.to_owned())
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Puts a bundled policy in shadow, or takes it out of shadow.
    pub async fn set_shadow(&self, policy: &str, on: bool) -> anyhow::Result<()> {
        let (step, body) = if on {
            ("shadow", json!({}))
        } else {
            ("canary", json!({ "percent": 0 }))
        };
        let path = format!("/admin/v1/policies/{policy}/1.0.0/{step}");
        self.admin("POST", &path, &body).await.map(drop)
    }

    /// Serves version 1.0.0 of a policy to this share of the viewers.
    pub async fn set_canary(&self, policy: &str, percent: f64) -> anyhow::Result<()> {
        let path = format!("/admin/v1/policies/{policy}/1.0.0/canary");
        let body = json!({ "percent": percent });
        self.admin("POST", &path, &body).await.map(drop)
    }

    /// Returns the median processor time of a serving policy's rankings.
    pub async fn p50_ms(&self, policy: &str) -> anyhow::Result<f64> {
        let list = self.admin("GET", "/admin/v1/policies", &json!({})).await?;
        let serving = list["serving"]["policies"].as_array();
        let name = format!("{policy}@1.0.0");
        let mut serving = serving.into_iter().flatten();
        let found = serving.find(|status| status["policy"] == name.as_str());
        found
            .and_then(|status| status["p50_ms"].as_f64())
            .context("the policy was not called")
    }

    /// Loads `count` policies by running an experiment over them.
    pub async fn load_policies(&self, count: u32) -> anyhow::Result<()> {
        let variation = |n: u32| {
            json!({"key": format!("v{n}"), "weight": 1.0 / f64::from(count), "policy": "decay-diversity@1.0.0",
                   "params": {"score": {"w_freshness": f64::from(n + 1) / f64::from(count)}}})
        };
        let variations: Vec<Value> = (0..count).map(variation).collect();
        self.admin(
            "PUT",
            "/admin/v1/experiments/memory",
            &json!({ "variations": variations }),
        )
        .await?;
        self.admin("POST", "/admin/v1/experiments/memory/start", &json!({}))
            .await?;
        Ok(())
    }

    pub fn resident_mb(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse::<f64>()? / 1_024.0)
    }

    /// Milliseconds from the 202 of an event until it is counted, for one event after the other.
    pub async fn counting_delays(&self, events: u64) -> anyhow::Result<Vec<f64>> {
        let mut delays = Vec::new();
        for post in 1..=events {
            delays.push(self.counting_delay(post).await?);
        }
        Ok(delays)
    }

    /// Milliseconds from the 202 of a like until a ranking would count it in its features.
    pub async fn counting_delay(&self, post: u64) -> anyhow::Result<f64> {
        let token = self.viewer_token(200)?;
        {
            let path = format!("/debug/post/{post}/metrics");
            let before = self.admin("GET", &path, &json!({})).await?["likes"].clone();
            let body = json!({ "events": [event(post, "like")] }).to_string();
            fetch(
                self.address,
                &self.request("POST", "/api/v1/events", &token, &body),
            )
            .await?;
            let accepted = Instant::now();
            while self.admin("GET", &path, &json!({})).await?["likes"] == before {
                anyhow::ensure!(
                    accepted.elapsed() < Duration::from_secs(10),
                    "post {post} was never counted"
                );
            }
            Ok(accepted.elapsed().as_secs_f64() * 1_000.0)
        }
    }
}

fn event(post: u64, action: &str) -> Value {
    json!({"event_time": chrono::Utc::now().to_rfc3339(), "post_id": post, "author_id": 1 + post % 300,
           "action": action, "device": "load", "app_ver": "1.0.0"})
}
