//! Change data capture: PostgreSQL → Debezium → Kafka → ClickHouse, and what a change means for cached feeds.
//!
//! `envelope` reads Debezium's messages, `change` says what they are to the store, `invalidation` what they overtake,
//! `consumer` does both in order, and `validate` compares the two databases. `ops/debezium` configures the capture.

pub mod change;
pub mod consumer;
pub mod envelope;
pub mod invalidation;
pub mod validate;
