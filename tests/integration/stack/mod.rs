//! The real stack: PostgreSQL, Redis, Kafka and ClickHouse. Where the servers are missing each test says that it was
//! not run; with `NOVA_REQUIRE_SERVICES=1` that is a failure.

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
