//! `nova policy`: creates, builds, checks and publishes policies, and operates them.

mod bench;
mod check;
mod explain;
mod failures;
mod lifecycle;
mod replay;
mod status;

use super::audit::{local_lines, set_aside_lines};
use super::remote::{ChangeArguments, Step, Target, TargetArguments};
use super::{block_on, output, progress, scaffold, table};
use anyhow::{Context, anyhow, bail};
use clap::{Subcommand, ValueEnum};
use nova_control::watcher::read_policy_directory;
use nova_model::artifact::PolicyRef;
use nova_model::artifact::{Digest, Stage};
use nova_policy::admission::PolicyFiles;
use nova_policy::project::{Language, Project, Purpose};
use nova_policy::worker::WorkerLimits;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Creates, builds, checks, measures and publishes policies, and operates them.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: nova policy new fresh-first --stage score && nova policy build fresh-first && nova policy check fresh-first"
)]
pub struct PolicyArguments {
    #[command(subcommand)]
    command: PolicyCommand,
    /// Prints JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Creates ./NAME, a policy that builds and passes its own test.
    #[command(
        after_help = "Examples:\n  nova policy new fresh-first --stage score\n  nova policy new fresh-first --lang python"
    )]
    New {
        /// Name of the policy and its source: a–z, 0–9 and hyphens.
        name: String,
        /// Stage that the policy implements.
        #[arg(long, default_value = "score")]
        stage: StageArgument,
        /// Language of the policy's source.
        #[arg(long, default_value = "rust")]
        lang: Language,
    },
    /// Compiles a policy's source to PATH/NAME.wasm and prints its digest.
    #[command(after_help = "Example: nova policy build fresh-first")]
    Build {
        /// Directory of the policy; Cargo.toml, pyproject.toml or package.json in it determines
        /// the language.
        path: PathBuf,
    },
    /// Checks if a host would admit a .wasm file, a policy directory or a policy crate.
    #[command(after_help = "Example: nova policy check fresh-first")]
    Check {
        /// A .wasm file, or a directory with policy.toml.
        #[arg(required_unless_present = "worker")]
        path: Option<PathBuf>,
        /// Answers one question of the program that started this one.
        #[arg(long, hide = true, value_name = "MEMORY_MB,CPU_S")]
        worker: Option<WorkerLimits>,
    },
    /// Compares the cost of a policy with baseline: fuel, time and memory, by stage and by
    /// number of candidates.
    #[command(after_help = "Example: nova policy bench fresh-first")]
    Bench(bench::Bench),
    /// Runs recorded requests again: checks that they rank bit for bit as they were served, and
    /// compares other policies.
    #[command(
        after_help = "Examples:\n  nova policy replay\n  nova policy replay ./fresh-first timeline@1.0.0 --html report.html\n  nova policy replay --export week.records\n  nova policy replay fresh-first.wasm --records week.records"
    )]
    Replay(replay::Replay),
    Explain(explain::Explain),
    /// Publishes a policy directory, or a published policy with other parameters.
    // `--version` is the version of the policy here, not of the program.
    #[command(
        disable_version_flag = true,
        after_help = "Examples:\n  nova policy push fresh-first --shadow\n  nova policy push --from baseline@1.0.0 --version 1.1.0 --set score.w_freshness=0.35"
    )]
    Push(Push),
    /// Lists every published policy.
    #[command(after_help = "Example: nova policy list")]
    List {
        #[command(flatten)]
        target: TargetArguments,
    },
    /// Makes a published policy the active one.
    #[command(
        after_help = "Examples:\n  nova policy activate fresh-first@0.1.0\n  nova policy activate fresh-first@0.1.0 --expected-active baseline@1.0.0"
    )]
    Activate {
        /// name@version [default: the canary, else the only policy in shadow]
        policy: Option<PolicyRef>,
        /// name@version that must be active; if another policy is active, nothing changes.
        #[arg(long)]
        expected_active: Option<PolicyRef>,
        #[command(flatten)]
        target: ChangeArguments,
    },
    Shadow(lifecycle::Shadow),
    Canary(lifecycle::Canary),
    Retire(lifecycle::Retire),
    Quarantine(lifecycle::Quarantine),
    Lift(lifecycle::Lift),
    Status(status::Status),
    Failures(failures::Failures),
    /// Removes -dev.N versions that nothing uses, and modules without a policy. Activations,
    /// experiments and quarantines keep what they need.
    #[command(after_help = "Example: nova policy prune --dry-run")]
    Prune {
        /// Shows what would be removed.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        target: ChangeArguments,
    },
    /// Returns to the policy that was active before.
    #[command(
        after_help = "Example: nova policy rollback --reason 'complaints' --expected-active fresh-first@0.1.0"
    )]
    Rollback {
        /// Reason, for the audit log.
        #[arg(long, default_value = "rolled back from the command line")]
        reason: String,
        /// name@version that must be active; if another policy is active, nothing changes.
        #[arg(long)]
        expected_active: Option<PolicyRef>,
        #[command(flatten)]
        target: ChangeArguments,
    },
}

