//! The path of an event after it was accepted: out of the spool (`nova_stores::spool`) and on
//! (`drain`). In embedded mode the drain writes the aggregates. In the real stack it writes to the
//! broker, and the `consumer` behind the broker decides which events are duplicates.
//!
//! An accepted impression or view is in the viewer's seen set before the response is sent.

pub mod consumer;
pub mod drain;
