//! Validation of the captured data: compares PostgreSQL with ClickHouse by the rows and
//! checksums of each day of creation, and measures how far the copy is behind.
//!
//! Each database computes its own sums, so that only one number per day is transferred. A sum
//! of hashes does not depend on the order. The hash is MD5, which both databases have,
//! truncated to the 60 bits that fit PostgreSQL's signed numbers. Sums wrap around at 2^64.

use super::consumer::{GROUP, topic_of};
use nova_model::cdc::{Bucket, Table};
use nova_stores::clickhouse::ClickHouseStore;
use nova_stores::kafka::KafkaSettings;
use nova_stores::kafka::lag::{Behind, behind};
use nova_stores::postgres::checksums::Checksums;
use nova_support::clock::unix_ms;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_secs(1);
/// Maximum time that a change may be in flight without being visible anywhere.
const IN_FLIGHT_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub tables: Vec<TableReport>,
    /// Bytes of log that Debezium has not confirmed; null without a replication slot.
    pub slot_lag_bytes: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TableReport {
    pub table: &'static str,
    pub state: State,
    pub postgres_rows: u64,
    pub clickhouse_rows: u64,
    /// Days on which rows or checksums differ, `YYYY-MM-DD`; at most ten of them.
    pub differing_days: Vec<String>,
    /// Changes that wait in the topic.
    pub lag_messages: u64,
    pub lag_seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Equal,
    /// The tables differ, but changes in flight may explain it.
    Behind,
    Different,
}

impl Report {
    pub fn passes(&self) -> bool {
        self.tables
            .iter()
            .all(|table| table.state != State::Different)
    }
}

/// Time since which each day of a table is unchanged. The two databases are read one after the
/// other, and a change in flight between them must not count as a difference.
#[derive(Default)]
struct Still {
    since: BTreeMap<i64, (Bucket, Instant)>,
    /// Times of the first and the last read.
    looks: Option<(Instant, Instant)>,
}

impl Still {
    fn look(&mut self, buckets: &[Bucket], now: Instant) {
        let first = self.looks.map_or(now, |(first, _)| first);
        self.looks = Some((first, now));
        self.since
            .retain(|day, _| buckets.iter().any(|bucket| bucket.day == *day));
        for bucket in buckets {
            let known = self.since.entry(bucket.day).or_insert((*bucket, now));
            if known.0 != *bucket {
                *known = (*bucket, now);
            }
        }
    }

    fn watched(&self) -> Duration {
        self.looks
            .map_or(Duration::ZERO, |(first, last)| last.duration_since(first))
    }

    /// Returns the time for which a day was unchanged. A day without rows was unchanged for the
    /// whole time of observation.
    fn since(&self, day: i64) -> Duration {
        match (self.since.get(&day), self.looks) {
            (Some((_, since)), Some((_, last))) => last.duration_since(*since),
            _ => self.watched(),
        }
    }
}

/// Connections and settings of one comparison.
#[derive(Debug)]
pub struct Validation {
    pub postgres: Checksums,
    pub clickhouse: ClickHouseStore,
    pub kafka: KafkaSettings,
    pub slot: String,
    /// Time for which a difference may still vanish before it is reported.
    pub wait_max: Duration,
}

impl Validation {
    /// # Errors
    /// If one of the databases or the broker does not answer.
    pub async fn run(mut self) -> anyhow::Result<Report> {
        let mut tables = Vec::new();
        for table in Table::ALL {
            tables.push(self.table(table).await?);
        }
        let slot_lag_bytes = self.postgres.slot_lag_bytes(&self.slot).await?;
        // The log is written to all the time, so only a slot far behind shows that changes are
        // in flight.
        if slot_lag_bytes.is_some_and(|bytes| bytes > SLOT_AT_REST_BYTES) {
            for table in &mut tables {
                if table.state == State::Different {
                    table.state = State::Behind;
                }
            }
        }
        self.postgres.close().await;
        Ok(Report {
            tables,
            slot_lag_bytes,
        })
    }