#[derive(Debug, clap::Args)]
struct Push {
    /// A directory with policy.toml and its modules.
    #[arg(required_unless_present = "from")]
    path: Option<PathBuf>,
    /// name@version of a published policy to copy.
    #[arg(long, conflicts_with = "path", requires = "version")]
    from: Option<PolicyRef>,
    /// Version of the copy.
    #[arg(long)]
    version: Option<semver::Version>,
    /// Parameter value of the copy, e.g. score.w_freshness=0.35; may be repeated.
    #[arg(long = "set", value_name = "STAGE.PARAM=VALUE", requires = "from")]
    set: Vec<String>,
    /// Also puts the policy into shadow: it ranks the same candidates as the active policy, but
    /// serves no viewer; see: nova policy status.
    #[arg(long)]
    shadow: bool,
    #[command(flatten)]
    target: ChangeArguments,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StageArgument {
    Score,
    Dedup,
    Saturation,
}

impl PolicyArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let json = self.json;
        match self.command {
            PolicyCommand::New { name, stage, lang } => new(&name, stage, lang, json),
            PolicyCommand::Build { path } => build(&path, json),
            PolicyCommand::Check {
                worker: Some(limits),
                ..
            } => nova_policy::worker::serve(limits, std::io::stdin(), std::io::stdout()),
            PolicyCommand::Check { path, worker: None } => {
                check::check(&path.unwrap_or_default(), json)
            }
            PolicyCommand::Bench(bench) => bench.run(json),
            PolicyCommand::Replay(replay) => replay.run(json),
            PolicyCommand::Explain(explain) => explain.run(json),
            PolicyCommand::Push(push) => block_on(push.run(json)),
            PolicyCommand::List { target } => block_on(async {
                let list = target.target().await?.list().await?;
                print(json, &list, list_table(&list))
            }),
            PolicyCommand::Activate {
                policy,
                expected_active,
                target,
            } => block_on(async {
                let policy = lifecycle::on_trial(&target.target, policy).await?;
                let target = target.target().await?;
                let answer = target.activate(&policy, expected_active.as_ref()).await?;
                print(json, &answer, format!("{policy} is active\n"))
            }),
            PolicyCommand::Shadow(shadow) => shadow.run(json),
            PolicyCommand::Canary(canary) => canary.run(json),
            PolicyCommand::Retire(retire) => retire.run(json),
            PolicyCommand::Quarantine(quarantine) => quarantine.run(json),
            PolicyCommand::Lift(lift) => lift.run(json),
            PolicyCommand::Status(status) => status.run(json),
            PolicyCommand::Failures(failures) => failures.run(json),
            PolicyCommand::Prune { dry_run, target } => block_on(async {
                let answer = target.target().await?.prune(dry_run).await?;
                print(json, &answer, pruned_lines(&answer))
            }),
            PolicyCommand::Rollback {
                reason,
                expected_active,
                target,
            } => block_on(async {
                let answer = target
                    .target()
                    .await?
                    .rollback(&reason, expected_active.as_ref())
                    .await?;
                print(
                    json,
                    &answer,
                    format!(
                        "{} is active again{}\n",
                        name_of(&answer),
                        where_of(&answer)
                    ),
                )
            }),
        }
    }
}

