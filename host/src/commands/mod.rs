//! The command line: one file per command, each a thin layer over a part of the host.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic if nobody reads; `output` does not"
)]

mod audit;
mod bucket;
mod cdc;
pub mod demo;
mod experiment;
mod import;
mod migrate;
pub mod output;
mod policy;
mod progress;
mod remote;
mod scaffold;
mod serve;
mod table;
mod token;
mod watch;

use crate::config::Config;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Ranks feeds with WebAssembly policies.
#[derive(Debug, Parser)]
#[command(name = "nova", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves a generated community from a temporary directory.
    Demo(demo::Demo),
    /// Runs the host.
    Serve(serve::Serve),
    /// Loads users, posts, follows, comments, likes and events from CSV files.
    Import(import::Import),
    /// Brings the schemas of the real stack up to date.
    Migrate(migrate::Migrate),
    /// Prints a token signed with the host's key.
    Token(token::Token),
    /// Creates, builds, checks and publishes policies, and operates them.
    Policy(policy::PolicyArguments),
    /// Creates, starts, shows and stops experiments.
    Experiment(experiment::ExperimentArguments),
    /// Lists administrative changes, and verifies that the log is unbroken.
    Audit(audit::AuditArguments),
    /// Checks the copy of PostgreSQL in ClickHouse.
    Cdc(cdc::CdcArguments),
    /// Prints the bucket of a unit, or null; it explains why a user is in a variation.
    Bucket(bucket::Bucket),
}

/// Location of the state.
#[derive(Debug, Clone, Args)]
pub struct DataDir {
    /// Directory of all durable data [default: data_dir of nova.toml, else ./nova-data]
    #[arg(long, env = "NOVA_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// Location of the configuration file.
#[derive(Debug, Clone, Args)]
pub struct ConfigPath {
    /// Configuration file [default: ./nova.toml if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl ConfigPath {
    fn path(&self) -> Option<PathBuf> {
        let default = PathBuf::from("nova.toml");
        self.config
            .clone()
            .or_else(|| default.is_file().then_some(default))
    }

    /// Loads the configuration file, then applies the environment, then the command line.
    fn load(&self, data_dir: &DataDir) -> anyhow::Result<Config> {
        let mut config = Config::load(self.path().as_deref(), |name| std::env::var(name).ok())?;
        if let Some(data_dir) = &data_dir.data_dir {
            config.data_dir.clone_from(data_dir);
        }
        Ok(config)
    }
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// The cause, in one line that says what to do.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Demo(demo) => demo.run(),
            Command::Serve(serve) => serve.run(),
            Command::Import(import) => import.run(),
            Command::Migrate(migrate) => migrate.run(),
            Command::Token(token) => token.run(),
            Command::Policy(policy) => policy.run(),
            Command::Experiment(experiment) => experiment.run(),
            Command::Audit(audit) => audit.run(),
            Command::Cdc(cdc) => cdc.run(),
            Command::Bucket(bucket) => bucket.run(),
        }
    }
}

/// Runs `work` on a small runtime, for commands that do little waiting.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(work)
}
