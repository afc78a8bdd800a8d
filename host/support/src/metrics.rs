//! All metrics that Nova exports, under the names of its contract: prefix `nova_feed_`, seconds
//! and base units, no user id in a label.
//!
//! The metrics are global to the process, because a scrape describes the process.

use nova_model::artifact::{Digest, PolicyRef, Stage};
use nova_model::failure::FailureKind;
use prometheus::core::{Collector as _, MetricVec, MetricVecBuilder};
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::collections::{BTreeSet, HashMap};
use std::sync::{LazyLock, PoisonError, RwLock};
use std::time::Duration;

const PREFIX: &str = "nova_feed";

/// Buckets for everything that a viewer waits for.
const REQUEST_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.5, 1.0, 2.0,
];
/// Buckets for caches. A cache that does not answer in well under a millisecond has a problem.
const CACHE_SECONDS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
];
/// Buckets for stages, which take microseconds.
const STAGE_SECONDS: &[f64] = &[
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.02,
    0.05,
];

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub api_requests_total: IntCounterVec,
    pub api_duration_seconds: HistogramVec,
    pub api_active_requests: IntGauge,
    pub api_errors_total: IntCounterVec,
    pub feed_requests_total: IntCounterVec,
    pub feed_duration_seconds: HistogramVec,
    pub dedup_posts_removed_total: IntCounter,
    pub saturation_moves_total: IntCounter,
    pub policy_calls_total: IntCounterVec,
    pub policy_duration_seconds: HistogramVec,
    pub policy_active_info: IntGaugeVec,
    pub policy_memory_budget_bytes: IntGauge,
    pub policy_memory_used_bytes: IntGauge,
    pub policy_memory_idle_bytes: IntGauge,
    pub policy_memory_bytes: IntGaugeVec,
    pub policy_memory_refused_total: IntCounter,
    pub policy_swaps_total: IntCounterVec,
    pub policy_quarantined: IntGauge,
    pub policy_withdrawn: IntGauge,
    pub policy_native_only: IntGauge,
    pub audit_log_broken: IntGauge,
    pub audit_head_info: IntGaugeVec,
    pub registry_local_changes: IntGauge,
    pub registry_local_changes_settled_total: IntCounterVec,
    pub cache_operations_total: IntCounterVec,
    pub cache_duration_seconds: HistogramVec,
    pub circuit_state: IntGaugeVec,
    pub pool_connections: IntGaugeVec,
    pub store_queries_total: IntCounterVec,
    pub store_duration_seconds: HistogramVec,
    pub store_slow_queries_total: IntCounterVec,
    pub events_received_total: IntCounterVec,
    pub spool_events: IntGauge,
    pub spool_bytes: IntGauge,
    pub spool_oldest_seconds: Gauge,
    pub kafka_messages_sent_total: IntCounterVec,
    pub kafka_messages_consumed_total: IntCounterVec,
    pub kafka_consumer_lag: IntGaugeVec,
    pub kafka_consumer_lag_seconds: GaugeVec,
    pub cdc_events_consumed_total: IntCounterVec,
    pub cdc_lag_seconds: GaugeVec,
    pub dead_letters_total: IntCounterVec,
    pub job_runs_total: IntCounterVec,
    pub job_duration_seconds: HistogramVec,
    pub exposures_total: IntCounterVec,
    pub fallback_ratio: Gauge,
    pub records_total: IntCounterVec,
    pub records_bytes: IntGauge,
    pub shadow_runs_total: IntCounterVec,
    /// Experiments whose exposures have series.
    shown_experiments: RwLock<BTreeSet<String>>,
}

pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::register);

/// Registers metrics. A name is refused only if it is invalid or already used, and then the
/// first test that starts a host fails.
struct Registrar(Registry);

#[expect(
    clippy::expect_used,
    reason = "metric names are constants of this file"
)]
impl Registrar {
    fn add<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        made: prometheus::Result<C>,
    ) -> C {
        let collector = made.expect("a valid metric");
        self.0
            .register(Box::new(collector.clone()))
            .expect("a metric name used once");
        collector
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::with_opts(opts(name, help)))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(opts(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::with_opts(opts(name, help)))
    }

    fn float_gauge(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::with_opts(opts(name, help)))
    }

    fn float_gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.add(GaugeVec::new(opts(name, help), labels))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(opts(name, help), labels))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        self.add(HistogramVec::new(opts, labels))
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace(PREFIX)
}

