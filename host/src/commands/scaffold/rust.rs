//! Template files of a new Rust policy.

use super::Files;
use nova_model::artifact::Stage;

macro_rules! sdk {
    ($($file:literal),+ $(,)?) => {
        &[$((concat!("sdk/", $file), include_str!(concat!("../../../../policies/sdk/", $file)))),+]
    };
}

/// Files of the SDK, copied unchanged.
pub const SDK: Files = sdk![
    "Cargo.toml",
    "src/declare.rs",
    "src/deduper.rs",
    "src/group.rs",
    "src/lib.rs",
    "src/math.rs",
    "src/saturator.rs",
    "src/scorer.rs",
    "src/testing.rs",
    "src/types.rs",
    "src/wasm.rs",
    "wit/policy.wit",
];

macro_rules! template {
    ($stage:literal: $($file:literal),+ $(,)?) => {
        &[$((
            $file,
            include_str!(concat!("../../../../policies/sdk/template/", $stage, "/", $file)),
        )),+]
    };
}

pub const fn template(stage: Stage) -> Files {
    match stage {
        Stage::Score => template!("score": "Cargo.toml", "README.md", "src/lib.rs"),
        Stage::Dedup => template!("dedup": "Cargo.toml", "README.md", "src/lib.rs"),
        Stage::Saturation => template!("saturation": "Cargo.toml", "README.md", "src/lib.rs"),
    }
}

pub const PROJECT: Files = &[(".gitignore", "/target\n")];
