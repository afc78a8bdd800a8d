//! The event story: validate → make durable (`spool`) → 202 → count (`consumer`).
//!
//! An accepted impression or view is in the viewer's seen set before the answer leaves.

pub mod consumer;
pub mod event;
pub mod spool;