impl Metrics {
    fn register() -> Self {
        let r = Registrar(Registry::new());
        let process = prometheus::process_collector::ProcessCollector::for_self();
        // On systems without /proc, the process collector is missing.
        let _ = r.0.register(Box::new(process));
        Self {
            api_requests_total: r.counters(
                "api_requests_total",
                "Number of requests answered.",
                &["endpoint", "method", "status"],
            ),
            api_duration_seconds: r.histograms(
                "api_duration_seconds",
                "Time to answer a request.",
                &["endpoint"],
                REQUEST_SECONDS,
            ),
            api_active_requests: r.gauge("api_active_requests", "Number of requests being answered."),
            api_errors_total: r.counters(
                "api_errors_total",
                "Number of error responses, by type.",
                &["endpoint", "error_type"],
            ),
            feed_requests_total: r.counters(
                "feed_requests_total",
                "Number of feeds served.",
                &["algo", "served_by", "cache"],
            ),
            feed_duration_seconds: r.histograms(
                "feed_duration_seconds",
                "Time to serve a feed.",
                &["served_by", "cache"],
                REQUEST_SECONDS,
            ),
            dedup_posts_removed_total: r.counter(
                "dedup_posts_removed_total",
                "Number of candidates that dedup removed.",
            ),
            saturation_moves_total: r.counter(
                "saturation_moves_total",
                "Number of posts that saturation moved from the position that their score gave them.",
            ),
            policy_calls_total: r.counters(
                "policy_calls_total",
                "Number of stage calls, by outcome.",
                &["policy", "stage", "outcome"],
            ),
            policy_duration_seconds: r.histograms(
                "policy_duration_seconds",
                "Time of one stage, including the checks of its result.",
                &["policy", "stage"],
                STAGE_SECONDS,
            ),
            policy_active_info: r.gauges(
                "policy_active_info",
                "1 for the active policy, which the labels name.",
                &["name", "version", "digest"],
            ),
            policy_memory_budget_bytes: r.gauge(
                "policy_memory_budget_bytes",
                "Memory that the instances of all policies together may use.",
            ),
            policy_memory_used_bytes: r.gauge(
                "policy_memory_used_bytes",
                "Memory that running and idle instances of policies have reserved.",
            ),
            policy_memory_idle_bytes: r.gauge(
                "policy_memory_idle_bytes",
                "Part of policy_memory_used_bytes that idle instances hold.",
            ),
            policy_memory_bytes: r.gauges(
                "policy_memory_bytes",
                "Memory that the instances of the modules of a policy in service have reserved. Policies that share a module each include it.",
                &["policy"],
            ),
            policy_memory_refused_total: r.counter(
                "policy_memory_refused_total",
                "Number of times that an instance got no memory because the budget was spent.",
            ),
            policy_swaps_total: r.counters(
                "policy_swaps_total",
                "Number of changes of the active policy, by kind.",
                &["kind"],
            ),
            policy_quarantined: r.gauge("policy_quarantined", "Number of policies in quarantine."),
            policy_withdrawn: r.gauge(
                "policy_withdrawn",
                "Number of policies that this host took out of its own service.",
            ),
            policy_native_only: r.gauge(
                "policy_native_only",
                "1 if no policy is in service on this host, so that the native ranker ranks every feed.",
            ),
            audit_log_broken: r.gauge(
                "audit_log_broken",
                "1 if the audit log does not continue what this host read before, or its chain is broken.",
            ),
            audit_head_info: r.gauges(
                "audit_head_info",
                "Id of the newest entry of the audit log that this host read; the label has its hash.",
                &["head"],
            ),
            registry_local_changes: r.gauge(
                "registry_local_changes",
                "Number of changes that this host made while the registry was unavailable and that the registry does not have yet.",
            ),
            registry_local_changes_settled_total: r.counters(
                "registry_local_changes_settled_total",
                "Number of changes made while the registry was unavailable, by the outcome of their reconciliation.",
                &["outcome"],
            ),
            cache_operations_total: r.counters(
                "cache_operations_total",
                "Number of cache lookups, by outcome.",
                &["cache", "outcome"],
            ),
            cache_duration_seconds: r.histograms(
                "cache_duration_seconds",
                "Time of cache lookups and writes.",
                &["cache"],
                CACHE_SECONDS,
            ),
            circuit_state: r.gauges(
                "circuit_state",
                "State of a circuit breaker: 0 closed, 1 half-open, 2 open.",
                &["store"],
            ),
            pool_connections: r.gauges(
                "pool_connections",
                "Number of connections of a pool, by state.",
                &["store", "state"],
            ),
            store_queries_total: r.counters(
                "store_queries_total",
                "Number of store queries, by outcome.",
                &["store", "query", "status"],
            ),
            store_duration_seconds: r.histograms(
                "store_duration_seconds",
                "Time of store queries.",
                &["store", "query"],
                REQUEST_SECONDS,
            ),
            store_slow_queries_total: r.counters(
                "store_slow_queries_total",
                "Number of store queries that took more than 500 ms.",
                &["store", "query"],
            ),
            events_received_total: r.counters(
                "events_received_total",
                "Number of events received, by outcome.",
                &["outcome"],
            ),
            spool_events: r.gauge("spool_events", "Number of accepted events in the spool."),
            spool_bytes: r.gauge("spool_bytes", "Size of the accepted events in the spool."),
            spool_oldest_seconds: r
                .float_gauge("spool_oldest_seconds", "Age of the oldest event in the spool."),
            kafka_messages_sent_total: r.counters(
                "kafka_messages_sent_total",
                "Number of messages sent to the broker, by outcome.",
                &["topic", "status"],
            ),
            kafka_messages_consumed_total: r.counters(
                "kafka_messages_consumed_total",
                "Number of messages whose offsets were committed.",
                &["topic", "group"],
            ),
            kafka_consumer_lag: r.gauges(
                "kafka_consumer_lag",
                "Number of messages between the consumer and the end of a partition that this host consumes.",
                &["topic", "partition"],
            ),
            kafka_consumer_lag_seconds: r.float_gauges(
                "kafka_consumer_lag_seconds",
                "Age of the oldest message of a partition that was read but is not stored yet; 0 if there is none.",
                &["topic", "partition"],
            ),
            cdc_events_consumed_total: r.counters(
                "cdc_events_consumed_total",
                "Number of changes captured from PostgreSQL, by outcome.",
                &["table", "status"],
            ),
            cdc_lag_seconds: r.float_gauges(
                "cdc_lag_seconds",
                "Time from the commit of a row in PostgreSQL to its insert in ClickHouse.",
                &["table"],
            ),
            dead_letters_total: r.counters(
                "dead_letters_total",
                "Number of records that were dead-lettered or dropped, by reason.",
                &["topic", "reason"],
            ),
            job_runs_total: r.counters(
                "job_runs_total",
                "Number of runs of periodic jobs, by outcome.",
                &["job", "outcome"],
            ),
            job_duration_seconds: r.histograms(
                "job_duration_seconds",
                "Time of one run of a periodic job.",
                &["job"],
                REQUEST_SECONDS,
            ),
            exposures_total: r.counters(
                "exposures_total",
                "Number of rankings served in an experiment, by variation.",
                &["experiment", "variation"],
            ),
            fallback_ratio: r.float_gauge(
                "fallback_ratio",
                "Share of feeds that fell back to the timeline; the counts start again after every 1,000 feeds.",
            ),
            records_total: r.counters(
                "records_total",
                "Number of rankings selected for recording, by outcome.",
                &["outcome"],
            ),
            records_bytes: r.gauge(
                "records_bytes",
                "Size of the recorded rankings and of the modules that they need.",
            ),
            shadow_runs_total: r.counters(
                "shadow_runs_total",
                "Number of shadow runs, by outcome.",
                &["policy", "outcome"],
            ),
            shown_experiments: RwLock::default(),
            registry: r.0,
        }
    }

