//! `nova audit`: lists the audit log, prints its head, and verifies it.

use super::remote::{Remote, TargetArguments};
use super::{block_on, output, table};
use crate::http::admin_audit::AUDIT_MAX;
use anyhow::{Context as _, anyhow, bail};
use clap::Subcommand;
use nova_control::audit_watch::AuditWatch;
use nova_model::artifact::Digest;
use nova_model::audit::{AuditEntry, AuditPage, Verified, Verifier};
use nova_model::audit_head::AuditHead;
use nova_model::audit_key::AuditKeys;
use nova_model::time::rfc3339;
use nova_stores::ports::registry::{Registry, RegistryError};
use reqwest::Method;
use serde_json::{Value, json};
use std::sync::Arc;

/// Lists administrative changes with their actors, newest first.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  nova audit --limit 10\n  nova audit head\n  nova audit verify"
)]
pub struct AuditArguments {
    #[command(subcommand)]
    command: Option<AuditCommand>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Prints the newest entry's id and hash. Note them outside the database, to check later if
    /// entries were removed.
    #[command(after_help = "Example: nova audit head --json")]
    Head(Head),
    /// Verifies that no entry was changed, removed, added or moved after it was written, that the
    /// log goes up to the registry's revision, and that it contains what the host read before.
    #[command(
        after_help = "Examples:\n  nova audit verify\n  nova audit verify --expect-head 8f3c…    # the head that an earlier run printed"
    )]
    Verify(Verify),
}

#[derive(Debug, clap::Args)]
struct List {
    /// Number of entries to show.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArguments,
}

#[derive(Debug, clap::Args)]
struct Verify {
    /// Head that an earlier run printed; the log must still contain it.
    #[arg(long, value_name = "HASH")]
    expect_head: Option<Digest>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArguments,
}

#[derive(Debug, clap::Args)]
struct Head {
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArguments,
}

/// Source of the log: a running host, or the registry with what the host of the data directory
/// remembers.
enum Source {
    Host(Remote),
    Registry(Arc<dyn Registry>, AuditWatch),
}

/// The end of the log, and the entry that the host remembers.
#[derive(Debug, serde::Deserialize)]
struct End {
    #[serde(flatten)]
    head: AuditHead,
    remembered: Option<AuditHead>,
    /// False in the answer of a host of an earlier version.
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    finding: Option<String>,
}

/// Response of a host.
#[derive(Debug, serde::Deserialize)]
struct Page {
    entries: Vec<AuditEntry>,
    #[serde(default)]
    local_changes: Vec<Value>,
    #[serde(default)]
    degraded: Vec<String>,
}

impl AuditArguments {
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            None => block_on(self.list.run()),
            Some(AuditCommand::Head(head)) => block_on(head.run()),
            Some(AuditCommand::Verify(verify)) => block_on(verify.run()),
        }
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let source = Source::open(&self.target).await?;
        let mut entries: Vec<AuditEntry> = Vec::new();
        let mut page = AuditPage::NEWEST;
        let (mut local_changes, mut degraded) = (Vec::new(), Vec::new());
        while entries.len() < self.limit as usize {
            let wanted = (self.limit - entries.len() as u32).min(AUDIT_MAX);
            let mut more = source.page(page, wanted).await?;
            (local_changes, degraded) = (more.local_changes, more.degraded);
            let Some(last) = more.entries.last() else {
                break;
            };
            page = AuditPage::Before(last.id);
            entries.append(&mut more.entries);
        }
        if self.json {
            let log =
                json!({ "entries": entries, "local_changes": local_changes, "degraded": degraded });
            return output::line(log);
        }
        if degraded.is_empty() {
            output::text(rendered(&entries))?;
        } else {
            output::line(
                "the registry does not answer, so its log cannot be read; try again when it does",
            )?;
        }
        output::text(local_lines(&local_changes))
    }
}

impl Head {
    async fn run(self) -> anyhow::Result<()> {
        let End { head, .. } = Source::open(&self.target).await?.end().await?;
        match (self.json, head.hash) {
            (true, _) => output::line(serde_json::to_string(&head)?),
            (false, Some(hash)) => output::line(format_args!("{} {hash}", head.revision)),
            (false, None) => output::line(format_args!("{} has no hash", head.revision)),
        }
    }
}

