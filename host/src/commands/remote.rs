//! Access to the target of a command: a running host, or the registry itself if no host is
//! named.

use super::{ConfigPath, DataDir};
use crate::http::admin_policies::{PolicyAnswer, PolicyList, PruneAnswer};
use crate::http::problem::etag;
use crate::{secret, wiring};
use anyhow::bail;
use clap::Args;
use nova_control::audit_watch::AuditWatch;
use nova_control::deploy::{Author, Deploy, DeployError, Scope};
use nova_control::offline::HostRegistry;
use nova_model::artifact::PolicyRef;
use nova_model::audit_key::AuditKeys;
use nova_policy::admission::PolicyFiles;
use nova_policy::engine::Engine;
use nova_policy::signature::TrustedKeys;
use nova_policy::worker::Worker;
use reqwest::header::IF_MATCH;
use reqwest::multipart::{Form, Part};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Connection timeout. It is short because an operator may have to try the next host during an
/// outage.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Call timeout. It is long because an activation may have to compile a policy first.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Upload timeout. An upload is compiled and tested after all uploads that came before it.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(900);
/// Number of policies read per call.
const LIST_PAGE: u32 = 500;
/// Actor in the audit log if a command writes to the registry itself.
const LOCAL_ACTOR: &str = "cli";

#[derive(Debug, Clone, Args)]
pub struct TargetArguments {
    /// URL of a running host, e.g. http://127.0.0.1:8080.
    #[arg(long, env = "NOVA_HOST", value_name = "URL")]
    host: Option<String>,
    /// Admin token for the host.
    #[arg(long, env = "NOVA_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
    #[command(flatten)]
    config: ConfigPath,
    #[command(flatten)]
    data_dir: DataDir,
}

/// Target of a command that makes a change.
#[derive(Debug, Clone, Args)]
pub struct ChangeArguments {
    #[command(flatten)]
    pub target: TargetArguments,
    /// Revision of the registry that the change is based on, as `nova audit head` prints it; if the
    /// registry has another one, nothing changes.
    #[arg(long, value_name = "N")]
    if_revision: Option<i64>,
}

impl ChangeArguments {
    pub async fn target(&self) -> anyhow::Result<Target> {
        let target = self.target.target().await?;
        Ok(target.at_revision(self.if_revision))
    }

    pub fn remote(&self) -> anyhow::Result<Option<Remote>> {
        let remote = self.target.remote()?;
        Ok(remote.map(|remote| remote.at_revision(self.if_revision)))
    }
}

/// A running host.
#[derive(Debug)]
pub struct Remote {
    base: String,
    token: String,
    client: reqwest::Client,
    /// Revision that changes are based on.
    if_revision: Option<i64>,
}

/// A lifecycle step of a published policy.
#[derive(Debug)]
pub enum Step {
    Shadow,
    EndShadow,
    Canary { percent: f64 },
    Retire,
    Quarantine { reason: String },
    Lift { reason: String },
}

impl Step {
    fn request(&self) -> (Method, &'static str, Option<Value>) {
        let post = |verb, body| (Method::POST, verb, body);
        match self {
            Step::Shadow => post("shadow", None),
            Step::EndShadow => (Method::DELETE, "shadow", None),
            Step::Canary { percent } => post("canary", Some(json!({ "percent": percent }))),
            Step::Retire => post("retire", None),
            Step::Quarantine { reason } => post("quarantine", Some(json!({ "reason": reason }))),
            Step::Lift { reason } => post("lift", Some(json!({ "reason": reason }))),
        }
    }
}

/// Destination of a command's change.
#[derive(Debug)]
pub enum Target {
    Host(Remote),
    /// The registry in a data directory or in PostgreSQL. Hosts that use it apply the change
    /// within a second.
    Directory {
        deploy: Arc<Deploy>,
        /// Revision that changes are based on.
        if_revision: Option<i64>,
    },
}

impl TargetArguments {
    pub fn remote(&self) -> anyhow::Result<Option<Remote>> {
        let Some(host) = &self.host else {
            return Ok(None);
        };
        if !host.starts_with("http://") && !host.starts_with("https://") {
            bail!("--host (NOVA_HOST) must be a URL such as http://{host}");
        }
        let Some(token) = &self.token else {
            bail!(
                "--host needs --token (NOVA_TOKEN); get one with: nova token --user 1 --audience admin --role operator"
            );
        };
        Ok(Some(Remote {
            base: host.trim_end_matches('/').to_owned(),
            token: token.clone(),
            client: reqwest::Client::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(CALL_TIMEOUT)
                .build()?,
            if_revision: None,
        }))
    }

