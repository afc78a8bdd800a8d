//! The command line: one file a command, each a thin shell around a part of the host.

mod audit;
mod bucket;
mod cdc;
pub mod demo;
mod experiment;
mod import;
mod migrate;
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

/// Feeds, ranked by WebAssembly policies.
#[derive(Debug, Parser)]
#[command(name = "nova", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A generated community in a throw-away directory, served at once
    Demo(demo::Demo),
    /// The host
    Serve(serve::Serve),
    /// Loads users, posts, follows, comments, likes and events from CSV files
    Import(import::Import),
    /// The schemas of the real stack, brought up to date
    Migrate(migrate::Migrate),
    /// A token signed with the host's key
    Token(token::Token),
    /// The policy author's and the operator's loop
    Policy(policy::PolicyArguments),
    /// The experimenter's loop
    Experiment(experiment::ExperimentArguments),
    /// Who changed what, and whether the log of it is whole
    Audit(audit::AuditArguments),
    /// The copy of PostgreSQL in ClickHouse
    Cdc(cdc::CdcArguments),
    /// Prints a unit's bucket, or null: why a user is in a variation
    Bucket(bucket::Bucket),
}

/// Where state is.
#[derive(Debug, Clone, Args)]
pub struct DataDir {
    /// Where everything durable lives [default: data_dir of nova.toml, else ./nova-data]
    #[arg(long, env = "NOVA_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// A configuration file.
#[derive(Debug, Clone, Args)]
pub struct ConfigPath {
    /// Configuration file [default: ./nova.toml if there is one]
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

    /// File, environment and command line, in this order.
    fn load(&self, data_dir: &DataDir) -> anyhow::Result<Config> {
        let mut config = Config::load(self.path().as_deref(), |name| std::env::var(name).ok())?;
        if let Some(data_dir) = &data_dir.data_dir {
            config.data_dir.clone_from(data_dir);
        }
        Ok(config)
    }
}

impl Cli {
    /// # Errors
    /// What went wrong, in one line that says what to do.
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

/// A small runtime for commands that wait for little.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(work)
}
