//! Starting and stopping a host: the parts in the order of their dependence, and back.

use crate::app::{App, Parts};
use crate::config::Config;
use crate::events::drain::{self, Drain};
use crate::events::spool::Spool;
use crate::experiments::exposure::Exposures;
use crate::feed::cursor::CursorKey;
use crate::feed::shadow::Shadows;
use crate::http;
use crate::http::auth::TokenKeys;
use crate::jobs::{self, ConfigFile, Jobs};
use crate::logging::Logging;
use crate::policy::admission::signature::TrustedKeys;
use crate::policy::deploy::Deploy;
use crate::policy::engine::Engine;
use crate::policy::pool::CpuPool;
use crate::policy::watcher::{self, WatchReport};
use crate::replay::recorder::Recorder;
use crate::secret;
use crate::wiring::{self, Wired};
use anyhow::Context;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long a stopping host goes on counting accepted events; the rest waits for the next start.
const FLUSH_BOUND: Duration = Duration::from_secs(5);
/// How long it waits for whatever else finishes its work; a batch for a store that does not answer is stored by the
/// next start, or by another host. Together with the requests in flight less than the grace of whoever stops it.
const STOP_BOUND: Duration = Duration::from_secs(15);

/// A host that listens.
#[derive(Debug)]
pub struct Host {
    app: Arc<App>,
    listener: TcpListener,
    stop_draining: CancellationToken,
    /// What finishes its work before the host ends.
    draining: Vec<JoinHandle<()>>,
    /// Held for as long as the host runs: two hosts on one directory would write over each other.
    _lock: File,
}

/// What a host is started with.
#[derive(Debug)]
pub struct Start {
    pub config: Config,
    /// Lets policies with `follow = true` follow their sources.
    pub development: bool,
    pub logging: Option<Arc<Logging>>,
    /// The file to follow for changes.
    pub config_file: Option<ConfigFile>,
}

impl Host {
    /// Starts everything and listens; `serve` then answers.
    ///
    /// # Errors
    /// Whatever keeps the host from serving, in one line that says what to do.
    pub async fn start(start: Start) -> anyhow::Result<Self> {
        let Start {
            config,
            development,
            logging,
            config_file,
        } = start;
        let data_dir = &config.data_dir;
        std::fs::create_dir_all(data_dir)
            .with_context(|| format!("data directory {}", data_dir.display()))?;
        let lock = lock(data_dir)?;
        let listener = TcpListener::bind(config.listen).await.with_context(|| {
            format!(
                "listening on {}; choose another address with --listen",
                config.listen
            )
        })?;
        let secret = secret::load_or_make(&config)?;
        let Wired {
            stores,
            registry,
            spool,
            embedded,
            beside,
        } = wiring::connect(&config).await?;
        let into_stores = embedded.is_some();
        let keys = TrustedKeys::parse(&config.policy.trusted_keys)?;
        let engine = Engine::start()?
            .with_cache(data_dir)?
            .with_trusted_keys(keys.remembering(data_dir).await?);
        let deploy = Deploy::start(engine, registry, development).await?;
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
        std::fs::create_dir_all(&policies_dir)
            .with_context(|| format!("policies directory {}", policies_dir.display()))?;
        let parts = Parts {
            policy_pool: CpuPool::start(config.worker_threads())?,
            token_keys: TokenKeys::new(&secret, &config.auth.issuer),
            cursor_key: CursorKey::derive(&secret),
            watch_report: watch_report.clone(),
            spool: spool.clone(),
            deploy: deploy.clone(),
            exposures,
            recorder,
            shadows: Shadows::start(&config.live)?,
            config,
        };
        let app = App::new(parts, stores);
        tokio::spawn(watcher::watch(deploy.clone(), policies_dir, watch_report));
        tokio::spawn(deploy.follow_registry());
        jobs::start(Jobs {
            app: app.clone(),
            embedded,
            logging,
            config: config_file,
        });
        let mut draining = beside(&app, &stop_draining)?;
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

    /// # Errors
    /// When the listener has no address.
    pub fn address(&self) -> anyhow::Result<std::net::SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Answers until `stop`; then finishes what was begun, counts what was accepted, and returns.
    pub async fn serve(self, stop: CancellationToken) {
        let router = http::router(self.app.clone());
        let stopping = self.app.clone();
        let announce = stop.clone();
        tokio::spawn(async move {
            announce.cancelled().await;
            stopping.stopping.store(true, Ordering::Relaxed);
            tracing::info!("stopping: finishing the requests in flight");
        });
        http::server::serve(self.listener, router, &self.app.config.server, stop).await;
        self.stop_draining.cancel();
        let drained = futures::future::join_all(self.draining);
        if tokio::time::timeout(STOP_BOUND, drained).await.is_err() {
            tracing::warn!(
                bound_ms = STOP_BOUND.as_millis() as u64,
                "stopping with work under way; it is done again after the next start"
            );
        }
        tracing::info!("stopped");
    }
}

/// What leaves the spool for the stores is counted; what leaves it for the broker is not yet.
fn start_drain(
    app: &Arc<App>,
    spool: Spool,
    into_stores: bool,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let drain = Drain {
        spool,
        sink: app.stores.sink.clone(),
        counted: into_stores.then(|| app.overtake_counted()),
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
