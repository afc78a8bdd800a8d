//! The integration test binary, which runs against the real `nova` program. Each test starts its
//! own host on a free port with its own data directory, and stops that host by its process id.

#![expect(
    clippy::disallowed_methods,
    reason = "tests wait for the program and use the clock of this machine"
)]
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod admission;
mod admission_limits;
mod audit;
mod auth;
mod author_loop;
mod bulkheads;
mod config;
mod discover;
mod events;
mod experiments;
mod explain;
mod fault_proxy;
mod feed;
mod harness;
mod hostile;
mod hostile_requests;
mod import_command;
mod languages;
mod lifecycle;
mod output;
mod recipes;
mod recovery;
mod registry;
mod replay;
mod requests;
mod senders;
#[path = "../shared/services.rs"]
mod services;
mod shadow;
mod stack;
mod swap;
mod watch;
mod watch_crate;
