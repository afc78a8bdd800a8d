//! Stored daily metrics, in `tests/fixtures/formats`.

use super::*;
use crate::discover::format_tests::{read, stored};

fn assert_ratios(found: &Ratios) {
    assert_eq!(found.ctr, Some(0.25));
    assert_eq!(found.dwell_p50, Some(1_200.0));
    assert_eq!(found.dwell_p95, None);
    assert_eq!(found.recommendation_ctr, None);
    assert_eq!(found.dedup_rate, Some(1.0));
    assert_eq!(found.system_health, Some(0.5));
}

#[tokio::test]
async fn stored_daily_metrics_are_read() {
    let found: DailyMetrics = read(stored!("daily_metrics.bin")).await;
    assert_eq!(found.date, NaiveDate::from_ymd_opt(2026, 1, 31).unwrap());
    assert_ratios(&found.all);
    let [policy] = found.by_policy.as_slice() else {
        panic!("{found:?}");
    };
    let digest = "6927e9da53a9aacd22158387d479221f4088de7ca63506260486b51ef40597ea";
    assert_eq!(policy.digest, digest);
    assert_ratios(&policy.ratios);
}
