//! `nova cdc`: compares the copy of PostgreSQL in ClickHouse with the original.

use super::{ConfigPath, DataDir, block_on, output, table};
use crate::cdc::validate::{Report, State, Validation};
use crate::config::Config;
use anyhow::Context as _;
use clap::Subcommand;
use nova_stores::clickhouse::ClickHouseStore;
use nova_stores::kafka::KafkaSettings;
use nova_stores::postgres::checksums::Checksums;
use std::time::Duration;

/// Checks the copy of PostgreSQL in ClickHouse.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nova cdc validate")]
pub struct CdcArguments {
    #[command(subcommand)]
    command: CdcCommand,
}

#[derive(Debug, Subcommand)]
enum CdcCommand {
    /// Compares rows and checksums of PostgreSQL and ClickHouse, and shows how far the copy is
    /// behind.
    #[command(after_help = "Example: nova cdc validate --json")]
    Validate(Validate),
}

#[derive(Debug, clap::Args)]
struct Validate {
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    /// Time that a difference may take to disappear before it is reported.
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// Name of Debezium's replication slot.
    #[arg(
        long,
        default_value = "nova_slot",
        env = "NOVA_SLOT",
        value_name = "NAME"
    )]
    slot: String,
    #[command(flatten)]
    config: ConfigPath,
    #[command(flatten)]
    data_dir: DataDir,
}

impl CdcArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let CdcCommand::Validate(validate) = self.command;
        let config = validate.config.load(&validate.data_dir)?;
        let json = validate.json;
        let report = block_on(validate.compare(&config))?;
        if json {
            output::line(serde_json::to_string(&report)?)?;
        } else {
            output::text(rendered(&report))?;
        }
        anyhow::ensure!(
            report.passes(),
            "ClickHouse differs from PostgreSQL: capture the tables again, or look in the topic cdc_dlq for changes that could not be read"
        );
        Ok(())
    }
}

impl Validate {
    async fn compare(self, config: &Config) -> anyhow::Result<Report> {
        let stack = config.stores.stack().context(
            "the embedded stores have no change data capture; set POSTGRES_URL, CLICKHOUSE_URL, KAFKA_BROKERS and REDIS_URL",
        )?;
        let validation = Validation {
            postgres: Checksums::connect(stack.postgres).await?,
            clickhouse: ClickHouseStore::connect(stack.clickhouse)?,
            kafka: KafkaSettings {
                prefix: config.stores.kafka_prefix.clone(),
                ..KafkaSettings::new(stack.kafka)
            },
            slot: self.slot,
            wait_max: self.patience,
        };
        validation.run().await
    }
}

fn rendered(report: &Report) -> String {
    let rows: Vec<[String; 6]> = report
        .tables
        .iter()
        .map(|table| {
            let state = match table.state {
                State::Equal => "equal",
                State::Behind => "behind",
                State::Different => "DIFFERENT",
            };
            [
                table.table.to_owned(),
                state.to_owned(),
                table.postgres_rows.to_string(),
                table.clickhouse_rows.to_string(),
                format!("{} ({:.1} s)", table.lag_messages, table.lag_seconds),
                table.differing_days.join(" "),
            ]
        })
        .collect();
    let header = ["table", "state", "postgres", "clickhouse", "lag", "days"];
    let slot = match report.slot_lag_bytes {
        Some(bytes) => format!("the replication slot is {bytes} bytes behind\n"),
        None => "there is no replication slot, so no change is being captured\n".to_owned(),
    };
    table::render(header, &rows) + &slot
}
