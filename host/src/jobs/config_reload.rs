//! Reload of the configuration file when it changes. An invalid file is refused as a whole, and
//! the old configuration stays in force. Keys that cannot change while the host runs are logged.
//!
//! The job compares the content once a second. That also detects editors that replace the file,
//! ConfigMaps that swap a symlink, and mounts that send no notifications.

use crate::app::App;
use crate::config::Config;
use crate::logging::Logging;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug)]
pub struct ConfigFile {
    pub path: PathBuf,
    /// Content of the file when the host read it at start. The first comparison is with this
    /// content.
    pub loaded: Vec<u8>,
    /// Applies the settings of the command line, which take precedence over the file and the
    /// environment at every reload.
    pub overrides: fn(&Config, &mut Config),
}

pub async fn follow(
    mut file: ConfigFile,
    app: Arc<App>,
    logging: Option<Arc<Logging>>,
    interval: Duration,
) {
    let mut last = std::mem::take(&mut file.loaded);
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
                tracing::error!(%error, "the changed configuration is invalid; keeping the old one")
            }
        }
    }
}

fn apply(app: &App, next: Config, logging: Option<&Logging>) {
    let running = Config {
        live: next.live.clone(),
        ..app.config.clone()
    };
    let keys = changed_keys(&running, &next).join(", ");
    if !keys.is_empty() {
        tracing::warn!(
            keys,
            "the configuration changed in keys that need a restart; the others are in force now"
        );
    }
    if let Some(logging) = logging
        && let Err(error) = logging.set_level(&next.live.log_level)
    {
        tracing::error!(%error, "could not change the log level; keeping the old one");
    }
    app.set_live(next.live);
    tracing::info!("configuration reloaded");
}

/// Returns the names of the changed keys. The values are left out because some of them are
/// secrets.
fn changed_keys(running: &Config, next: &Config) -> Vec<String> {
    let as_json = |config: &Config| serde_json::to_value(config).unwrap_or_default();
    let mut keys = Vec::new();
    collect_changes("", &as_json(running), &as_json(next), &mut keys);
    keys
}

fn collect_changes(key: &str, running: &Value, next: &Value, keys: &mut Vec<String>) {
    match (running, next) {
        (Value::Object(running), Value::Object(next)) => {
            for (name, value) in next {
                let key = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                collect_changes(&key, running.get(name).unwrap_or(&Value::Null), value, keys);
            }
        }
        _ if running == next => {}
        _ => keys.push(key.to_owned()),
    }
}
