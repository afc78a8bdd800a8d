//! `nova policy replay`: runs recorded requests again, under the policy that served them and
//! under others.

use super::super::{ConfigPath, DataDir, block_on, output, table};
use crate::replay::html;
use crate::replay::policies::{Contender, Library};
use crate::replay::report::Report;
use crate::replay::run::{Progress, run};
use crate::{secret, wiring};
use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use nova_policy::compare::Distribution;
use nova_policy::engine::Engine;
use nova_stores::ports::registry::Registry;
use nova_stores::records::{RecordStore, Selection};
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, clap::Args)]
pub struct Replay {
    /// Policies to compare with what was served: name@version, a policy directory, or a .wasm
    /// file.
    #[arg(value_name = "POLICY")]
    policies: Vec<String>,
    /// File of records from --export; no data directory is needed then.
    #[arg(long, value_name = "FILE")]
    records: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigPath,
    #[command(flatten)]
    data_dir: DataDir,
    /// Selects only the records of this viewer.
    #[arg(long, value_name = "ID")]
    user: Option<u64>,
    /// Selects only the records whose policy failed.
    #[arg(long)]
    failures: bool,
    /// Selects only the newest N records.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Number of worker threads [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Writes the report as one HTML page.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Writes the records and their modules to one file, for a replay on another machine, and
    /// replays nothing.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["policies", "html", "user", "failures", "limit"])]
    export: Option<PathBuf>,
}

impl Replay {
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        block_on(async {
            let (mut store, registry) = self.open().await?;
            if let Some(file) = &self.export {
                return export(&mut store, file, json).await;
            }
            let report = self.replay(&mut store, registry).await?;
            if let Some(file) = &self.html {
                std::fs::write(file, html::render(&report))
                    .with_context(|| file.display().to_string())?;
            }
            if json {
                output::line(serde_json::to_string(&report)?)?;
            } else {
                output::text(text(&report))?;
            }
            verdict(&report)
        })
    }

    /// Opens the records, and the registry if there is one for them.
    async fn open(&self) -> anyhow::Result<(RecordStore, Option<Arc<dyn Registry>>)> {
        if let Some(file) = &self.records {
            return Ok((RecordStore::open_to_read(file).await?, None));
        }
        let config = self.config.load(&self.data_dir)?;
        let store = RecordStore::open_to_read(&config.data_dir).await?;
        Ok((
            store,
            Some(wiring::registry(&config, secret::present_audit_keys(&config)?).await?),
        ))
    }

    async fn replay(
        &self,
        store: &mut RecordStore,
        registry: Option<Arc<dyn Registry>>,
    ) -> anyhow::Result<Report> {
        let selection = Selection {
            user_id: self.user,
            failures: self.failures,
            limit: self.limit,
        };
        let total = store.count(selection).await?;
        if total == 0 {
            bail!(
                "{} has no matching records; a host records the share of rankings that records.sample_ratio (NOVA_RECORD_SAMPLE_RATIO) sets",
                store.path().display()
            );
        }
        let bar = ProgressBar::new(total).with_style(
            ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {per_sec}")
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_message("compiling");
        let mut library = Library::open(Engine::start()?, store, registry).await?;
        let contenders = self.contenders(store, &mut library).await?;
        for (policy, reason) in library.unavailable() {
            bar.suspend(|| {
                output::note(format_args!("nova: {policy} cannot run here: {reason}"));
            });
        }
        bar.set_message("replaying");
        bar.reset_elapsed();
        let threads = self
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from))
            .max(1);
        let shown = bar.clone();
        let progress: Progress = Arc::new(move |records| shown.inc(records));
        let report = run(store, selection, library, contenders, threads, progress).await;
        bar.finish_and_clear();
        report
    }

    async fn contenders(
        &self,
        store: &mut RecordStore,
        library: &mut Library,
    ) -> anyhow::Result<Vec<Contender>> {
        let mut contenders = Vec::new();
        for policy in &self.policies {
            contenders.push(library.contender(store, policy).await?);
        }
        Ok(contenders)
    }
}

