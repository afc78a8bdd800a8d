//! `nova policy new`: creates a policy that builds and passes its own test in any directory. The
//! SDK is copied into the policy, because it must build without this checkout.

mod javascript;
mod python;
mod rust;

use anyhow::{Context, bail};
use nova_model::artifact::{Stage, check_name};
use nova_policy::project::{Language, module_file};
use std::path::{Path, PathBuf};

/// Paths and contents of files.
type Files = &'static [(&'static str, &'static str)];

/// Creates `./NAME` and returns its path.
///
/// # Errors
/// The name is not a valid crate name, or the directory already exists.
pub fn create(name: &str, stage: Stage, language: Language) -> anyhow::Result<PathBuf> {
    check_name(name).map_err(anyhow::Error::msg)?;
    if name.starts_with(|first: char| first.is_ascii_digit()) {
        bail!(
            "name `{name}`: choose a name that begins with a letter, because the source is named after it"
        );
    }
    let directory = PathBuf::from(name);
    if directory.exists() {
        bail!("{name} already exists; choose another name");
    }
    let (project, template, sdk): (Files, Files, Files) = match language {
        Language::Rust => (rust::PROJECT, rust::template(stage), rust::SDK),
        Language::Python => (python::PROJECT, python::template(stage), python::SDK),
        Language::Javascript => (
            javascript::PROJECT,
            javascript::template(stage),
            javascript::SDK,
        ),
    };
    for (file, content) in project.iter().chain(template) {
        write(&directory.join(file), &fill_in(content, name, stage))?;
    }
    for (file, content) in sdk {
        write(&directory.join(file), content)?;
    }
    write(
        &directory.join("policy.toml"),
        &manifest(name, stage, language),
    )?;
    Ok(directory)
}

/// Fills the placeholders of a template.
fn fill_in(content: &str, name: &str, stage: Stage) -> String {
    let (kind, rule) = match stage {
        Stage::Score => (
            "a scorer: it gives each candidate a score, and the host shows the highest first",
            "The rule is the function under `each`. It returns the parts of one post's score in the order of `explains`. For scores that depend on the other candidates, write `batch` and a function that takes all posts and returns one row of parts for each.",
        ),
        Stage::Dedup => (
            "a deduper: it decides which candidates are repeats, and removes them",
            "The rule is the function under `dedup`. It returns the indices to keep, each once, and at least one if there are candidates.",
        ),
        Stage::Saturation => (
            "a saturator: it decides the order in which ranked posts are shown",
            "The rule is the function under `saturate`. It returns a permutation of the indices, with every post once.",
        ),
    };
    content
        .replace("{{name}}", name)
        .replace("{{kind}}", kind)
        .replace("{{rule}}", rule)
}

/// Default limits of a policy in this language. The CPython and SpiderMonkey runtimes are part
/// of the component, so they need more memory. Starting CPython for each call takes as long as
/// the ranking itself. SpiderMonkey collects garbage only once some has accumulated, and its
/// memory levels off between 72 and 80 MB.
fn limits(language: Language) -> &'static str {
    match language {
        Language::Rust => "deadline_ms = 20\nmemory_mb = 16\ninstance = \"fresh\"\n",
        Language::Python => "deadline_ms = 20\nmemory_mb = 64\ninstance = \"reuse\"\n",
        Language::Javascript => "deadline_ms = 20\nmemory_mb = 128\ninstance = \"reuse\"\n",
    }
}

/// Returns the manifest of a policy that uses the new module for its stage and built-in modules
/// for the other two.
fn manifest(name: &str, own: Stage, language: Language) -> String {
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
        "name = \"{name}\"\nversion = \"0.1.0\"\ndescription = \"\"\n{}{}{}\n[limits]\n{}",
        source(Stage::Dedup, "builtin:seen-dedup"),
        source(Stage::Score, "builtin:weighted-scorer"),
        source(Stage::Saturation, "builtin:author-saturation"),
        limits(language),
    )
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
    use nova_model::artifact::Manifest;
    use nova_policy::project::{COMPONENTIZE_JS, COMPONENTIZE_PY};

    const LANGUAGES: [Language; 3] = [Language::Rust, Language::Python, Language::Javascript];

    #[test]
    fn every_source_file_of_the_sdks_is_written() {
        let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
        for (directory, prefix, written) in [
            ("sdk/src", "sdk/src", rust::SDK),
            ("sdk-python/nova_policy", "nova_policy", python::SDK),
            ("sdk-javascript/nova-policy", "nova-policy", javascript::SDK),
        ] {
            for entry in std::fs::read_dir(policies.join(directory)).unwrap() {
                let entry = entry.unwrap();
                let name = format!("{prefix}/{}", entry.file_name().to_str().unwrap());
                // Directories are skipped: the one with the contract, and those that an
                // interpreter leaves.
                let is_source = entry.file_type().unwrap().is_file();
                assert!(
                    !is_source || written.iter().any(|(file, _)| *file == name),
                    "{name} is not written"
                );
            }
        }
    }

    #[test]
    fn the_manifest_of_a_new_policy_is_valid_for_every_stage_and_language() {
        for stage in Stage::ALL {
            for language in LANGUAGES {
                let manifest = Manifest::parse(&manifest("my-policy", stage, language));
                assert_eq!(manifest.unwrap().name, "my-policy");
            }
        }
    }

    #[test]
    fn no_placeholder_is_left_in_a_filled_template() {
        for stage in Stage::ALL {
            for (file, content) in [
                rust::PROJECT,
                rust::template(stage),
                python::PROJECT,
                python::template(stage),
                javascript::PROJECT,
                javascript::template(stage),
            ]
            .concat()
            {
                let filled = fill_in(content, "my-policy", stage);
                assert!(!filled.contains("{{"), "{file}");
            }
        }
    }

    #[test]
    fn templates_pin_the_compiler_versions_that_the_build_names() {
        let content =
            |files: Files, name: &str| files.iter().find(|(file, _)| *file == name).unwrap().1;
        assert!(content(python::PROJECT, "requirements.txt").contains(COMPONENTIZE_PY));
        let wanted = format!("\"@bytecodealliance/componentize-js\": \"{COMPONENTIZE_JS}\"");
        for file in ["package.json", "package-lock.json"] {
            assert!(
                content(javascript::PROJECT, file).contains(&wanted),
                "{file}"
            );
        }
    }
}
