//! `nova serve`: runs the host until a signal stops it.

use super::watch::WatchArguments;
use super::{ConfigPath, DataDir, output};
use crate::app::App;
use crate::config::{Config, LogFormat};
use crate::host::{Host, Start};
use crate::jobs::ConfigFile;
use crate::logging::Logging;
use crate::stop::{Stop, StopRequest};
use anyhow::ensure;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Longest wait for work that blocks a thread when the host ends.
const BLOCKING_WAIT: Duration = Duration::from_secs(1);

/// Runs the host. If no store URLs are set, it uses its embedded stores.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  nova serve --data-dir ./nova-data --listen 127.0.0.1:8080\n  nova serve --watch fresh-first"
)]
pub struct Serve {
    #[command(flatten)]
    config: ConfigPath,
    #[command(flatten)]
    data_dir: DataDir,
    /// Address to listen on [default: 127.0.0.1:8080]; port 0 takes a free port.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    watch: WatchArguments,
}

impl Serve {
    pub fn run(self) -> anyhow::Result<()> {
        // The file is read before it is parsed, so that a change in between is detected as a
        // change.
        let file = self.config.path().map(|path| ConfigFile {
            loaded: std::fs::read(&path).unwrap_or_default(),
            path,
            overrides: keep_command_line,
        });
        let mut config = self.config.load(&self.data_dir)?;
        if let Some(listen) = self.listen {
            config.listen = listen;
        }
        let watched = self.watch.open()?;
        if watched.is_some() {
            for_one_person(&mut config)?;
        }
        run_host(config, watched.is_some(), file, move |address, app| {
            output::note(format_args!(
                "nova: serving on http://{address}; GET /docs describes the API, Ctrl-C stops"
            ));
            if let Some(watched) = watched {
                watched.start(app);
            }
        })
    }
}

/// Configures a host that follows a developer's edits: it logs to a terminal and must not share
/// its stores.
fn for_one_person(config: &mut Config) -> anyhow::Result<()> {
    ensure!(
        config.stores.stack().is_none(),
        "--watch needs the embedded stores, because every host on a shared stack would follow your edits; unset POSTGRES_URL, CLICKHOUSE_URL, KAFKA_BROKERS and REDIS_URL"
    );
    config.log_format = LogFormat::Text;
    if std::env::var_os("LOG_LEVEL").is_none() {
        config.live.log_level = "warn".to_owned();
    }
    Ok(())
}

/// Keeps the data directory and the listen address, which are fixed when the host starts.
fn keep_command_line(running: &Config, next: &mut Config) {
    next.listen = running.listen;
    next.data_dir.clone_from(&running.data_dir);
}

/// Starts a host, calls `ready`, and serves until SIGTERM, Ctrl-C or the end of its terminal.
pub fn run_host(
    config: Config,
    development: bool,
    config_file: Option<ConfigFile>,
    ready: impl FnOnce(SocketAddr, &Arc<App>) + Send,
) -> anyhow::Result<()> {
    let logging = Arc::new(Logging::start(config.log_format, &config.live.log_level)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let flushed = logging.clone();
    let result = runtime.block_on(async move {
        let host = Host::start(Start {
            config,
            development,
            logging: Some(logging),
            config_file,
        })
        .await?;
        ready(host.address()?, host.app());
        let stop = Stop::default();
        stop_on_signals(stop.clone())?;
        host.serve(stop).await
    });
    match &result {
        // A compilation or a read of a slow disk may still run. What has to be on the disk was
        // waited for before.
        Ok(()) => runtime.shutdown_timeout(BLOCKING_WAIT),
        // The work that still runs is not waited for.
        Err(_) => runtime.shutdown_background(),
    }
    drop(flushed);
    result
}

/// Passes signals on until the process ends.
fn stop_on_signals(stop: Stop) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // A host that was started with `nohup` must outlive its terminal.
    let mut hangup = match hangup_is_ignored() {
        true => None,
        false => Some(signal(SignalKind::hangup())?),
    };
    tokio::spawn(async move {
        loop {
            let hung_up = async {
                match &mut hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            stop.request(tokio::select! {
                _ = terminate.recv() => StopRequest::Supervisor,
                _ = interrupt.recv() => StopRequest::Terminal,
                _ = hung_up => StopRequest::HangUp,
            });
        }
    });
    Ok(())
}

/// Returns true if SIGHUP is ignored. The ignored signals are a hexadecimal mask, whose lowest
/// bit is signal 1, SIGHUP.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 == 1)
}
