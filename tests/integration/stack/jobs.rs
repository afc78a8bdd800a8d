//! Periodic jobs on two hosts of one stack: each job runs on only one of them.

use crate::harness::{Community, Host, eventually};
use crate::services::Stack;
use chrono::{Timelike as _, Utc};
use std::time::{Duration, Instant};

/// Time limit for the first runs, which come a minute after the start.
const RUN_WITHIN: Duration = Duration::from_secs(180);
/// Longest delay with which a host may check its schedule.
const LATENESS: Duration = Duration::from_secs(5);

/// Returns the number of runs of a job on each host.
async fn runs(hosts: &[Host], job: &str) -> Vec<f64> {
    let series = format!("nova_feed_job_runs_total{{job=\"{job}\",outcome=\"ok\"}}");
    futures::future::join_all(hosts.iter().map(|host| host.metric(&series))).await
}

/// Asserts that a job runs on only one host. `apart` is the time between the starts of the
/// hosts, and so between their runs.
async fn assert_one_host_runs(hosts: &[Host], job: &str, apart: Duration) {
    eventually(RUN_WITHIN, job, async || {
        runs(hosts, job).await.iter().sum::<f64>() > 0.0
    })
    .await;
    tokio::time::sleep(apart + LATENESS).await;
    let runs = runs(hosts, job).await;
    assert!(runs.contains(&0.0), "{job}: {runs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_job_runs_on_one_host_of_two_and_active_viewers_are_kept_warm() {
    let Some(stack) = Stack::migrated().await else {
        return;
    };
    let setup = || {
        Host::setup()
            .stack(&stack)
            .variable("NOVA_CANDIDATES_TTL_S", "60")
    };
    let is_past_one = || Utc::now().hour() >= 1;
    let report_was_due = is_past_one();
    let first = setup().community(Community::small()).start();
    let first_started = Instant::now();
    let hosts = [first, setup().start()];
    let apart = first_started.elapsed();
    assert_eq!(hosts[0].feed(7).await["cache_hit"], false);
    assert_one_host_runs(&hosts, "trending", apart).await;
    assert_one_host_runs(&hosts, "warming", apart).await;
    if report_was_due && is_past_one() {
        assert_one_host_runs(&hosts, "daily_report", apart).await;
    }
    let cache = hosts[1].operator().get("/debug/user/7/feed/cache").await;
    let age_s = cache["candidates"]["age_s"].as_f64();
    // Candidates that the feed itself had cached would be as old as the hosts, and would have
    // expired.
    assert!(age_s.is_some_and(|age_s| age_s < 45.0), "{cache}");
}
