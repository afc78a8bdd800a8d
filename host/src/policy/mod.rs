//! Policies: what they are (`artifact`), how they are admitted (`admission`), run (`class`, `shape`, `engine`, `module`, `loaded`, `pool`,
//! `sandbox`, `bindings`, `ranking`), kept (`registry`) and swapped (`deploy`, `watcher`).
//!
//! Nothing here knows viewers, stores or HTTP.

pub mod admission;
pub mod artifact;
pub mod bindings;
pub mod builtin;
pub mod class;
pub mod deploy;
pub mod engine;
pub mod explain;
pub mod failure;
pub mod features;
pub mod last_good;
pub mod loaded;
pub mod module;
pub mod native;
pub mod pool;
pub mod project;
pub mod ranking;
pub mod registry;
pub mod sandbox;
pub mod shape;
pub mod toolchain;
pub mod watcher;

pub use artifact::{Digest, PolicyRef, Stage};
