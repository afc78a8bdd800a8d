//! Policies: what they are (`artifact`), how they are admitted (`admission`) and measured (`bench`, `meter`),
//! compiled (`compiler`, `compile_cache`, `sealed`), run (`shape`, `class`, `engine`, `module`, `loaded`, `pool`,
//! `sandbox`, `bindings`, `ranking`), compared (`compare`), kept (`registry`), what may become of them (`lifecycle`,
//! `budget`) and how they are swapped (`deploy`, `watcher`).
//!
//! Nothing here knows viewers, stores or HTTP.

pub mod admission;
pub mod artifact;
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
pub mod last_good;
pub mod lifecycle;
pub mod loaded;
pub mod meter;
pub mod module;
pub mod native;
pub mod pool;
pub mod ranking;
pub mod registry;
pub mod sandbox;
pub mod sealed;
pub mod shape;
pub mod toolchain;
pub mod watcher;

pub use artifact::{Digest, PolicyRef, Stage};
