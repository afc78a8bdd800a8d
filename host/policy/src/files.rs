//! A policy as its author submits it.

use std::collections::BTreeMap;

/// A policy as submitted: the text of the manifest, and the other files by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyFiles {
    pub manifest: String,
    pub modules: BTreeMap<String, Vec<u8>>,
}
