//! The control plane of one host: loading of policies (`loader`), changes without the registry
//! (`offline`), changes and which policies serve (`deploy`), who gets which (`routing`), what a
//! host keeps for a start without the registry (`last_good`), what it remembers of the audit log
//! (`audit_watch`), and policies published by copying a
//! directory (`watcher`).

pub mod audit_watch;
pub mod deploy;
pub mod last_good;
mod loader;
pub mod offline;
pub mod routing;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod signature_tests;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod testing;
pub mod watcher;