    async fn table(&mut self, table: Table) -> anyhow::Result<TableReport> {
        let until = Instant::now() + self.wait_max;
        let mut still = Still::default();
        loop {
            let postgres = self.postgres.table(table).await?;
            still.look(&postgres, Instant::now());
            let clickhouse = self.clickhouse.cdc_checksums(table).await?;
            let behind = self.behind(table).await?;
            let settled = self.wait_max.min(IN_FLIGHT_MAX);
            let is_still = |day| still.since(day) >= settled;
            let report = compare(table, &postgres, &clickhouse, behind, is_still, unix_ms());
            // One read cannot distinguish a moving day from a different one.
            let looked_long = still.watched() >= settled;
            if report.state == State::Equal || (looked_long && Instant::now() >= until) {
                return Ok(report);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn behind(&self, table: Table) -> anyhow::Result<Behind> {
        let (settings, topic) = (self.kafka.clone(), self.kafka.topic(topic_of(table)));
        tokio::task::spawn_blocking(move || behind(&settings, GROUP, &topic)).await?
    }
}

/// Slot lag that is normal at rest. Debezium confirms every few seconds, at the latest with its
/// heartbeat.
const SLOT_AT_REST_BYTES: i64 = 16 << 20;
const DAYS_SHOWN: usize = 10;

fn compare(
    table: Table,
    postgres: &[Bucket],
    clickhouse: &[Bucket],
    behind: Behind,
    is_still: impl Fn(i64) -> bool,
    now_ms: u64,
) -> TableReport {
    let by_day = |buckets: &[Bucket]| -> BTreeMap<i64, (u64, u64)> {
        let entry = |bucket: &Bucket| (bucket.day, (bucket.rows, bucket.sum));
        buckets.iter().map(entry).collect()
    };
    let (here, there) = (by_day(postgres), by_day(clickhouse));
    let mut days: Vec<i64> = here
        .keys()
        .chain(there.keys())
        .copied()
        .filter(|day| here.get(day) != there.get(day))
        .collect();
    days.sort_unstable();
    days.dedup();
    // Every waiting change affects one day, or two if it moves a row.
    let still = days.iter().filter(|day| is_still(**day)).count() as u64;
    let explained = still <= 2 * behind.messages;
    let state = match (days.is_empty(), explained) {
        (true, _) => State::Equal,
        (false, true) => State::Behind,
        (false, false) => State::Different,
    };
    let rows = |buckets: &[Bucket]| buckets.iter().map(|bucket| bucket.rows).sum();
    let waited_ms = |at_ms: u64| now_ms.saturating_sub(at_ms);
    TableReport {
        table: table.name(),
        state,
        postgres_rows: rows(postgres),
        clickhouse_rows: rows(clickhouse),
        differing_days: days.into_iter().take(DAYS_SHOWN).map(date).collect(),
        lag_messages: behind.messages,
        lag_seconds: behind
            .oldest_ms
            .map_or(0.0, |at| waited_ms(at) as f64 / 1_000.0),
    }
}

fn date(day: i64) -> String {
    let at = chrono::DateTime::from_timestamp(day * 86_400, 0).unwrap_or_default();
    at.format("%Y-%m-%d").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(day: i64, rows: u64, sum: u64) -> Bucket {
        Bucket { day, rows, sum }
    }

    fn compared(here: &[Bucket], there: &[Bucket], messages: u64) -> TableReport {
        let behind = Behind {
            messages,
            oldest_ms: (messages > 0).then_some(1_000),
        };
        compare(Table::Posts, here, there, behind, |_| true, 3_500)
    }

    #[test]
    fn a_day_that_changes_during_the_comparison_is_not_reported_as_different() {
        let (here, began) = ([day(0, 2, 9), day(1, 1, 1)], Instant::now());
        let mut still = Still::default();
        still.look(&[day(0, 1, 3), day(1, 1, 1)], began);
        still.look(&here, began + Duration::from_secs(6));
        let there = [day(0, 1, 3), day(1, 1, 1)];
        let behind = Behind::default();
        let is_still = |day| still.since(day) >= Duration::from_secs(5);
        let report = compare(Table::Posts, &here, &there, behind, is_still, 0);
        assert_eq!(report.state, State::Behind);
        let report = compare(Table::Posts, &here, &there[..1], behind, is_still, 0);
        assert_eq!(
            report.state,
            State::Different,
            "the other day did not change"
        );
    }

    #[test]
    fn equal_days_are_equal_in_any_order() {
        let report = compared(
            &[day(1, 2, 9), day(2, 1, 5)],
            &[day(2, 1, 5), day(1, 2, 9)],
            0,
        );
        assert_eq!((report.state, report.postgres_rows), (State::Equal, 3));
    }

    #[test]
    fn equal_row_counts_with_different_checksums_are_a_difference_and_name_the_day() {
        let report = compared(&[day(0, 2, 9)], &[day(0, 2, 8)], 0);
        assert_eq!(report.state, State::Different);
        assert_eq!(report.differing_days, ["1970-01-01"]);
    }

    #[test]
    fn waiting_changes_explain_only_as_many_different_days_as_they_can_affect() {
        let (here, there) = ([day(0, 1, 1), day(1, 1, 1), day(2, 1, 1)], []);
        assert_eq!(compared(&here, &there, 2).state, State::Behind);
        assert_eq!(compared(&here, &there, 1).state, State::Different);
        assert!((compared(&here, &there, 2).lag_seconds - 2.5).abs() < f64::EPSILON);
    }
}