    pub async fn target(&self) -> anyhow::Result<Target> {
        if let Some(remote) = self.remote()? {
            return Ok(Target::Host(remote));
        }
        let config = self.config.load(&self.data_dir)?;
        std::fs::create_dir_all(&config.data_dir)?;
        let registry = wiring::registry(&config, secret::audit_keys(&config)?).await?;
        let keys = TrustedKeys::parse(&config.policy.trusted_keys)?;
        let engine = Engine::start()?
            .with_cache(&config.data_dir)?
            .with_worker(Worker::of_this_program(config.policy.of_workers())?)
            .with_trusted_keys(keys.remembering(&config.data_dir).await?);
        let deploy = Deploy::start(engine, registry, false).await?;
        deploy.set_quotas(config.policy.quotas());
        Ok(Target::Directory {
            deploy,
            if_revision: None,
        })
    }
}

impl TargetArguments {
    /// Opens the registry itself, for reading only, if no host is named.
    pub async fn registry(&self) -> anyhow::Result<Arc<dyn HostRegistry>> {
        let config = self.config.load(&self.data_dir)?;
        if config.stores.stack().is_none() && !config.data_dir.is_dir() {
            bail!(
                "there is no data directory {}; name one with --data-dir, or a running host with --host",
                config.data_dir.display()
            );
        }
        wiring::registry(&config, secret::present_audit_keys(&config)?).await
    }
}

impl TargetArguments {
    /// Returns the keys that verify the audit log, also that of another host's log.
    pub fn audit_keys(&self) -> anyhow::Result<AuditKeys> {
        secret::present_audit_keys(&self.config.load(&self.data_dir)?)
    }

    /// Returns what the host of the data directory remembers of the audit log.
    pub fn audit_watch(&self) -> anyhow::Result<AuditWatch> {
        let config = self.config.load(&self.data_dir)?;
        let keys = secret::present_audit_keys(&config)?;
        Ok(AuditWatch::new(&config.data_dir, keys))
    }
}

impl Remote {
    fn at_revision(self, if_revision: Option<i64>) -> Self {
        Self {
            if_revision,
            ..self
        }
    }

    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let is_change = method != Method::GET;
        let request = self
            .client
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(&self.token);
        let request = match self.if_revision.filter(|_| is_change) {
            Some(revision) => request.header(IF_MATCH, etag(revision)),
            None => request,
        };
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        self.read(request.send().await).await
    }

    /// Returns the list of policies with all its pages.
    async fn list(&self) -> anyhow::Result<Value> {
        let first = format!("/admin/v1/policies?limit={LIST_PAGE}");
        let mut list = self.call(Method::GET, &first, None).await?;
        while let Some(cursor) = list["next"].as_str() {
            let path = format!("{first}&cursor={cursor}");
            let mut page = self.call(Method::GET, &path, None).await?;
            let (next, policies) = (page["next"].take(), page["policies"].take());
            if let (Value::Array(all), Value::Array(more)) = (&mut list["policies"], policies) {
                all.extend(more);
            }
            list["next"] = next;
        }
        if let Some(list) = list.as_object_mut() {
            list.remove("next");
        }
        Ok(list)
    }

    async fn upload(&self, files: PolicyFiles) -> anyhow::Result<Value> {
        let mut form = Form::new().part(
            "manifest",
            Part::text(files.manifest).file_name("policy.toml"),
        );
        for (name, bytes) in files.modules {
            form = form.part(
                name.clone(),
                Part::bytes(bytes)
                    .file_name(name)
                    .mime_str("application/wasm")?,
            );
        }
        let request = self
            .client
            .post(format!("{}/admin/v1/policies", self.base))
            .timeout(UPLOAD_TIMEOUT)
            .bearer_auth(&self.token);
        let request = match self.if_revision {
            Some(revision) => request.header(IF_MATCH, etag(revision)),
            None => request,
        };
        self.read(request.multipart(form).send().await).await
    }

    /// Returns the response, or an error with the reported problem in one line.
    async fn read(&self, response: reqwest::Result<Response>) -> anyhow::Result<Value> {
        let response = response.map_err(|error| {
            let what = match error.is_timeout() {
                true => format!("the host at {} does not answer in time", self.base),
                false => format!("no host answers at {}", self.base),
            };
            anyhow::Error::from(error).context(what)
        })?;
        let status = response.status();
        let text = response.text().await?;
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        if status.is_success() {
            return Ok(value);
        }
        let detail = value["detail"]
            .as_str()
            .unwrap_or("no reason given")
            .to_owned();
        let fields = value["errors"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let fields: Vec<String> = fields
            .iter()
            .filter_map(|error| {
                Some(format!(
                    "{}: {}",
                    error["field"].as_str()?,
                    error["message"].as_str()?
                ))
            })
            .collect();
        if fields.is_empty() {
            bail!("{status}: {detail}")
        } else {
            bail!("{status}: {}", fields.join("; "))
        }
    }
}

