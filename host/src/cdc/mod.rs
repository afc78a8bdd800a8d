//! Change data capture: PostgreSQL → Debezium → Kafka → ClickHouse, and the invalidation of cached
//! feeds.
//!
//! `envelope` decodes Debezium's messages, `rows` has the rows in them, `change` converts them to
//! ClickHouse rows, `invalidation` finds the cache entries that they make stale, and `consumer`
//! stores the rows and then invalidates. `validate` compares the two databases. `ops/debezium`
//! configures the capture.

pub mod change;
pub mod consumer;
pub mod envelope;
pub mod invalidation;
pub mod rows;
pub mod validate;
