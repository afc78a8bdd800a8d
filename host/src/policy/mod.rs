//! Policies, independent of viewers, stores and HTTP. Each concern has its own modules:
//!
//! - definition: `artifact`, `features`, `builtin`
//! - admission: `admission`
//! - measurement: `bench`, `meter`
//! - compilation: `compiler`, `compile_cache`, `sealed`
//! - execution: `shape`, `class`, `engine`, `module`, `loaded`, `pool`, `sandbox`, `bindings`,
//!   `ranking`, `native`
//! - explanation: `explain`
//! - comparison: `compare`
//! - storage: `registry`, `last_good`, `local`, `kept`
//! - audit log: `audit`
//! - state transitions and failure limits: `lifecycle`, `budget`
//! - deployment and the watched directory: `deploy`, `watcher`
//! - building from source: `project`, `toolchain`

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
