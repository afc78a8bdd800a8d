//! `nova policy bench`: the cost of a policy compared with `baseline`, by stage and by number of
//! candidates.

use super::{built_files, print};
use crate::commands::{block_on, table};
use crate::replay::record::Record;
use anyhow::{Context as _, anyhow};
use nova_model::artifact::{Digest, PerStage, Stage};
use nova_policy::admission::golden::Golden;
use nova_policy::admission::{Admitted, KnownModules, PolicyFiles, admit};
use nova_policy::bench::{Measured, Pair, Report, Sets, Times, measure, total};
use nova_policy::builtin;
use nova_policy::class::{Class, MEMORY_MB_MAX};
use nova_policy::engine::Engine;
use nova_policy::module::Module;
use nova_stores::records::{RecordStore, Selection};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const BAR_WIDTH: u64 = 48;
/// Largest number of records, newest first, from which the sets to measure are chosen.
const RECORDS_MAX: u32 = 500;

#[derive(Debug, clap::Args)]
pub struct Bench {
    /// A .wasm file, or a directory with policy.toml.
    path: PathBuf,
    /// Number of timed calls for each stage, size and instance mode.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    calls: u32,
    /// Measures recorded candidates instead of generated ones; PATH is a data directory or a
    /// file from `policy replay --export`.
    #[arg(long, value_name = "PATH")]
    records: Option<PathBuf>,
}

impl Bench {
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let engine = Engine::start()?;
        let (files, known) = subject(&engine, &self.path)?;
        let policy = load(&engine, &known, &files)?;
        let shipped = builtin::recipes().next().unwrap_or_default();
        let baseline = load(&engine, &Untried::default(), &shipped)?;
        let sets = match &self.records {
            Some(path) => block_on(recorded(path))?,
            None => Sets::generated(),
        };
        let bar = indicatif::ProgressBar::new(sets.steps() as u64).with_style(
            indicatif::ProgressStyle::with_template("measuring {bar:40} {pos}/{len}")?,
        );
        let report = measure(
            &engine,
            &measured(&policy),
            &measured(&baseline),
            &sets,
            self.calls as usize,
            || bar.inc(1),
        );
        bar.finish_and_clear();
        let report = report.with_context(|| {
            let path = self.path.display();
            format!("could not measure {path}; to see the reason, run: nova policy check {path}")
        })?;
        let spec = &policy.loaded.spec;
        let answer = json!({
            "policy": spec.policy,
            "digest": policy.loaded.digest,
            "baseline": baseline.loaded.spec.policy,
            "source": if self.records.is_some() { "recorded" } else { "generated" },
            "limits": spec.limits,
            "report": report,
        });
        let title = format!(
            "{} compared with {}\n",
            spec.policy, baseline.loaded.spec.policy
        );
        print(
            json,
            &answer,
            title + &text(&report, self.records.is_some()),
        )
    }
}

/// Returns the newest records as sets to rank.
async fn recorded(path: &Path) -> anyhow::Result<Sets> {
    let mut store = RecordStore::open_to_read(path).await?;
    let newest = Selection {
        limit: Some(RECORDS_MAX.into()),
        ..Selection::default()
    };
    let from = store.start_of(newest).await?;
    let stored = store.read_after(from, newest, RECORDS_MAX).await?;
    let records = stored
        .iter()
        .filter_map(|stored| Record::decode(&stored.bytes).ok());
    Sets::recorded(records.map(golden).collect()).with_context(|| {
        format!(
            "{} has no readable record; set NOVA_RECORD_SAMPLE_RATIO on a host to record rankings",
            path.display()
        )
    })
}

/// Converts a record to a golden set. Posts that the recorded ranking left out are ranked after
/// all others.
fn golden(record: Record) -> Golden {
    let mut scores = vec![f32::MIN; record.candidates.len()];
    for (row, score) in record.answer.rows.iter().zip(&record.answer.scores) {
        scores[*row as usize] = *score;
    }
    Golden {
        name: "",
        request: record.request(),
        set: record.candidates,
        seen: record.seen,
        scores,
    }
}

/// Known modules for a benchmark, which skips the trial of admission. A policy that admission
/// refuses may still be measured, to find the reason.
#[derive(Default)]
struct Untried {
    compiled: Option<Arc<Module>>,
}

impl KnownModules for Untried {
    fn compiled(&self, digest: Digest) -> Option<Arc<Module>> {
        self.compiled
            .clone()
            .filter(|module| module.digest == digest)
    }

    fn bytes(&self, _digest: Digest) -> Option<Vec<u8>> {
        None
    }

    fn is_tried(&self, _policy: Digest) -> bool {
        true
    }
}

fn load(engine: &Engine, known: &Untried, files: &PolicyFiles) -> anyhow::Result<Admitted> {
    admit(engine, known, files).map_err(|refusal| anyhow!("{}", refusal.text()))
}

fn measured(admitted: &Admitted) -> Measured<'_> {
    let bytes = |at: usize| {
        let module = admitted.module_bytes.get(at);
        module.map_or(&[][..], |(_, bytes)| bytes)
    };
    Measured {
        policy: &admitted.loaded,
        bytes: PerStage {
            dedup: bytes(0),
            score: bytes(1),
            saturation: bytes(2),
        },
    }
}

