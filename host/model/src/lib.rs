//! The data of Nova and its pure rules. Nothing here does I/O or reads a clock; time is passed in.

pub mod artifact;
pub mod audit;
pub mod budget;
pub mod captured;
pub mod daily;
pub mod deleted;
pub mod event;
pub mod experiments;
pub mod exposure;
pub mod failure;
pub mod features;
pub mod lifecycle;
pub mod local_change;
pub mod measured;
pub mod post;
pub mod registry;
pub mod snapshot;
pub mod time;
pub mod user;
