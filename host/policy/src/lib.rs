//! Policies as WebAssembly: how they are submitted (`files`, `builtin`, `bundled`, `signature`),
//! admitted (`admission`, `worker`, `reason`) and measured (`bench`, `meter`), compiled (`compiler`,
//! `compile_cache`, `sealed`), run (`shape`, `class`, `class_engine`, `engine`, `settings`,
//! `memory`, `module`, `loaded`, `native`, `pool`, `bulkhead`, `sandbox`, `bindings`, `ranking`,
//! `explain`), compared (`compare`) and built from sources (`project`, `toolchain`).
//!
//! Nothing here knows viewers, stores or HTTP. wasmtime is a dependency of this crate alone.

pub mod admission;
pub mod bench;
pub mod bindings;
pub mod builtin;
pub mod bulkhead;
pub mod bundled;
pub mod class;
mod class_engine;
pub mod compare;
pub mod compile_cache;
pub mod compiler;
pub mod engine;
pub mod explain;
pub mod files;
pub mod loaded;
pub mod memory;
pub mod meter;
pub mod module;
pub mod native;
pub mod pool;
pub mod project;
pub mod ranking;
pub mod reason;
pub mod sandbox;
pub mod sealed;
pub mod settings;
pub mod shape;
pub mod signature;
pub mod toolchain;
pub mod worker;

/// Directory with the components that the build script made: `policies/` and, for tests, `guests/`.
pub const COMPONENTS_DIR: &str = env!("NOVA_COMPONENTS_DIR");
