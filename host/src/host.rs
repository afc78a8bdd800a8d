//! Start and stop of a host: the parts are started in the order of their dependencies and
//! stopped in reverse.

#![expect(
    clippy::disallowed_methods,
    reason = "bounds the end of the host, not a call of a store"
)]

use crate::app::{App, Parts};
use crate::config::Config;
use crate::events::drain::{self, Drain};
use crate::experiments::exposure::Exposures;
use crate::feed::FeedParts;
use crate::feed::cursor::CursorKey;
use crate::feed::failures::SharedFailureLog;
use crate::feed::shadow::Shadows;
use crate::http;
use crate::http::token::TokenKeys;
use crate::jobs::{self, ConfigFile, Jobs};
use crate::logging::Logging;
use crate::memory_limit;
use crate::replay::recorder::Recorder;
use crate::secret;
use crate::stop::Stop;
use crate::wiring::{self, Wired};
use anyhow::Context;
use nova_control::audit_watch::AuditWatch;
use nova_control::deploy::Deploy;
use nova_control::watcher;
use nova_control::watcher::WatchReport;
use nova_policy::bulkhead::PoolSizes;
use nova_policy::engine::Engine;
use nova_policy::pool::CpuPool;
use nova_policy::settings::{Allocation, EngineSettings, address_space_bytes};
use nova_policy::signature::TrustedKeys;
use nova_policy::worker::Worker;
use nova_stores::spool::Spool;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Time for which a stopping host goes on draining accepted events. The rest waits for the next
/// start.
const FLUSH_BOUND: Duration = Duration::from_secs(5);
/// Time for which a stopping host waits for all other work. A batch for a store that does not
/// answer is stored after the next start, or by another host. Together with the times for
/// draining and for requests in flight, this is less than the usual grace period of a supervisor.
const STOP_BOUND: Duration = Duration::from_secs(10);

/// Rankings that run beside the pool at the same time: a shadow run, and the trials of policies
/// that are loaded or submitted.
const RUNS_BESIDE_THE_POOL: u32 = 8;

/// A host that is listening.
#[derive(Debug)]
pub struct Host {
    app: Arc<App>,
    listener: TcpListener,
    stop_draining: CancellationToken,
    /// Tasks that must finish their work before the host ends.
    draining: Vec<JoinHandle<()>>,
    /// Lock on the data directory, held while the host runs. Two hosts on one directory would
    /// overwrite each other's files.
    _lock: File,
}

/// Arguments for starting a host.
#[derive(Debug)]
pub struct Start {
    pub config: Config,
    /// Allows policies with `follow = true` to follow their sources.
    pub development: bool,
    pub logging: Option<Arc<Logging>>,
    /// The configuration file to watch for changes.
    pub config_file: Option<ConfigFile>,
}

impl Host {
    /// Starts all parts and listens. Requests are answered once `serve` is called.
    ///
    /// # Errors
    /// The reason why the host cannot serve, in one line that says what to do.
    pub async fn start(start: Start) -> anyhow::Result<Self> {
        let Start {
            config,
            development,
            logging,
            config_file,
        } = start;
        let data_dir = &config.data_dir;
        std::fs::create_dir_all(data_dir).with_context(|| {
            format!("could not create the data directory {}", data_dir.display())
        })?;
        let lock = lock(data_dir)?;
        let listener = TcpListener::bind(config.listen).await.with_context(|| {
            format!(
                "could not listen on {}; choose another address with --listen",
                config.listen
            )
        })?;
        let secret = secret::load_or_make(&config)?;
        let Wired {
            stores,
            registry,
            spool,
            embedded,
            background,
        } = wiring::connect(&config).await?;
        let into_stores = embedded.is_some();
        let keys = TrustedKeys::parse(&config.policy.trusted_keys)?;
        let pool_sizes = PoolSizes::new(config.worker_threads());
        let engine = Engine::start_with(EngineSettings {
            rankings_max: u32::try_from(pool_sizes.threads())?.saturating_add(RUNS_BESIDE_THE_POOL),
            memory_bytes: memory_limit::policy_bytes(config.policy.memory_mb),
            deadline_max: Duration::from_millis(config.policy.deadline_ms_max.into()),
            address_space_bytes: address_space_bytes(),
        })?;
        let engine = engine
            .with_cache(data_dir)?
            .with_worker(Worker::of_this_program(config.policy.of_workers())?)
            .with_trusted_keys(keys.remembering(data_dir).await?);
        log_allocation(&engine);
        let deploy = Deploy::start(engine, registry, development).await?;
        deploy.set_quotas(config.policy.quotas());
        let stop_draining = CancellationToken::new();
        let (exposures, exposures_task) =
            Exposures::start(stores.exposures.clone(), stop_draining.clone());
        let (recorder, recorder_task) = Recorder::start(
            config.data_dir.clone(),
            config.live.records.clone(),
            deploy.registry().clone(),
            stop_draining.clone(),
        );
        let watch_report = WatchReport::default();
        let policies_dir = config.policies_dir();
        std::fs::create_dir_all(&policies_dir).with_context(|| {
            format!(
                "could not create the policies directory {}",
                policies_dir.display()
            )
        })?;
        let failures = Arc::<SharedFailureLog>::default();
        let feed = FeedParts {
            stores: stores.of_feed(),
            deploy: deploy.clone(),
            policy_pool: CpuPool::start(config.worker_threads(), config.policy.cpu_percent)?,
            exposures,
            recorder,
            shadows: Shadows::start(&config.live, failures.clone())?,
            failures,
            cursor_key: CursorKey::derive(&secret),
        };
        let app = App::new(Parts {
            token_keys: TokenKeys::new(&secret, &config.auth.issuer),
            watch_report: watch_report.clone(),
            spool: spool.clone(),
            stores,
            feed,
            config,
        });
        tokio::spawn(watcher::watch(deploy.clone(), policies_dir, watch_report));
        let audit_watch = AuditWatch::new(&app.config.data_dir, secret::audit_keys(&app.config)?);
        if !audit_watch.has_keys() {
            tracing::warn!(
                "the entries of the audit log are not authenticated; set audit.keys (NOVA_AUDIT_KEYS) to the same keys on every host"
            );
        }
        tokio::spawn(deploy.clone().watch_audit(audit_watch));
        tokio::spawn(deploy.follow_registry());
        jobs::start(Jobs {
            app: app.clone(),
            embedded,
            logging,
            config: config_file,
        });
        let mut draining = background(&app, &stop_draining)?;
        draining.push(start_drain(&app, spool, into_stores, stop_draining.clone()));
        draining.push(exposures_task);
        draining.push(recorder_task);
        Ok(Self {
            app,
            listener,
            stop_draining,
            draining,
            _lock: lock,
        })
    }

    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Returns the address that the host listens on.
    ///
    /// # Errors
    /// The listener has no address.
    pub fn address(&self) -> anyhow::Result<std::net::SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Serves until `stop`. Then finishes the requests in flight, drains accepted events, and
    /// returns.
    ///
    /// # Errors
    /// The host was asked to end at once.
    pub async fn serve(self, stop: Stop) -> anyhow::Result<()> {
        tokio::select! {
            () = self.serve_in_order(&stop) => Ok(()),
            () = stop.abort.cancelled() => Err(anyhow::anyhow!(
                "a second signal ended the host at once; requests in flight were cut off, and accepted events wait for the next start"
            )),
        }
    }

