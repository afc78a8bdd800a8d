//! Structured logs on standard error. They are written in the background, and their filter can
//! be reloaded.

use crate::config::LogFormat;
use crate::request_id::request_id;
use std::fmt;
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, layer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

/// Handle of the logs: changes the filter. Dropping it flushes the buffered lines.
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
    _flush: WorkerGuard,
}

impl fmt::Debug for Logging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logging").finish_non_exhaustive()
    }
}

impl Logging {
    /// Starts logging.
    ///
    /// # Errors
    /// The filter is invalid, or logging was already started.
    pub fn start(log_format: LogFormat, level: &str) -> anyhow::Result<Self> {
        let (filter, handle) = reload::Layer::new(EnvFilter::try_new(level)?);
        let (writer, flush) = tracing_appender::non_blocking(std::io::stderr());
        let layer = match log_format {
            LogFormat::Json => {
                let json = format::format()
                    .json()
                    .flatten_event(true)
                    .with_current_span(false)
                    .with_span_list(false);
                layer()
                    .fmt_fields(JsonFields::new())
                    .event_format(WithRequestId(json))
                    .with_writer(writer)
                    .boxed()
            }
            LogFormat::Text => {
                let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
                let text = format::format().with_ansi(ansi);
                layer()
                    .with_ansi(ansi)
                    .event_format(WithRequestId(text))
                    .with_writer(writer)
                    .boxed()
            }
        };
        tracing_subscriber::registry()
            .with(layer.with_filter(filter))
            .try_init()?;
        Ok(Self {
            filter: handle,
            _flush: flush,
        })
    }

    /// Replaces the filter.
    ///
    /// # Errors
    /// The filter is invalid.
    pub fn set_level(&self, level: &str) -> anyhow::Result<()> {
        Ok(self.filter.reload(EnvFilter::try_new(level)?)?)
    }
}

/// Adds the id of the current request to every log line. A span would do the same, but it would
/// be created and formatted for every request, and nearly no request logs anything.
struct WithRequestId<F>(F);

impl<S, N, F> FormatEvent<S, N> for WithRequestId<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let id = request_id();
        if id.is_empty() {
            return self.0.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.0
            .format_event(context, Writer::new(&mut line), event)?;
        // Request ids are plain (see `http::middleware`), so they need no escaping.
        match line.strip_prefix('{') {
            Some(rest) => write!(writer, "{{\"request_id\":\"{id}\",{rest}"),
            None => writeln!(writer, "{} request_id={id}", line.trim_end()),
        }
    }
}
