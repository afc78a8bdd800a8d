//! Policies: what they are (`artifact`), how they are admitted (`admission`) and measured (`bench`, `meter`),
//! compiled (`compiler`, `compile_cache`, `sealed`), run (`shape`, `class`, `engine`, `module`, `loaded`, `pool`,
//! `sandbox`, `bindings`, `ranking`), compared (`compare`), kept (`registry`, `last_good`, `local`, `kept`) and audited
//! (`audit`), what may become of them (`lifecycle`, `budget`) and how they are swapped (`deploy`, `watcher`).
//!
//! Nothing here knows viewers, stores or HTTP.

pub mod admission;
pub mod artifact;
pub mod audit;
pub mod bench;
pub mod bindings;
pub mod budget;
pub mod builtin;
pub mod class;
pub mod compare;
pub mod compile_cache;
pub mod compiler;
pub mod deploy;
pub mod engine;
pub mod explain;
pub mod failure;
pub mod features;
pub mod kept;
pub mod last_good;
pub mod lifecycle;
pub mod loaded;
pub mod local;
pub mod meter;
pub mod module;
pub mod native;
pub mod pool;
pub mod project;
pub mod ranking;
pub mod registry;
pub mod sandbox;
pub mod sealed;
pub mod shape;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
pub mod testing;
pub mod toolchain;
pub mod watcher;

pub use artifact::{Digest, PolicyRef, Stage};