async fn export(store: &mut RecordStore, file: &std::path::Path, json: bool) -> anyhow::Result<()> {
    store.export(file).await?;
    let records = RecordStore::open_to_read(file)
        .await?
        .count(Selection::default())
        .await?;
    let bytes = std::fs::metadata(file)?.len();
    if json {
        output::line(serde_json::json!({ "path": file, "records": records, "bytes": bytes }))
    } else {
        output::line(format_args!(
            "{records} records and their modules, {bytes} bytes: {}\nto replay them on another machine: nova policy replay --records FILE",
            file.display()
        ))
    }
}

/// Fails if a ranking differs from what was served, or if nothing could be checked.
fn verdict(report: &Report) -> anyhow::Result<()> {
    let check = &report.check;
    if let Some(first) = check.mismatches.first() {
        bail!(
            "{} of {} rankings differ from what was served; the first is record {}, ranking {}, by {}: {}",
            check.mismatched,
            check.checked,
            first.record,
            first.ranking_id,
            first.policy,
            first.difference
        );
    }
    if check.checked == 0 && report.policies.iter().all(|policy| policy.runs == 0) {
        bail!(
            "none of {} records could be replayed; see the reasons above",
            report.records.read
        );
    }
    Ok(())
}

fn text(report: &Report) -> String {
    let check = &report.check;
    let mut text = format!(
        "{} records, {:.0} requests/s on {} threads\n{} of {} rankings as they were served, bit for bit\n",
        report.records.read, report.requests_per_second, report.threads, check.exact, check.checked
    );
    for (reason, records) in &report.records.skipped {
        text.push_str(&format!("{records} skipped: {reason}\n"));
    }
    for (policy, records) in &check.unavailable {
        text.push_str(&format!(
            "{records} not checked: {policy} cannot run here\n"
        ));
    }
    if report.policies.is_empty() {
        return text;
    }
    text.push_str("\ncompared with what was served: medians (p05 … p95)\n");
    let mut rows: Vec<Vec<String>> = MEASURES
        .iter()
        .map(|name| vec![(*name).to_owned()])
        .collect();
    let columns = std::iter::once(served(report)).chain(report.policies.iter().map(compared));
    for column in columns {
        for (row, cell) in rows.iter_mut().zip(column) {
            row.push(cell);
        }
    }
    text.push_str(&table::render_columns(&rows));
    text
}

const MEASURES: [&str; 12] = [
    "",
    "rankings",
    "failed",
    "over its deadline",
    "time, µs",
    "fuel",
    "posts in common",
    "Kendall's τ",
    "entered the page",
    "moved on the page",
    "authors on a page",
    "first author's share",
];

fn served(report: &Report) -> [String; MEASURES.len()] {
    let check = &report.check;
    let authors = report.policies.first().map(|p| &p.comparison.authors);
    let none = String::new;
    [
        "served".to_owned(),
        check.checked.to_string(),
        none(),
        none(),
        spread(check.latency_us, 0),
        spread(check.fuel, 0),
        none(),
        none(),
        none(),
        none(),
        spread(authors.and_then(|a| a.distinct_before), 0),
        spread(authors.and_then(|a| a.max_share_before), 2),
    ]
}

fn compared(policy: &crate::replay::report::PolicyReport) -> [String; MEASURES.len()] {
    let c = &policy.comparison;
    [
        policy.policy.clone(),
        policy.runs.to_string(),
        policy.failures.values().sum::<u64>().to_string(),
        policy.over_deadline.to_string(),
        spread(policy.latency_us, 0),
        spread(policy.fuel, 0),
        spread(c.overlap, 2),
        spread(c.kendall_tau, 2),
        spread(c.entered, 0),
        spread(c.moved, 0),
        spread(c.authors.distinct_after, 0),
        spread(c.authors.max_share_after, 2),
    ]
}

fn spread(distribution: Option<Distribution>, digits: usize) -> String {
    distribution.map_or_else(
        || "–".to_owned(),
        |d| {
            format!(
                "{:.digits$} ({:.digits$} … {:.digits$})",
                d.p50, d.p05, d.p95
            )
        },
    )
}
