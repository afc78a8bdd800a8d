//! Nova, a feed-ranking host. The modules follow a request: `http` → `feed` → `policy`, with
//! `stores` below and `app` holding the shared state. `events` takes in the viewers' actions.

pub mod app;
pub mod cdc;
pub mod clock;
pub mod commands;
pub mod config;
pub mod daily;
pub mod discover;
pub mod error;
pub mod events;
pub mod experiments;
pub mod failpoint;
pub mod feed;
pub mod host;
pub mod http;
pub mod import;
pub mod jobs;
pub mod logging;
pub mod metrics;
pub mod policy;
pub mod replay;
pub mod secret;
pub mod stores;
pub mod wiring;
