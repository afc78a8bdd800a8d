//! The real stack: ClickHouse, PostgreSQL, Redis and Kafka. Nothing here waits for a server.
//! Each server is contacted when it is needed, behind a circuit breaker, and a host that starts
//! before its servers serves what it can.

use super::deletions::{self, PendingTombstones};
use super::{BackgroundTasks, Wired};
use crate::app::App;
use crate::cdc::consumer::{self as capture, Capture};
use crate::cdc::invalidation::Invalidator;
use crate::config::Config;
use crate::events::consumer::{self as judge, Judge};
use crate::experiments::served::{self, ServedRecorder};
use crate::jobs::PoolSample;
use crate::jobs::profile::{watch_cache, watch_pool};
use crate::secret;
use crate::store_set::StoreSet;
use anyhow::Context as _;
use nova_control::last_good::LastGood;
use nova_control::offline::HostRegistry;
use nova_model::audit_key::AuditKeys;
use nova_stores::StackUrls;
use nova_stores::breaker::Breaker;
use nova_stores::clickhouse::ClickHouseStore;
use nova_stores::guard::Guard;
use nova_stores::kafka::exposures::KafkaExposures;
use nova_stores::kafka::{KafkaSettings, KafkaSink, Producer, Reader};
use nova_stores::postgres;
use nova_stores::postgres::PostgresStore;
use nova_stores::postgres::registry::PostgresRegistry;
use nova_stores::redis;
use nova_stores::redis::Redis;
use nova_stores::redis::cache::RedisCache;
use nova_stores::redis::claims::RedisClaims;
use nova_stores::redis::lease::RedisLease;
use nova_stores::redis::seen::RedisSeen;
use nova_stores::redis::tombstones::Tombstones;
use nova_stores::redis::values::RedisValues;
use nova_stores::spool::Spool;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Connections to the servers, for the background tasks.
struct Servers {
    clickhouse: ClickHouseStore,
    postgres: PostgresStore,
    redis: Redis,
    kafka: KafkaSettings,
    producer: Producer,
}

pub(super) async fn connect(config: &Config, urls: StackUrls<'_>) -> anyhow::Result<Wired> {
    let host = host_id(&config.data_dir)?;
    let servers = Servers::new(config, urls, host.clone())?;
    let registry =
        PostgresRegistry::new(urls.postgres)?.with_audit_keys(secret::audit_keys(config)?);
    let spool = Spool::open_shared(&config.data_dir, config.spool_bytes_max).await?;
    let redis = &servers.redis;
    let stores = StoreSet {
        candidates: Arc::new(servers.clickhouse.clone()),
        relational: Arc::new(servers.postgres.clone()),
        exposures: Arc::new(KafkaExposures::new(
            servers.producer.clone(),
            Arc::new(servers.clickhouse.clone()),
        )),
        sink: Arc::new(KafkaSink::new(servers.producer.clone())),
        cache: Arc::new(RedisCache::new(redis.clone(), config.cache_mb << 20)),
        values: Arc::new(RedisValues::new(redis.clone())),
        seen: Arc::new(RedisSeen::new(redis.clone())),
        lease: Arc::new(RedisLease::new(redis.clone())),
        claims: Some(RedisClaims::new(redis.clone())),
    };
    Ok(Wired {
        stores,
        registry: Arc::new(LastGood::for_host(registry, &config.data_dir, host)?),
        spool,
        embedded: None,
        background: servers.background(),
    })
}

/// Opens the registry that all hosts share, for a command.
pub(super) fn registry(
    config: &Config,
    urls: StackUrls<'_>,
    audit_keys: AuditKeys,
) -> anyhow::Result<Arc<dyn HostRegistry>> {
    let registry = PostgresRegistry::new(urls.postgres)?.with_audit_keys(audit_keys);
    Ok(Arc::new(LastGood::new(registry, &config.data_dir)?))
}

