//! Structured logs on standard error, written behind the request, with a filter that reloads.

use crate::config::LogFormat;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

/// Changes the filter; dropping it flushes what was written.
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
    _flush: WorkerGuard,
}

impl std::fmt::Debug for Logging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logging").finish_non_exhaustive()
    }
}

impl Logging {
    /// # Errors
    /// When the filter cannot be read, or logging was started before.
    pub fn start(format: LogFormat, level: &str) -> anyhow::Result<Self> {
        let (filter, handle) = reload::Layer::new(EnvFilter::try_new(level)?);
        let (writer, flush) = tracing_appender::non_blocking(std::io::stderr());
        let layer = tracing_subscriber::fmt::layer().with_writer(writer);
        let layer = match format {
            LogFormat::Json => layer
                .json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false)
                .boxed(),
            LogFormat::Text => layer
                .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
                .boxed(),
        };
        tracing_subscriber::registry()
            .with(layer.with_filter(filter))
            .try_init()?;
        Ok(Self {
            filter: handle,
            _flush: flush,
        })
    }

    /// # Errors
    /// When the filter cannot be read.
    pub fn set_level(&self, level: &str) -> anyhow::Result<()> {
        Ok(self.filter.reload(EnvFilter::try_new(level)?)?)
    }
}