fn print(json: bool, value: &Value, text: String) -> anyhow::Result<()> {
    if json {
        output::line(value)
    } else {
        output::text(text)
    }
}

fn name_of(answer: &Value) -> String {
    format!(
        "{}@{}",
        answer["name"].as_str().unwrap_or("?"),
        answer["version"].as_str().unwrap_or("?")
    )
}

/// Returns the limits of a change that is not in force on all hosts, as text.
fn where_of(answer: &Value) -> &'static str {
    if answer["local"] == true {
        " on this host only; the registry does not answer and gets the change when it returns"
    } else {
        ""
    }
}

fn new(name: &str, stage: StageArgument, language: Language, json: bool) -> anyhow::Result<()> {
    let stage = match stage {
        StageArgument::Score => Stage::Score,
        StageArgument::Dedup => Stage::Dedup,
        StageArgument::Saturation => Stage::Saturation,
    };
    let path = scaffold::create(name, stage, language)?;
    let rule = match language {
        Language::Rust => "src/lib.rs",
        Language::Python => "policy.py",
        Language::Javascript => "policy.js",
    };
    let text = format!(
        "created ./{name}: edit {rule}, then run\n  nova policy build {name}\n  nova policy check {name}\n  nova policy bench {name}\n  nova policy push {name} --shadow\n"
    );
    print(json, &json!({ "path": path, "stage": stage }), text)
}

fn build(path: &Path, json: bool) -> anyhow::Result<()> {
    let project = Project::open(path)?;
    let bytes = progress::shown(&project.name, |progress| {
        project.build(Purpose::Shipping, progress)
    })?;
    let to = path.join(project.module_file());
    std::fs::write(&to, &bytes).with_context(|| to.display().to_string())?;
    let digest = Digest::from_content(&bytes);
    let text = format!("{}\nsha256:{digest}\n", to.display());
    print(
        json,
        &json!({ "path": to, "digest": digest, "bytes": bytes.len() }),
        text,
    )
}

/// Reads a policy's directory. Fails if its modules are not built yet.
fn built_files(path: &Path) -> anyhow::Result<PolicyFiles> {
    if !path.join("policy.toml").is_file() {
        bail!(
            "{} has no policy.toml; name a policy directory (check and bench also take a .wasm file)",
            path.display()
        );
    }
    let files = read_policy_directory(path).map_err(anyhow::Error::msg)?;
    if files.modules.is_empty() && Project::open(path).is_ok() {
        bail!(
            "{} is not built yet; run: nova policy build {}",
            path.display(),
            path.display()
        );
    }
    Ok(files)
}

impl Push {
    async fn run(self, json: bool) -> anyhow::Result<()> {
        let target = self.target.target().await?;
        let files = match (&self.path, &self.from) {
            (Some(path), _) => built_files(path)?,
            (None, Some(from)) => self.derive(&target, from).await?,
            (None, None) => bail!("name a policy directory, or use --from name@version"),
        };
        let mut answer = target.publish(files).await?;
        if self.shadow {
            let published: PolicyRef = name_of(&answer).parse().map_err(anyhow::Error::msg)?;
            // The publication made a new revision, so the condition of the command held before.
            let target = self.target.target.target().await?;
            answer = target
                .step(&published, &Step::Shadow)
                .await
                .with_context(|| {
                    format!("{published} is published, but could not be put into shadow")
                })?;
        }
        let text = format!(
            "{} is {}\ndigest {}\n",
            name_of(&answer),
            text_of(&answer["state"]),
            text_of(&answer["digest"])
        );
        print(json, &answer, text)
    }

