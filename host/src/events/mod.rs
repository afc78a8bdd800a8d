//! The event story: validate → make durable (`spool`) → 202 → hand on (`drain`), to the aggregates when embedded,
//! else to the broker, behind which the `consumer` decides what counts.
//!
//! An accepted impression or view is in the viewer's seen set before the answer leaves.

pub mod consumer;
pub mod drain;
pub mod event;
pub mod spool;