impl Servers {
    fn new(config: &Config, urls: StackUrls<'_>, host: String) -> anyhow::Result<Self> {
        let open = Duration::from_millis(config.stores.circuit_open_ms);
        let breaker = || Breaker::new(open);
        let kafka = KafkaSettings {
            brokers: urls.kafka.to_owned(),
            prefix: config.stores.kafka_prefix.clone(),
            instance: Some(host),
        };
        Ok(Self {
            clickhouse: ClickHouseStore::connect(urls.clickhouse)?.with_breaker(breaker()),
            postgres: PostgresStore::new(
                urls.postgres,
                config.stores.postgres_connections_max,
                postgres::CALL_TIMEOUT,
            )?
            .with_breaker(breaker()),
            redis: Redis::with_guard(
                urls.redis,
                Guard::with_breaker(redis::STORE_NAME, redis::CALL_TIMEOUT, breaker()),
                redis::CALL_TIMEOUT,
            )?,
            producer: Producer::start(&kafka)?,
            kafka,
        })
    }

    fn background(self) -> BackgroundTasks {
        Box::new(move |app, stop| {
            self.start(app, stop)
                .context("could not start the consumers")
        })
    }

    /// Starts the consumers and the other background tasks. Returns the consumers, which must
    /// finish their batches before the host ends; the other tasks may end at any time.
    fn start(
        self,
        app: &Arc<App>,
        stop: &CancellationToken,
    ) -> anyhow::Result<Vec<JoinHandle<()>>> {
        let tombstones = Tombstones::new(&self.redis);
        tokio::spawn(deletions::follow(app.clone(), tombstones.clone()));
        tokio::spawn(watch_cache(
            app.profile.clone(),
            self.redis.clone(),
            app.stores.lease.clone(),
        ));
        let postgres = self.postgres.clone();
        let sample = move || {
            let (open, idle) = postgres.connections();
            let idle = u32::try_from(idle).unwrap_or(open);
            PoolSample {
                in_use: open.saturating_sub(idle),
                idle,
                max: postgres.connections_max(),
            }
        };
        tokio::spawn(watch_pool(
            app.profile.clone(),
            postgres::STORE_NAME,
            "stores.postgres_connections_max",
            sample,
        ));
        self.consumers(app, tombstones, stop)
    }

    /// Starts the consumers. Every host is a member of every consumer group; the groups
    /// distribute the partitions.
    fn consumers(
        &self,
        app: &Arc<App>,
        tombstones: Tombstones,
        stop: &CancellationToken,
    ) -> anyhow::Result<Vec<JoinHandle<()>>> {
        let (kafka, producer) = (&self.kafka, &self.producer);
        let recorder = ServedRecorder::new(Arc::new(self.clickhouse.clone()));
        let pending = PendingTombstones::default();
        let invalidator = Invalidator {
            relational: app.stores.relational.clone(),
            cache: app.stores.cache.clone(),
            values: app.stores.values.clone(),
            on_tombstones: {
                let (app, pending) = (app.clone(), pending.clone());
                Arc::new(move |tombstones| pending.record(&app, tombstones))
            },
        };
        let capture = Capture::new(self.clickhouse.clone(), invalidator, kafka);
        let mut consumers = vec![Reader::start(
            kafka,
            producer,
            served::subscription(),
            recorder,
            stop.clone(),
        )?];
        let capture = Reader::start(
            kafka,
            producer,
            capture::subscription(),
            capture,
            stop.clone(),
        )?;
        // The publisher stops after the CDC consumer, because the consumer stores its last round
        // after the stop, and the other hosts need those deletions too.
        let cdc_stopped = CancellationToken::new();
        let publishing = pending.publish(tombstones, cdc_stopped.clone());
        consumers.push(tokio::spawn(async move {
            let ended = capture.await;
            cdc_stopped.cancel();
            let published = publishing.await;
            if let Err(error) = ended.and(published) {
                tracing::error!(%error, "the CDC consumer or its publisher panicked; deletions may not have reached other hosts");
            }
        }));
        if app.config.stores.consume_events {
            let judge = Judge::new(self.clickhouse.clone(), app.invalidate_counted());
            let events = judge::subscription();
            consumers.push(Reader::start(kafka, producer, events, judge, stop.clone())?);
        }
        Ok(consumers)
    }
}

/// Returns the name of this data directory among the members of a consumer group. The name is
/// kept on disk, so that a host that returns takes over its partitions at once.
fn host_id(data_dir: &Path) -> anyhow::Result<String> {
    let path = data_dir.join("host.id");
    match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => Ok(id.trim().to_owned()),
        _ => {
            let id = uuid::Uuid::new_v4().to_string();
            std::fs::write(&path, &id).with_context(|| format!("{}", path.display()))?;
            Ok(id)
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod format_tests;