/// Returns the policy to measure: a policy directory unchanged, or `baseline` with the module in
/// place of its own for that stage.
fn subject(engine: &Engine, path: &Path) -> anyhow::Result<(PolicyFiles, Untried)> {
    if !path.is_file() {
        return Ok((built_files(path)?, Untried::default()));
    }
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let module = engine
        .load(&bytes)
        .map_err(|error| anyhow!("{}: {error}", path.display()))?;
    let baseline = builtin::recipes().next().unwrap_or_default();
    let mut manifest: toml::Table = baseline.manifest.parse()?;
    manifest.insert("name".into(), "module".into());
    let stage = toml::Table::from_iter([("module".to_owned(), "module.wasm".into())]);
    manifest.insert(module.stage.as_str().into(), stage.into());
    if module.shape.class() == Class::Large {
        let limits = toml::Table::from_iter([("memory_mb".to_owned(), MEMORY_MB_MAX.into())]);
        manifest.insert("limits".into(), limits.into());
    }
    let files = PolicyFiles {
        manifest: manifest.to_string(),
        modules: BTreeMap::from([("module.wasm".to_owned(), bytes)]),
    };
    let known = Untried {
        compiled: Some(Arc::new(module)),
    };
    Ok((files, known))
}

fn text(report: &Report, recorded: bool) -> String {
    let kind = if recorded { "recorded" } else { "generated" };
    let stages = report.sizes.get(report.main).map(stage_table);
    format!(
        "\nStages over {} {kind} candidates, times in µs\n{}\n\
         Growth of the three stages together\n{}\nFuel (# this policy, - baseline)\n{}",
        report.candidates.get(report.main).copied().unwrap_or(0),
        stages.unwrap_or_default(),
        growth_table(report),
        curve(report)
    )
}

fn stage_table(stages: &PerStage<Pair>) -> String {
    let row = |name: &str, of: &dyn Fn(fn(&Pair) -> u64) -> u64| {
        [
            name.to_owned(),
            of(|pair| pair.policy.fuel).to_string(),
            of(|pair| pair.baseline.fuel).to_string(),
            of(|pair| pair.policy.fresh.median_us).to_string(),
            of(|pair| pair.policy.fresh.p99_us).to_string(),
            of(|pair| pair.baseline.fresh.median_us).to_string(),
            of(|pair| pair.policy.reuse.median_us).to_string(),
            of(|pair| pair.policy.reuse.p99_us).to_string(),
            of(|pair| pair.baseline.reuse.median_us).to_string(),
            (of(|pair| pair.policy.memory_bytes) >> 10).to_string(),
            (of(|pair| pair.baseline.memory_bytes) >> 10).to_string(),
        ]
    };
    let mut rows: Vec<[String; 11]> = Stage::ALL
        .iter()
        .map(|stage| row(stage.as_str(), &|of| of(stages.get(*stage))))
        .collect();
    rows.push(row("sum", &|of| total(stages, of)));
    let header = [
        "stage", "fuel", "baseline", "fresh", "p99", "baseline", "reuse", "p99", "baseline", "KiB",
        "baseline",
    ];
    table::render(header, &rows)
}

fn growth_table(report: &Report) -> String {
    let sum = |stages, of: fn(&Pair) -> u64| total(stages, of).to_string();
    let rows: Vec<[String; 7]> = report
        .candidates
        .iter()
        .zip(&report.sizes)
        .map(|(size, stages)| {
            [
                size.to_string(),
                sum(stages, |pair| pair.policy.fuel),
                sum(stages, |pair| pair.baseline.fuel),
                sum(stages, |pair| median(pair.policy.fresh)),
                sum(stages, |pair| median(pair.baseline.fresh)),
                sum(stages, |pair| median(pair.policy.reuse)),
                sum(stages, |pair| median(pair.baseline.reuse)),
            ]
        })
        .collect();
    let header = [
        "candidates",
        "fuel",
        "baseline",
        "fresh µs",
        "baseline",
        "reuse µs",
        "baseline",
    ];
    let growth = report.growth.map(|growth| {
        format!(
            "fuel grows as n^{:.2}, baseline's as n^{:.2}, from {} to {} candidates\n",
            growth.policy, growth.baseline, growth.from, growth.to
        )
    });
    table::render(header, &rows) + &growth.unwrap_or_default()
}

fn median(times: Times) -> u64 {
    times.median_us
}

/// Draws bars on one linear scale, so that linear growth shows as a straight staircase.
fn curve(report: &Report) -> String {
    let fuels = |stages| {
        [
            total(stages, |pair| pair.policy.fuel),
            total(stages, |pair| pair.baseline.fuel),
        ]
    };
    let most = report
        .sizes
        .iter()
        .flat_map(fuels)
        .max()
        .unwrap_or(0)
        .max(1);
    let bar = |fuel: u64, mark: &str| mark.repeat((fuel * BAR_WIDTH).div_ceil(most) as usize);
    report
        .candidates
        .iter()
        .zip(&report.sizes)
        .map(|(size, stages)| {
            let [policy, baseline] = fuels(stages);
            format!(
                "{size:>6} |{}\n       |{}\n",
                bar(policy, "#"),
                bar(baseline, "-")
            )
        })
        .collect()
}