impl Target {
    fn at_revision(self, if_revision: Option<i64>) -> Self {
        match self {
            Self::Host(remote) => Self::Host(remote.at_revision(if_revision)),
            Self::Directory { deploy, .. } => Self::Directory {
                deploy,
                if_revision,
            },
        }
    }

    pub async fn list(&self) -> anyhow::Result<Value> {
        match self {
            Target::Host(remote) => remote.list().await,
            Target::Directory { deploy, .. } => {
                Ok(serde_json::to_value(PolicyList::of_host(deploy))?)
            }
        }
    }

    pub async fn prune(&self, dry_run: bool) -> anyhow::Result<Value> {
        match self {
            Target::Host(remote) => {
                let body = json!({ "dry_run": dry_run });
                let path = "/admin/v1/policies/prune";
                remote.call(Method::POST, path, Some(&body)).await
            }
            Target::Directory {
                deploy,
                if_revision,
            } => {
                let unused = deploy.prune(dry_run, cli(*if_revision)).await?;
                Ok(serde_json::to_value(PruneAnswer::new(unused, dry_run))?)
            }
        }
    }

    pub async fn publish(&self, files: PolicyFiles) -> anyhow::Result<Value> {
        match self {
            Target::Host(remote) => remote.upload(files).await,
            Target::Directory {
                deploy,
                if_revision,
            } => answer(deploy.publish(files, cli(*if_revision)).await),
        }
    }

    pub async fn activate(
        &self,
        policy: &PolicyRef,
        expected_active: Option<&PolicyRef>,
    ) -> anyhow::Result<Value> {
        match self {
            Target::Host(remote) => {
                let path = format!(
                    "/admin/v1/policies/{}/{}/activate",
                    policy.name, policy.version
                );
                let body = expected_active.map(|active| json!({ "expected_active": active }));
                remote.call(Method::POST, &path, body.as_ref()).await
            }
            Target::Directory {
                deploy,
                if_revision,
            } => {
                let author = cli(*if_revision).expecting(expected_active);
                answer(deploy.activate(policy, author).await)
            }
        }
    }

    pub async fn step(&self, policy: &PolicyRef, step: &Step) -> anyhow::Result<Value> {
        match self {
            Target::Host(remote) => {
                let (method, verb, body) = step.request();
                let PolicyRef { name, version } = policy;
                let path = format!("/admin/v1/policies/{name}/{version}/{verb}");
                remote.call(method, &path, body.as_ref()).await
            }
            Target::Directory {
                deploy,
                if_revision,
            } => answer(match step {
                Step::Shadow => deploy.shadow(policy, cli(*if_revision)).await,
                Step::EndShadow => deploy.end_shadow(policy, cli(*if_revision)).await,
                Step::Canary { percent } => {
                    deploy.canary(policy, *percent, cli(*if_revision)).await
                }
                Step::Retire => deploy.retire(policy, cli(*if_revision)).await,
                Step::Lift { reason } => deploy.lift(policy, reason, cli(*if_revision)).await,
                Step::Quarantine { reason } => {
                    deploy.require_state(cli(*if_revision)).await?;
                    match deploy.quarantine(policy, reason, LOCAL_ACTOR).await {
                        // The quarantine would be in force only in this process, which ends now.
                        Ok((_, Scope::ThisHost)) => bail!(
                            "the registry does not answer; nothing was changed. Run the command with --host for each running host; a host can quarantine without the registry"
                        ),
                        quarantined => quarantined.map(|(published, _)| published),
                    }
                }
            }),
        }
    }

    pub async fn rollback(
        &self,
        reason: &str,
        expected_active: Option<&PolicyRef>,
    ) -> anyhow::Result<Value> {
        match self {
            Target::Host(remote) => {
                let body = json!({ "reason": reason, "expected_active": expected_active });
                remote
                    .call(Method::POST, "/admin/v1/rollback", Some(&body))
                    .await
            }
            Target::Directory {
                deploy,
                if_revision,
            } => {
                let author = cli(*if_revision);
                answer(deploy.rollback(reason, expected_active, author).await)
            }
        }
    }
}

/// Returns the author of a change that a command makes in the registry itself.
fn cli(if_revision: Option<i64>) -> Author<'static> {
    Author {
        if_revision,
        ..Author::from(LOCAL_ACTOR)
    }
}

fn answer(result: Result<impl Into<PolicyAnswer>, DeployError>) -> anyhow::Result<Value> {
    match result {
        Ok(changed) => Ok(serde_json::to_value(changed.into())?),
        Err(DeployError::Refused(refusal)) => {
            bail!("policy refused: {}", refusal.text())
        }
        Err(DeployError::Invalid(fields)) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(f, why)| format!("{f}: {why}"))
                .collect();
            bail!("{}", fields.join("; "))
        }
        Err(error) => Err(error.into()),
    }
}