    async fn serve_in_order(self, stop: &Stop) {
        let router = http::router(self.app.clone());
        tokio::spawn(drain(self.app.clone(), stop.clone()));
        let close = stop.close.clone();
        http::server::serve(self.listener, router, &self.app.config.server, close).await;
        self.stop_draining.cancel();
        let drained = futures::future::join_all(self.draining);
        if tokio::time::timeout(STOP_BOUND, drained).await.is_err() {
            tracing::warn!(
                bound_ms = STOP_BOUND.as_millis() as u64,
                "stopping with unfinished background work; it is done again after the next start"
            );
        }
        tracing::info!("stopped");
    }
}

/// Waits for a stop, makes the host not ready, and lets the server close once load balancers had
/// time to notice.
async fn drain(app: Arc<App>, stop: Stop) {
    stop.drain.cancelled().await;
    app.stopping.store(true, Ordering::Relaxed);
    let drain_ms = app.config.server.drain_ms;
    if !stop.close.is_cancelled() {
        tracing::info!(
            drain_ms,
            "stopping; /readyz answers 503, and requests are still served"
        );
    }
    tokio::select! {
        () = tokio::time::sleep(Duration::from_millis(drain_ms)) => {}
        () = stop.close.cancelled() => {}
    }
    tracing::info!("stopping; finishing the requests in flight");
    stop.close.cancel();
}

fn log_allocation(engine: &Engine) {
    let memory_mb = engine.memory().usage().budget >> 20;
    let address_space_mb = address_space_bytes().map(|bytes| bytes >> 20);
    match engine.allocation() {
        Allocation::Pooled => {
            tracing::info!(memory_mb, "instances of policies come from a reserved pool")
        }
        Allocation::OnDemand => tracing::warn!(
            memory_mb,
            address_space_mb,
            "the address space is too small for a reserved pool of instances; instances of policies are allocated one by one, and rankings take longer"
        ),
    }
}

/// Starts the drain of the spool. Events that the drain writes to the stores are counted at
/// once. Events that it sends to the broker are counted later, by the consumer.
fn start_drain(
    app: &Arc<App>,
    spool: Spool,
    into_stores: bool,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let drain = Drain {
        spool,
        sink: app.stores.sink.clone(),
        counted: into_stores.then(|| app.invalidate_counted()),
        batch_events: if into_stores {
            drain::STORE_BATCH_EVENTS
        } else {
            drain::BROKER_BATCH_EVENTS
        },
    };
    tokio::spawn(drain.run(stop, FLUSH_BOUND))
}

fn lock(data_dir: &Path) -> anyhow::Result<File> {
    let path = data_dir.join("host.lock");
    let file = File::create(&path).with_context(|| format!("{}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            anyhow::bail!(
                "another host runs on {}; stop it, or choose another --data-dir",
                data_dir.display()
            )
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("{}", path.display()))
        }
    }
}
