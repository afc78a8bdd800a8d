//! `nova policy new`: a crate that builds and passes its own test as it stands, anywhere. The SDK is
//! written beside it, because a policy must build without this checkout.

use crate::policy::artifact::{Stage, check_name};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};

macro_rules! sdk {
    ($($file:literal),+ $(,)?) => {
        &[$(($file, include_str!(concat!("../../../policies/sdk/", $file)))),+]
    };
}

const SDK: &[(&str, &str)] = sdk![
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
    ($stage:literal) => {
        [
            (
                "Cargo.toml",
                include_str!(concat!(
                    "../../../policies/sdk/template/",
                    $stage,
                    "/Cargo.toml"
                )),
            ),
            (
                "README.md",
                include_str!(concat!(
                    "../../../policies/sdk/template/",
                    $stage,
                    "/README.md"
                )),
            ),
            (
                "src/lib.rs",
                include_str!(concat!(
                    "../../../policies/sdk/template/",
                    $stage,
                    "/src/lib.rs"
                )),
            ),
        ]
    };
}

const SCORE: [(&str, &str); 3] = template!("score");
const DEDUP: [(&str, &str); 3] = template!("dedup");
const SATURATION: [(&str, &str); 3] = template!("saturation");

/// Makes `./NAME` and returns its path.
///
/// # Errors
/// When the name cannot be a crate's, or the directory is there already.
pub fn create(name: &str, stage: Stage) -> anyhow::Result<PathBuf> {
    check_name(name).map_err(anyhow::Error::msg)?;
    if name.starts_with(|first: char| first.is_ascii_digit()) {
        bail!("name `{name}`: a crate's name begins with a letter");
    }
    let directory = PathBuf::from(name);
    if directory.exists() {
        bail!("{name} exists already; choose another name");
    }
    let files = match stage {
        Stage::Dedup => DEDUP,
        Stage::Score => SCORE,
        Stage::Saturation => SATURATION,
    };
    for (file, content) in files {
        write(&directory.join(file), &content.replace("{{name}}", name))?;
    }
    for (file, content) in SDK {
        write(&directory.join("sdk").join(file), content)?;
    }
    write(&directory.join("policy.toml"), &manifest(name, stage))?;
    write(&directory.join(".gitignore"), "/target\n")?;
    Ok(directory)
}

/// A policy around the new module: the other two stages are the shipped ones.
fn manifest(name: &str, own: Stage) -> String {
    let module = module_file(name);
    let source = |stage: Stage, builtin: &str| {
        let source = if stage == own {
            module.as_str()
        } else {
            builtin
        };
        format!("\n[{stage}]\nmodule = \"{source}\"\n")
    };
    format!(
        "name = \"{name}\"\nversion = \"0.1.0\"\ndescription = \"\"\n{}{}{}\n[limits]\ndeadline_ms = 20\nmemory_mb = 16\ninstance = \"fresh\"\n",
        source(Stage::Dedup, "builtin:seen-dedup"),
        source(Stage::Score, "builtin:weighted-scorer"),
        source(Stage::Saturation, "builtin:author-saturation"),
    )
}

/// A module's file name: the crate's, with underscores.
pub fn module_file(name: &str) -> String {
    format!("{}.wasm", name.replace('-', "_"))
}

fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    let named = || path.display().to_string();
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(named)?;
    }
    std::fs::write(path, content).with_context(named)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::policy::artifact::Manifest;

    #[test]
    fn every_source_file_of_the_sdk_is_written() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/sdk/src");
        for entry in std::fs::read_dir(sources).unwrap() {
            let name = format!("src/{}", entry.unwrap().file_name().to_str().unwrap());
            assert!(
                SDK.iter().any(|(file, _)| *file == name),
                "{name} is missing from SDK"
            );
        }
    }

    #[test]
    fn the_manifest_beside_a_new_crate_is_valid_for_every_stage() {
        for stage in Stage::ALL {
            assert_eq!(
                Manifest::parse(&manifest("my-policy", stage)).unwrap().name,
                "my-policy"
            );
        }
    }
}