    /// Renders all metrics in the Prometheus text format.
    pub fn render(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_default()
    }

    /// Removes every series of a policy that is not in use any more. Its [`PolicyMetrics`] must be
    /// hidden before.
    pub fn forget_policy(&self, policy: &str) {
        remove_series(&self.policy_calls_total, "policy", policy);
        remove_series(&self.policy_duration_seconds, "policy", policy);
        remove_series(&self.shadow_runs_total, "policy", policy);
    }

    /// Counts a ranking that was served in an experiment, if the experiment runs.
    pub fn observe_exposure(&self, experiment: &str, variation: &str) {
        let shown = self.shown_experiments.read();
        let shown = shown.unwrap_or_else(PoisonError::into_inner);
        if shown.contains(experiment) {
            self.exposures_total
                .with_label_values(&[experiment, variation])
                .inc();
        }
    }

    /// Removes the series of all experiments but these, and lets these have series.
    pub fn show_experiments(&self, running: BTreeSet<String>) {
        let shown = self.shown_experiments.write();
        let mut shown = shown.unwrap_or_else(PoisonError::into_inner);
        for ended in shown.difference(&running) {
            remove_series(&self.exposures_total, "experiment", ended);
        }
        *shown = running;
    }

    pub fn set_active_policy(&self, policy: &PolicyRef, digest: Digest) {
        self.policy_active_info.reset();
        let labels = [
            policy.name.as_str(),
            &policy.version.to_string(),
            &digest.to_string(),
        ];
        self.policy_active_info.with_label_values(&labels).set(1);
    }

    pub fn set_audit_head(&self, revision: i64, head: Digest) {
        self.audit_head_info.reset();
        let head = head.to_string();
        self.audit_head_info
            .with_label_values(&[head.as_str()])
            .set(revision);
    }

