//! The data of Nova and its pure rules. Nothing here does I/O or reads a clock; time is passed in.

pub mod artifact;
pub mod audit;
pub mod budget;
pub mod cdc;
pub mod daily;
pub mod deleted;
pub mod event;
pub mod experiments;
pub mod exposure;
pub mod failure;
pub mod features;
pub mod invalid_field;
pub mod lifecycle;
pub mod local_change;
pub mod measured;
pub mod post;
pub mod quarantine;
pub mod reconcile;
pub mod registry;
pub mod slowness;
pub mod snapshot;
pub mod time;
pub mod user;
