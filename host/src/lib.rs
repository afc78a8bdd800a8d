//! Nova, a feed-ranking host. `feed` serves a request from first to last; `events` takes in the
//! viewers' actions; `http` has the routes, `commands` the command line, `jobs` the periodic work.
//! Policies, stores and the control plane are crates of their own; docs/architecture.md shows the
//! layers.

pub mod app;
pub mod cdc;
pub mod commands;
pub mod config;
pub mod daily;
pub mod discover;
pub mod events;
pub mod experiments;
pub mod feed;
mod flights;
pub mod host;
pub mod http;
pub mod jobs;
pub mod logging;
mod memory_limit;
pub mod replay;
pub mod request_id;
pub mod secret;
pub mod stop;
pub mod store_set;
pub mod wiring;
