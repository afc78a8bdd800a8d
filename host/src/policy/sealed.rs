//! Compiled code that this host wrote itself, and the only place that believes in it.
//!
//! `Component::deserialize` runs what it is given: wasmtime checks that the file was made by the same
//! engine, not that its machine code is harmless. So bytes get there only if their HMAC-SHA256 is
//! right under a key that this host made and keeps readable for its owner alone. The tag also covers
//! what the code was compiled from and for, so one file cannot stand in for another. The bytes that
//! were checked are those that are loaded: they are in memory by then, and no change of the file
//! reaches them.
#![expect(
    unsafe_code,
    reason = "loading compiled code is unsafe; the one call is here, behind the check of its tag"
)]

use super::artifact::Digest;
use aws_lc_rs::hmac;
use wasmtime::Engine;
use wasmtime::component::Component;

const TAG_BYTES: usize = 32;

/// What a file of compiled code is the translation of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub module: Digest,
    /// Of the engine: its version, its settings, the processor's features.
    pub engine_hash: u64,
}

#[derive(Debug)]
pub struct Seal(hmac::Key);

/// Not written by this host for this purpose.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tag is wrong")]
pub struct NotOurs;

impl Seal {
    pub fn new(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// The tag, and the compiled code after it.
    pub fn close(&self, origin: Origin, code: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(TAG_BYTES + code.len());
        sealed.extend_from_slice(self.tag(origin, code).as_ref());
        sealed.extend_from_slice(code);
        sealed
    }

    /// `None` inside: it is ours, but this engine will not have it.
    ///
    /// # Errors
    /// When anybody else wrote or changed it.
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
        // SAFETY: `code` is what `Component::serialize` returned to whoever holds the key, which is
        // this host alone: the tag over it was just found right, and it cannot change any more.
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
