//! The control plane of one host: which policies serve (`deploy`), who gets which (`routing`), what
//! a host keeps for a start without the registry (`last_good`) and does without it
//! (`local_changes`), and policies published by copying a directory (`watcher`).

pub mod deploy;
pub mod last_good;
pub mod local_changes;
pub mod routing;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod signature_tests;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod testing;
pub mod watcher;
