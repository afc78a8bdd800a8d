//! `nova migrate`: brings the schemas and topics of the real stack up to date.

use super::{ConfigPath, DataDir, block_on, output};
use crate::config::Config;
use anyhow::Context as _;
use nova_stores::clickhouse;
use nova_stores::clickhouse::ClickHouseStore;
use nova_stores::kafka;
use nova_stores::kafka::KafkaSettings;
use nova_stores::postgres;
use serde::Serialize;

/// Brings the schemas and topics of the real stack up to date.
///
/// Run it before the hosts of a new version start. A second run changes nothing. The embedded
/// stores do not need it: they are brought up to date when they are opened.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: POSTGRES_URL=postgres://nova:secret@db/nova CLICKHOUSE_URL=… KAFKA_BROKERS=… REDIS_URL=… nova migrate"
)]
pub struct Migrate {
    /// Prints the applied changes as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigPath,
    #[command(flatten)]
    data_dir: DataDir,
}

/// Result for one part of the stack.
#[derive(Debug, Serialize)]
struct Migrated {
    store: &'static str,
    /// Names of the migrations or topics that were applied now, in this order. Empty if
    /// everything was up to date.
    applied: Vec<String>,
}

impl Migrate {
    pub fn run(self) -> anyhow::Result<()> {
        let config = self.config.load(&self.data_dir)?;
        let done = block_on(migrate(&config))?;
        if self.json {
            return output::line(serde_json::json!({ "stores": done }));
        }
        for Migrated { store, applied } in done {
            if applied.is_empty() {
                output::line(format_args!("{store}: up to date; nothing was changed"))?;
            } else {
                output::line(format_args!("{store}: applied {}", applied.join(", ")))?;
            }
        }
        Ok(())
    }
}

/// Migrates one part after the other. If one part fails, the parts after it stay unchanged.
async fn migrate(config: &Config) -> anyhow::Result<Vec<Migrated>> {
    let urls = config.stores.stack().context(
        "no store URLs are configured: set POSTGRES_URL, CLICKHOUSE_URL, KAFKA_BROKERS and REDIS_URL; the embedded stores migrate themselves",
    )?;
    let applied = |store, applied: Vec<String>| Migrated { store, applied };
    let postgres = postgres::migrate::migrate(urls.postgres).await?;
    let clickhouse = ClickHouseStore::connect(urls.clickhouse)?.migrate().await?;
    let settings = KafkaSettings {
        prefix: config.stores.kafka_prefix.clone(),
        ..KafkaSettings::new(urls.kafka)
    };
    let topics = kafka::topics::create(&settings).await?;
    Ok(vec![
        applied(postgres::STORE_NAME, postgres),
        applied(
            clickhouse::STORE_NAME,
            clickhouse.into_iter().map(str::to_owned).collect(),
        ),
        applied(kafka::STORE, topics),
    ])
}