impl Verify {
    async fn run(self) -> anyhow::Result<()> {
        let source = Source::open(&self.target).await?;
        let keys = self.target.audit_keys()?;
        let has_keys = !keys.is_empty();
        let verified = source.verify(self.expect_head, keys).await?;
        if self.json {
            return output::line(serde_json::to_string(&verified)?);
        }
        let Some(head) = verified.head else {
            return output::line("the log is empty");
        };
        output::line(format_args!("{} entries, unbroken", verified.entries))?;
        if verified.unattested > 0 {
            output::line(format_args!(
                "{} of them are older than the hash chain; the next change adds them to it as they are now",
                verified.unattested
            ))?;
        }
        output::line(authentication(&verified, has_keys))?;
        output::line(format_args!("head {head}"))
    }
}

impl Source {
    async fn open(target: &TargetArguments) -> anyhow::Result<Self> {
        Ok(match target.remote()? {
            Some(remote) => Self::Host(remote),
            None => Self::Registry(target.registry().await?, target.audit_watch()?),
        })
    }

    async fn end(&self) -> anyhow::Result<End> {
        match self {
            Self::Registry(registry, watch) => {
                let remembered = watch.remembered();
                let known = remembered.as_ref().ok().copied().flatten();
                Ok(End {
                    head: registry.head().await.map_err(unread)?,
                    remembered: known.map(|known| known.head),
                    authenticated: known.is_some_and(|known| known.authenticated),
                    finding: remembered.err().map(|finding| finding.to_string()),
                })
            }
            Self::Host(remote) => {
                let answer = remote
                    .call(Method::GET, "/admin/v1/audit/head", None)
                    .await?;
                serde_json::from_value(answer).context(OTHER_VERSION)
            }
        }
    }

    async fn page(&self, page: AuditPage, limit: u32) -> anyhow::Result<Page> {
        match self {
            Self::Registry(registry, _) => {
                let entries = registry.audit(page, limit).await.map_err(unread)?;
                Ok(Page {
                    entries,
                    local_changes: Vec::new(),
                    degraded: Vec::new(),
                })
            }
            Self::Host(remote) => {
                let path = match page {
                    AuditPage::NEWEST => format!("/admin/v1/audit?limit={limit}"),
                    AuditPage::Before(id) => format!("/admin/v1/audit?limit={limit}&before={id}"),
                    AuditPage::After(id) => format!("/admin/v1/audit?limit={limit}&after={id}"),
                };
                let answer = remote.call(Method::GET, &path, None).await?;
                serde_json::from_value(answer).context(OTHER_VERSION)
            }
        }
    }

    async fn verify(&self, expected: Option<Digest>, keys: AuditKeys) -> anyhow::Result<Verified> {
        let mut verifier = Verifier::new(keys);
        // Read before the entries, so that changes in between are no finding.
        let End {
            head,
            remembered,
            authenticated,
            finding,
        } = self.end().await?;
        // Without what the host remembers, a log that was cut off would look complete.
        if let (None, Some(finding)) = (remembered, finding) {
            bail!("the host reports: {finding}");
        }
        if let Some(hash) = expected {
            verifier.expect(None, hash);
        }
        if let Some(AuditHead {
            revision,
            hash: Some(hash),
        }) = remembered
        {
            verifier.expect(Some(revision), hash);
            if authenticated {
                verifier.require_authenticated_after(revision);
            }
        }
        let mut page = AuditPage::OLDEST;
        loop {
            let read = self.page(page, AUDIT_MAX).await?;
            if !read.degraded.is_empty() {
                bail!(
                    "the host cannot read the log while the registry does not answer; verify again once it does"
                );
            }
            let Some(last) = read.entries.last() else {
                break;
            };
            page = AuditPage::After(last.id);
            for entry in &read.entries {
                verifier.push(entry).map_err(|broken| {
                    anyhow!(
                        "{broken}; compare entry {} with a backup of the registry, and do not trust any change from there on",
                        broken.id
                    )
                })?;
            }
        }
        let verified = verifier.finish().map_err(|missing| {
            let whose = match missing.revision {
                Some(revision) => format!("the host read entry {revision} before, and now "),
                None => String::new(),
            };
            anyhow!(
                "{whose}{missing}: the newest entries were cut off, or the whole log was rewritten or restored; compare the log with a backup of the registry"
            )
        })?;
        if verified.revision < head.revision {
            bail!(
                "the registry is at revision {}, but the newest entry is {}: the newest entries were removed; compare the log with a backup of the registry",
                head.revision,
                verified.revision
            );
        }
        Ok(verified)
    }
}

