//! The real stack: PostgreSQL, Redis, Kafka and ClickHouse. Where the servers are missing each test says that it was
//! not run; with `NOVA_REQUIRE_SERVICES=1` that is a failure.

mod conformance;
mod kafka;
mod ledger;
mod redis_faults;
