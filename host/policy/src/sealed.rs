//! Authentication of compiled code that this host stored itself, and the only place that loads it
//! as trusted code.
//!
//! `Component::deserialize` runs the code it is given: wasmtime checks that the file was made by
//! the same engine, not that its machine code is harmless. So bytes reach it only if their
//! HMAC-SHA256 is correct under a key that this host created and that only its owner can read.
//! The tag also covers the module and the engine of the code, so one file cannot replace another.
//! The checked bytes are the loaded bytes: they are in memory by then, so a later change of the
//! file has no effect.
#![expect(
    unsafe_code,
    reason = "loading compiled code is unsafe; the only call is in this module, after its tag was checked"
)]

use anyhow::Context as _;
use aws_lc_rs::hmac;
use nova_model::artifact::Digest;
use nova_support::secret_key::SecretKey;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use wasmtime::Engine;
use wasmtime::component::Component;

const TAG_BYTES: usize = 32;

/// The module and the engine that a file of compiled code belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub module: Digest,
    /// Hash of the engine's version, its settings and the processor's features.
    pub engine_hash: u64,
}

impl Origin {
    pub fn of(engine: &Engine, module: Digest) -> Self {
        Self {
            module,
            engine_hash: hash_of(engine),
        }
    }
}

/// Returns the hash that names an engine's directory. It need not be cryptographic, because an
/// engine checks again that loaded code is compatible with it. If another toolchain hashes
/// differently, it finds no code and compiles.
pub fn hash_of(engine: &Engine) -> u64 {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.finish()
}

#[derive(Debug)]
pub struct Seal(hmac::Key);

/// The bytes were not sealed by this host for this module and engine.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the authentication tag does not match")]
pub struct NotOurs;

impl Seal {
    pub fn new(key: &SecretKey) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()))
    }

    /// Creates a seal that ends with this process, for commands without a data directory.
    ///
    /// # Errors
    /// Fails if the system has no randomness.
    pub fn for_this_process() -> anyhow::Result<Self> {
        let mut key = [0; TAG_BYTES];
        aws_lc_rs::rand::fill(&mut key)
            .ok()
            .context("no random key")?;
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// Loads code that a child process of this program compiled for this host. The host trusts
    /// the child as it trusts its own compiler: the child is the same program, it sent the code
    /// over a pipe that nobody else has, and it did so before any code of a policy ran in it.
    ///
    /// # Errors
    /// Fails if the engine rejects the code.
    pub fn adopt(&self, engine: &Engine, module: Digest, code: &[u8]) -> anyhow::Result<Component> {
        let origin = Origin::of(engine, module);
        let component = self.open(engine, origin, &self.close(origin, code))?;
        component.context("the compiled code does not fit this engine")
    }

    /// Returns the tag followed by the compiled code.
    pub fn close(&self, origin: Origin, code: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(TAG_BYTES + code.len());
        sealed.extend_from_slice(self.tag(origin, code).as_ref());
        sealed.extend_from_slice(code);
        sealed
    }

    /// Checks the tag and loads the code. Returns `Ok(None)` if the tag is correct but this
    /// engine rejects the code.
    ///
    /// # Errors
    /// Fails if the bytes were written or changed by anything other than this host.
    pub fn open(
        &self,
        engine: &Engine,
        origin: Origin,
        sealed: &[u8],
    ) -> Result<Option<Component>, NotOurs> {
        let (tag, code) = sealed.split_at_checked(TAG_BYTES).ok_or(NotOurs)?;
        let expected = self.tag(origin, code);
        aws_lc_rs::constant_time::verify_slices_are_equal(tag, expected.as_ref())
            .map_err(|_| NotOurs)?;
        // SAFETY: `code` is what `Component::serialize` returned to the holder of the key, which
        // is this host alone, or to a child of it that had run no policy yet (`adopt`): its tag
        // was verified just above, and the bytes cannot change any more.
        Ok(unsafe { Component::deserialize(engine, code) }.ok())
    }

    fn tag(&self, origin: Origin, code: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(b"nova compiled policy v1");
        context.update(origin.module.as_bytes());
        context.update(&origin.engine_hash.to_be_bytes());
        context.update(code);
        context.sign()
    }
}