    pub fn observe_store(&self, store: &str, query: &str, took: Duration, ok: bool) {
        let status = if ok { "ok" } else { "error" };
        self.store_queries_total
            .with_label_values(&[store, query, status])
            .inc();
        self.store_duration_seconds
            .with_label_values(&[store, query])
            .observe(took.as_secs_f64());
        if took > Duration::from_millis(500) {
            self.store_slow_queries_total
                .with_label_values(&[store, query])
                .inc();
            tracing::warn!(
                store,
                query,
                took_ms = took.as_millis() as u64,
                "a store query took more than 500 ms"
            );
        }
    }
}

/// Removes the series whose label has this value.
fn remove_series<T: MetricVecBuilder>(metrics: &MetricVec<T>, label: &str, value: &str) {
    for family in metrics.collect() {
        for metric in family.get_metric() {
            let labels = metric.get_label().iter();
            let labels: HashMap<&str, &str> =
                labels.map(|pair| (pair.name(), pair.value())).collect();
            if labels.get(label) == Some(&value) {
                // Another thread may have removed it at the same time.
                let _ = metrics.remove(&labels);
            }
        }
    }
}

/// The metrics of one policy, looked up once, because looking up labels costs more than
/// counting. They exist only while the policy is in use, so that a name which was uploaded and
/// never used, or used long ago, takes no place in an answer of `/metrics`.
#[derive(Debug)]
pub struct PolicyMetrics {
    policy: String,
    series: RwLock<Option<[StageMetrics; 3]>>,
}

#[derive(Debug)]
struct StageMetrics {
    ok: IntCounter,
    duration_seconds: Histogram,
}

impl PolicyMetrics {
    /// Returns the metrics of a policy without series. Nothing is counted until they are shown.
    pub fn new(policy: &str) -> Self {
        Self {
            policy: policy.to_owned(),
            series: RwLock::default(),
        }
    }

    /// Gives the policy its series.
    pub fn show(&self) {
        let mut series = self.series.write().unwrap_or_else(PoisonError::into_inner);
        if series.is_some() {
            return;
        }
        let policy = self.policy.as_str();
        *series = Some(Stage::ALL.map(|stage| {
            StageMetrics {
                ok: METRICS
                    .policy_calls_total
                    .with_label_values(&[policy, stage.as_str(), "ok"]),
                duration_seconds: METRICS
                    .policy_duration_seconds
                    .with_label_values(&[policy, stage.as_str()]),
            }
        }));
    }

    /// Stops counting. When this returns, no call makes a new series.
    pub fn hide(&self) {
        *self.series.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub fn observe(&self, stage: Stage, took: Duration, failure: Option<FailureKind>) {
        let series = self.series.read().unwrap_or_else(PoisonError::into_inner);
        let Some(stages) = &*series else {
            return;
        };
        let metrics = &stages[stage as usize];
        metrics.duration_seconds.observe(took.as_secs_f64());
        match failure {
            None => metrics.ok.inc(),
            Some(kind) => {
                METRICS
                    .policy_calls_total
                    .with_label_values(&[&self.policy, stage.as_str(), kind.as_str()])
                    .inc();
            }
        }
    }

    /// Counts a run in shadow.
    pub fn observe_shadow(&self, outcome: &str) {
        let series = self.series.read().unwrap_or_else(PoisonError::into_inner);
        if series.is_some() {
            METRICS
                .shadow_runs_total
                .with_label_values(&[self.policy.as_str(), outcome])
                .inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_series(policy: &str) -> bool {
        METRICS.render().contains(&format!("policy=\"{policy}\""))
    }

    #[test]
    fn the_series_of_a_policy_exist_only_while_it_is_in_use() {
        let name = "series@1.0.0";
        let metrics = PolicyMetrics::new(name);
        let count = || {
            metrics.observe(Stage::Score, Duration::ZERO, None);
            metrics.observe(Stage::Dedup, Duration::ZERO, Some(FailureKind::Trap));
            metrics.observe_shadow("ok");
        };
        count();
        assert!(!has_series(name), "it was only uploaded");
        metrics.show();
        count();
        assert!(has_series(name));
        metrics.hide();
        METRICS.forget_policy(name);
        count();
        assert!(!has_series(name), "it is not in use any more");
    }

    #[test]
    fn the_series_of_an_experiment_exist_only_while_it_runs() {
        let count = || METRICS.observe_exposure("series", "a");
        let is_shown = || METRICS.render().contains("experiment=\"series\"");
        count();
        assert!(!is_shown());
        METRICS.show_experiments(BTreeSet::from(["series".to_owned()]));
        count();
        assert!(is_shown());
        METRICS.show_experiments(BTreeSet::new());
        count();
        assert!(!is_shown());
    }
}
