//! `nova policy check`: runs admission on the author's machine and shows all of its findings.

use super::{built_files, print};
use crate::commands::{output, table};
use anyhow::{Context, anyhow};
use nova_model::artifact::Stage;
use nova_model::measured::StageRecord;
use nova_policy::admission::golden::{CANDIDATES_MAX, OVERSIZE};
use nova_policy::admission::{NothingKnown, Refusal, admit, admit_module};
use nova_policy::engine::Engine;
use nova_policy::module::{Description, Module};
use nova_policy::worker::{Worker, WorkerLimits};
use serde_json::json;
use std::path::Path;

pub fn check(path: &Path, json: bool) -> anyhow::Result<()> {
    let worker = Worker::of_this_program(WorkerLimits::default())?;
    let engine = Engine::start()?.with_worker(worker);
    let bar = indicatif::ProgressBar::new_spinner()
        .with_message(format!("compiling and trying {}", path.display()));
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    let checked = if path.is_file() {
        check_module(&engine, path, json)
    } else {
        check_policy(&engine, path, json)
    };
    bar.finish_and_clear();
    checked
}

fn check_module(engine: &Engine, path: &Path, json: bool) -> anyhow::Result<()> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let (module, record) =
        admit_module(engine, &bytes).map_err(|refusal| refused(path, &refusal, json))?;
    let report = json!({ "digest": module.digest, "stage": module.stage, "description": module.description, "admission": record });
    let text = module_report(&module) + &costs(&[(module.stage, &record)]);
    print(json, &report, text)
}

fn check_policy(engine: &Engine, path: &Path, json: bool) -> anyhow::Result<()> {
    let files = built_files(path)?;
    let admitted =
        admit(engine, &NothingKnown, &files).map_err(|refusal| refused(path, &refusal, json))?;
    let spec = &admitted.loaded.spec;
    let mut text = format!(
        "{} would be admitted\ndigest {}\n",
        spec.policy, admitted.loaded.digest
    );
    for stage in Stage::ALL {
        text.push_str(&module_report(admitted.loaded.modules.get(stage)));
    }
    if let Some(record) = &admitted.record {
        text.push_str(&costs(
            &Stage::ALL.map(|stage| (stage, record.stage(stage))),
        ));
    }
    let report = json!({ "policy": spec.policy, "digest": admitted.loaded.digest, "spec": spec, "admission": admitted.record });
    print(json, &report, text)
}

/// Returns the refusal in one line, for the exit. If `json` is set, also prints the reasons as
/// JSON.
fn refused(path: &Path, refusal: &Refusal, json: bool) -> anyhow::Error {
    if json && let Err(error) = output::line(json!({ "errors": refusal.reasons })) {
        return error;
    }
    anyhow!("{} would be refused: {}", path.display(), refusal.text())
}

fn costs(stages: &[(Stage, &StageRecord)]) -> String {
    let header = [
        "stage",
        "class",
        "KiB",
        "compiled in",
        "fuel at 100",
        "at 1,100",
        "at 5,000",
        "growth",
        "memory",
        "time at 1,100",
    ];
    let rows: Vec<[String; 10]> = stages
        .iter()
        .map(|(stage, record)| {
            [
                stage.to_string(),
                record.class.to_string(),
                (record.module_bytes >> 10).to_string(),
                record
                    .compile_ms
                    .map_or_else(String::new, |ms| format!("{ms} ms")),
                record.fuel_at(100).to_string(),
                record.fuel_at(CANDIDATES_MAX).to_string(),
                record.fuel_at(OVERSIZE).to_string(),
                format!("n^{:.2}", record.growth),
                format!("{} KiB", record.memory_bytes >> 10),
                format!("{:.2} ms", record.time_us as f64 / 1_000.0),
            ]
        })
        .collect();
    format!("\n{}", table::render(header, &rows))
}

fn module_report(module: &Module) -> String {
    let Description {
        name,
        version,
        features,
        parameters,
        ..
    } = &module.description;
    let rows: Vec<[String; 4]> = parameters
        .iter()
        .map(|p| {
            [
                p.name.clone(),
                p.default.to_string(),
                format!("{} … {}", p.min, p.max),
                p.doc.clone(),
            ]
        })
        .collect();
    let parameters = if rows.is_empty() {
        String::new()
    } else {
        table::render(["parameter", "default", "range", ""], &rows)
    };
    let reads = if features.is_empty() {
        "no features".to_owned()
    } else {
        features.join(", ")
    };
    format!(
        "\n{}: {name} {version}, sha256:{}\nreads {reads}\n{parameters}",
        module.stage, module.digest
    )
}
