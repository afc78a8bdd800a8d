//! Follows the configuration file. A file that cannot be used is refused whole and the old
//! configuration stays; what cannot change while the host runs is named.
//!
//! The content is compared, once a second: that sees editors that replace the file, ConfigMaps that
//! swap a symlink, and mounts that send no notifications.

use crate::app::App;
use crate::config::Config;
use crate::logging::Logging;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug)]
pub struct ConfigFile {
    pub path: PathBuf,
    /// What the command line set; it beats file and environment at every reading.
    pub overrides: fn(&Config, &mut Config),
}

pub async fn follow(
    file: ConfigFile,
    app: Arc<App>,
    logging: Option<Arc<Logging>>,
    interval: Duration,
) {
    let mut last = tokio::fs::read(&file.path).await.unwrap_or_default();
    loop {
        tokio::time::sleep(interval).await;
        let Ok(content) = tokio::fs::read(&file.path).await else {
            continue;
        };
        if content == last {
            continue;
        }
        last = content;
        match Config::load(Some(&file.path), |name| std::env::var(name).ok()) {
            Ok(mut next) => {
                (file.overrides)(&app.config, &mut next);
                apply(&app, next, logging.as_deref());
            }
            Err(error) => {
                tracing::error!(%error, "the changed configuration is refused; the old one stays")
            }
        }
    }
}

fn apply(app: &App, next: Config, logging: Option<&Logging>) {
    let running = Config {
        live: next.live.clone(),
        ..app.config.clone()
    };
    if running != next {
        tracing::warn!(
            "the configuration changed in keys that need a restart; the others are in force now"
        );
    }
    if let Some(logging) = logging
        && let Err(error) = logging.set_level(&next.live.log_level)
    {
        tracing::error!(%error, "log level");
    }
    app.set_live(next.live);
    tracing::info!("configuration reloaded");
}