    /// Derives a new version of a published policy: its modules by digest, and its parameters
    /// with the changes.
    async fn derive(&self, target: &Target, from: &PolicyRef) -> anyhow::Result<PolicyFiles> {
        let list = target.list().await?;
        let entries = list["policies"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let entry = entries
            .iter()
            .find(|entry| name_of(entry) == from.to_string());
        let entry =
            entry.ok_or_else(|| anyhow!("no policy {from} is published; see: nova policy list"))?;
        let mut manifest = toml::Table::new();
        manifest.insert("name".into(), from.name.clone().into());
        let version = self
            .version
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        manifest.insert("version".into(), version.into());
        manifest.insert("description".into(), text_of(&entry["description"]).into());
        let mut changes = self.changes()?;
        for stage in Stage::ALL {
            let stored = &entry["stages"][stage.as_str()];
            let mut params: BTreeMap<String, f64> =
                serde_json::from_value(stored["params"].clone())?;
            params.extend(changes.remove(stage.as_str()).unwrap_or_default());
            let mut table = toml::Table::new();
            table.insert(
                "module".into(),
                format!("sha256:{}", text_of(&stored["module"])).into(),
            );
            table.insert("params".into(), toml::Value::try_from(params)?);
            manifest.insert(stage.as_str().into(), table.into());
        }
        if let Some(stage) = changes.keys().next() {
            bail!("--set {stage}…: the stages are dedup, score and saturation");
        }
        manifest.insert("limits".into(), toml::Value::try_from(&entry["limits"])?);
        Ok(PolicyFiles {
            manifest: toml::to_string(&manifest)?,
            modules: BTreeMap::new(),
        })
    }

    fn changes(&self) -> anyhow::Result<BTreeMap<String, BTreeMap<String, f64>>> {
        let mut changes = BTreeMap::<String, BTreeMap<String, f64>>::new();
        for set in &self.set {
            let parsed = set.split_once('=').and_then(|(path, value)| {
                let (stage, name) = path.split_once('.')?;
                Some((stage.to_owned(), name.to_owned(), value.parse().ok()?))
            });
            let (stage, name, value) = parsed.ok_or_else(|| {
                anyhow!("--set {set}: write STAGE.PARAM=VALUE, e.g. score.w_freshness=0.35")
            })?;
            changes.entry(stage).or_default().insert(name, value);
        }
        Ok(changes)
    }
}

fn text_of(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// Returns the memory of a policy's instances, if it serves on the host that was asked.
fn memory_of(list: &Value, name: &str) -> String {
    let serving = list["serving"]["policies"].as_array();
    let mut serving = serving.into_iter().flatten();
    let found = serving.find(|policy| policy["policy"] == name);
    found.map_or("–".to_owned(), |policy| {
        status::mib(&policy["memory_bytes"])
    })
}

fn pruned_lines(answer: &Value) -> String {
    let texts = |name: &str| -> Vec<String> {
        let values = answer[name].as_array().into_iter().flatten();
        values.map(text_of).collect()
    };
    let (policies, modules) = (texts("policies"), texts("modules"));
    let verb = match answer["dry_run"] == true {
        true => "would be removed",
        false => "removed",
    };
    let mut lines: String = policies
        .iter()
        .map(|policy| format!("{policy} {verb}\n"))
        .collect();
    lines += &format!(
        "{} versions and {} modules ({} bytes) {verb}\n",
        policies.len(),
        modules.len(),
        answer["bytes"]
    );
    if answer["more"] == true {
        lines += "there is more; run the command again\n";
    }
    lines
}

fn list_table(list: &Value) -> String {
    let entries = list["policies"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let rows: Vec<[String; 5]> = entries
        .iter()
        .map(|entry| {
            let digest = text_of(&entry["digest"]).chars().take(12).collect();
            [
                name_of(entry),
                text_of(&entry["state"]),
                digest,
                memory_of(list, &name_of(entry)),
                text_of(&entry["description"]),
            ]
        })
        .collect();
    let table = table::render(["policy", "state", "digest", "MiB", "description"], &rows);
    let entries = |name: &str| list[name].as_array().cloned().unwrap_or_default();
    table
        + &local_lines(&entries("local_changes"))
        + &set_aside_lines(&entries("set_aside_changes"))
}