const OTHER_VERSION: &str =
    "could not read the host's response; use the `nova` of the host's version";

fn unread(error: RegistryError) -> anyhow::Error {
    anyhow!("{error}; check that PostgreSQL runs, or name a host with --host")
}

/// Says which entries are known to be written by a host with the key.
fn authentication(verified: &Verified, has_keys: bool) -> String {
    if !has_keys {
        return "authentication was not checked: no audit key is configured here (NOVA_AUDIT_KEYS)"
            .to_owned();
    }
    let mut text = format!("{} entries authenticated", verified.authenticated);
    if verified.before_authentication > 0 {
        text += &format!(
            ", {} from before authentication with this key",
            verified.before_authentication
        );
    }
    text
}

/// Formats the changes that the host made while the registry was unavailable, one per line.
pub fn local_lines(changes: &[Value]) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let line = |entry: &Value| {
        format!(
            "on this host alone, until the registry answers: {} {} by {} at {}\n",
            text(&entry["change"]["action"]).replace('_', " "),
            text(&entry["subject"]),
            text(&entry["actor"]),
            text(&entry["at"])
        )
    };
    changes.iter().map(line).collect()
}

/// Formats the changes of this host that the registry refused for good.
pub fn set_aside_lines(changes: &[Value]) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let line = |entry: &Value| {
        format!(
            "set aside at {} and not in force: {} {} by {} at {}: {}\n",
            text(&entry["set_aside_at"]),
            text(&entry["change"]["action"]).replace('_', " "),
            text(&entry["subject"]),
            text(&entry["actor"]),
            text(&entry["at"]),
            text(&entry["reason"])
        )
    };
    changes.iter().map(line).collect()
}

/// Largest number of characters that a detail takes in a line.
const DETAIL_CHARACTERS: usize = 80;

fn rendered(entries: &[AuditEntry]) -> String {
    let rows: Vec<[String; 6]> = entries
        .iter()
        .map(|entry| {
            [
                entry.id.to_string(),
                rfc3339(entry.at.timestamp_millis().max(0).unsigned_abs()),
                entry.actor.clone(),
                entry.action.clone(),
                entry.subject.clone(),
                shortened(&in_words(&entry.detail)),
            ]
        })
        .collect();
    let header = ["id", "at", "actor", "action", "subject", "detail"];
    table::render(header, &rows)
}

/// Formats the details of an entry as text, with the reason first.
fn in_words(detail: &Value) -> String {
    let Some(fields) = detail.as_object() else {
        return detail.to_string();
    };
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let mut words: Vec<String> = Vec::new();
    for name in ["why", "reason"] {
        words.extend(fields.get(name).map(&text));
    }
    if let Some(made_at) = fields
        .get("local")
        .and_then(|local| local["made_at"].as_str())
    {
        words.push(format!(
            "made on one host while the registry was unavailable, at {made_at}"
        ));
    }
    let mut others: Vec<_> = fields
        .iter()
        .filter(|(name, _)| !["why", "reason", "local"].contains(&name.as_str()))
        .collect();
    others.sort_by_key(|(_, value)| value.is_object());
    let others = others.into_iter();
    words.extend(others.map(|(name, value)| format!("{name} {}", text(value))));
    words.join("; ")
}

fn shortened(detail: &str) -> String {
    if detail.chars().count() <= DETAIL_CHARACTERS {
        return detail.to_owned();
    }
    let mut short: String = detail.chars().take(DETAIL_CHARACTERS - 1).collect();
    short.push('…');
    short
}
