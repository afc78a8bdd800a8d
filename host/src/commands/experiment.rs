//! `nova experiment`: manages experiments on a running host.

use super::remote::{ChangeArguments, Remote};
use super::{block_on, output, table};
use anyhow::Context;
use clap::Subcommand;
use reqwest::Method;
use serde_json::Value;
use std::path::PathBuf;

/// Creates, starts, shows and stops experiments on a running host.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: nova experiment put recency recency.json && nova experiment start recency"
)]
pub struct ExperimentArguments {
    #[command(subcommand)]
    command: ExperimentCommand,
    /// Prints JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    target: ChangeArguments,
}

#[derive(Debug, Subcommand)]
enum ExperimentCommand {
    /// Creates or changes an experiment from a JSON file.
    #[command(after_help = "Example: nova experiment put recency recency.json")]
    Put {
        /// Key of the experiment.
        key: String,
        /// JSON file with the experiment.
        file: PathBuf,
    },
    /// Shows an experiment.
    #[command(after_help = "Example: nova experiment show recency")]
    Show {
        /// Key of the experiment.
        key: String,
    },
    /// Starts assigning viewers.
    #[command(after_help = "Example: nova experiment start recency")]
    Start {
        /// Key of the experiment.
        key: String,
    },
    /// Pauses the assignment of viewers.
    #[command(after_help = "Example: nova experiment pause recency")]
    Pause {
        /// Key of the experiment.
        key: String,
    },
    /// Stops the assignment of viewers permanently.
    #[command(after_help = "Example: nova experiment stop recency")]
    Stop {
        /// Key of the experiment.
        key: String,
    },
    /// Shows the number of served rankings and of viewers per variation.
    #[command(after_help = "Example: nova experiment results recency")]
    Results {
        /// Key of the experiment.
        key: String,
    },
}

impl ExperimentArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let remote = self
            .target
            .remote()?
            .context("this command needs a running host; name it with --host URL (NOVA_HOST)")?;
        let answer = block_on(self.command.call(&remote))?;
        match (&self.command, self.json) {
            (ExperimentCommand::Results { .. }, false) => output::text(results_table(&answer)),
            (ExperimentCommand::Show { .. }, false) => {
                output::line(serde_json::to_string_pretty(&answer)?)
            }
            (_, false) => {
                let local = if answer["local"] == true {
                    " on this host only; the registry does not answer and gets the change when it returns"
                } else {
                    ""
                };
                output::line(format_args!(
                    "{} is {}{local}",
                    text(&answer["key"]),
                    text(&answer["state"])
                ))
            }
            (_, true) => output::line(&answer),
        }
    }
}

impl ExperimentCommand {
    async fn call(&self, remote: &Remote) -> anyhow::Result<Value> {
        let path = |key: &str, step: &str| format!("/admin/v1/experiments/{key}{step}");
        match self {
            Self::Put { key, file } => {
                let body =
                    std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
                let body: Value =
                    serde_json::from_str(&body).with_context(|| file.display().to_string())?;
                remote.call(Method::PUT, &path(key, ""), Some(&body)).await
            }
            Self::Show { key } => remote.call(Method::GET, &path(key, ""), None).await,
            Self::Start { key } => remote.call(Method::POST, &path(key, "/start"), None).await,
            Self::Pause { key } => remote.call(Method::POST, &path(key, "/pause"), None).await,
            Self::Stop { key } => remote.call(Method::POST, &path(key, "/stop"), None).await,
            Self::Results { key } => remote.call(Method::GET, &path(key, "/results"), None).await,
        }
    }
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn results_table(answer: &Value) -> String {
    let variations = answer["variations"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let rows: Vec<[String; 3]> = variations
        .iter()
        .map(|v| {
            [
                text(&v["variation"]),
                text(&v["exposures"]),
                text(&v["viewers"]),
            ]
        })
        .collect();
    table::render(["variation", "rankings", "viewers"], &rows)
}
