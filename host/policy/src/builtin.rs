//! The policies compiled into the binary, so that a host with an empty disk can rank.

use super::files::PolicyFiles;
use std::collections::BTreeMap;

macro_rules! component {
    ($file:literal) => {
        include_bytes!(concat!(env!("NOVA_COMPONENTS_DIR"), "/policies/", $file))
    };
}

/// Modules that `builtin:` references name, with their bytes in this binary.
const MODULES: [(&str, &[u8]); 3] = [
    ("seen-dedup", component!("seen_dedup.wasm")),
    ("weighted-scorer", component!("weighted_scorer.wasm")),
    ("author-saturation", component!("author_saturation.wasm")),
];

/// Modules that only a bundled recipe uses, by file name.
const RECIPE_FILES: [(&str, &[u8]); 2] = [
    ("timeline_scorer.wasm", component!("timeline_scorer.wasm")),
    ("decay_saturation.wasm", component!("decay_saturation.wasm")),
];

const RECIPES: [&str; 3] = [
    include_str!("../../../policies/recipes/baseline/policy.toml"),
    include_str!("../../../policies/recipes/timeline/policy.toml"),
    include_str!("../../../policies/recipes/decay-diversity/policy.toml"),
];

pub fn module(name: &str) -> Option<&'static [u8]> {
    MODULES
        .iter()
        .find(|(builtin, _)| *builtin == name)
        .map(|(_, bytes)| *bytes)
}

/// Reports if this binary bundles a module of these bytes.
pub fn contains(bytes: &[u8]) -> bool {
    let mut bundled = MODULES.iter().chain(&RECIPE_FILES);
    bundled.any(|(_, bundled)| *bundled == bytes)
}

pub fn module_names() -> impl Iterator<Item = &'static str> {
    MODULES.iter().map(|(name, _)| *name)
}

/// Returns the bundled recipes, `baseline` first.
pub fn recipes() -> impl Iterator<Item = PolicyFiles> {
    RECIPES.into_iter().map(|manifest| PolicyFiles {
        manifest: manifest.to_owned(),
        modules: RECIPE_FILES
            .iter()
            .filter(|(file, _)| manifest.contains(file))
            .map(|(file, bytes)| ((*file).to_owned(), bytes.to_vec()))
            .collect::<BTreeMap<_, _>>(),
    })
}
