//! Tests on the real stack: PostgreSQL, Redis, Kafka and ClickHouse. If the servers are missing,
//! each test prints that it was skipped; with `NOVA_REQUIRE_SERVICES=1` it fails instead.

mod at_once;
mod cdc;
mod conformance;
mod events;
mod faults;
mod fleet;
mod jobs;
mod kafka;
mod ledger;
mod postgres;
mod redis_faults;
mod withdrawals;
