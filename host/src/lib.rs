//! Nova, a feed-ranking host. The modules follow a request: `http` → `feed` → `policy`, with
//! `stores` below and `app` holding the shared state. `events` takes in the viewers' actions.

pub mod app;
pub mod cdc;
pub mod commands;
pub mod config;
pub mod daily;
pub mod discover;
pub mod events;
pub mod experiments;
pub mod feed;
pub mod host;
pub mod http;
pub mod jobs;
pub mod logging;
pub mod replay;
pub mod request_id;
pub mod secret;
pub mod store_set;
pub mod wiring;
