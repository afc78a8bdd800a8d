//! Record of the bundled policies of all programs that ran on this data directory. After an
//! upgrade, a policy that an older program published still needs no signature, and a signed
//! policy may still use a `builtin:` module as it was when that policy was published.
//!
//! The record is on the host and not in the registry. So an attacker with write access to the
//! registry can only choose between the bundles of these programs, each as a whole, and cannot
//! add anything else.

use super::builtin;
use super::files::PolicyFiles;
use super::loaded::resolve;
use super::module::Module;
use anyhow::Context;
use nova_model::artifact::{Digest, Manifest, ModuleSource, PerStage, PolicySpec, Stage};
use nova_support::durable_file;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const FILE_NAME: &str = "shipped.json";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundled(Vec<Program>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Program {
    recipes: Vec<Recipe>,
    /// Digests by `builtin:` name.
    modules: BTreeMap<String, Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Recipe {
    manifest: String,
    modules: PerStage<Digest>,
}

impl Bundled {
    /// Returns the bundle of this program.
    pub fn here() -> Self {
        let module = |name: &str| builtin::module(name).map(Digest::from_content);
        let recipe = |files: PolicyFiles| {
            let manifest = Manifest::parse(&files.manifest).ok()?;
            let digest = |stage| match &manifest.stage(stage).module {
                ModuleSource::File(name) => files
                    .modules
                    .get(name)
                    .map(|bytes| Digest::from_content(bytes)),
                ModuleSource::Builtin(name) => module(name),
                ModuleSource::Published(digest) => Some(*digest),
            };
            let modules = PerStage::try_build(|stage| digest(stage).ok_or(())).ok()?;
            Some(Recipe {
                manifest: files.manifest,
                modules,
            })
        };
        let names = builtin::module_names();
        let modules = names.filter_map(|name| Some((name.to_owned(), module(name)?)));
        Self(vec![Program {
            recipes: builtin::recipes().filter_map(recipe).collect(),
            modules: modules.collect(),
        }])
    }

    /// Returns the bundles of this program and of the programs that ran on `data_dir` before.
    /// Saves this program's bundle for the programs after it.
    ///
    /// # Errors
    /// Fails if the file cannot be read or written. A damaged file is renamed and replaced.
    pub async fn remembered(data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join(FILE_NAME);
        let lost = "the record of the policies that older programs bundled";
        let known = durable_file::read_json_or_put_aside::<Self>(&path, lost)?;
        let mut programs = known.unwrap_or_default().0;
        let before = programs.len();
        for program in Self::here().0 {
            if !programs.contains(&program) {
                programs.push(program);
            }
        }
        let all = Self(programs);
        if all.0.len() > before {
            durable_file::write_json(path.clone(), &all)
                .await
                .with_context(|| path.display().to_string())?;
        }
        Ok(all)
    }

    /// Reports if a published policy is one of the bundled recipes, unchanged.
    pub fn has(&self, spec: &PolicySpec, modules: &PerStage<Arc<Module>>) -> bool {
        let same_modules = |recipe: &&Recipe| {
            Stage::ALL
                .into_iter()
                .all(|stage| *recipe.modules.get(stage) == spec.stages.get(stage).module)
        };
        let recipes = self.0.iter().flat_map(|program| &program.recipes);
        recipes.filter(same_modules).any(|recipe| {
            Manifest::parse(&recipe.manifest).is_ok_and(|manifest| {
                let resolved = resolve(&manifest, modules);
                resolved.policy == spec.policy && resolved.behaves_as(spec)
            })
        })
    }

    /// Reports if one single program bundled all of these modules under these `builtin:` names.
    pub fn has_modules(&self, modules: &[(&str, Digest)]) -> bool {
        self.0.iter().any(|program| {
            let bundled =
                |(name, digest): &(&str, Digest)| program.modules.get(*name) == Some(digest);
            modules.iter().all(bundled)
        })
    }

    /// Adds a program that bundled only this recipe, as if it had run here. Used in tests.
    #[cfg(any(test, feature = "testing"))]
    pub fn with_older(mut self, manifest: &str, modules: PerStage<Digest>) -> Self {
        let recipe = Recipe {
            manifest: manifest.to_owned(),
            modules,
        };
        self.0.insert(
            0,
            Program {
                recipes: vec![recipe],
                modules: BTreeMap::new(),
            },
        );
        self
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod format_tests;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn modules_of_an_older_program_stay_known_after_an_upgrade_and_do_not_mix_with_newer() {
        let directory = tempfile::tempdir().unwrap();
        let (old_dedup, old_scorer) = (
            Digest::from_content(b"old dedup"),
            Digest::from_content(b"old scorer"),
        );
        let older = Program {
            recipes: Vec::new(),
            modules: BTreeMap::from([
                ("seen-dedup".to_owned(), old_dedup),
                ("weighted-scorer".to_owned(), old_scorer),
            ]),
        };
        let path = directory.path().join(FILE_NAME);
        durable_file::write_json(path, &Bundled(vec![older]))
            .await
            .unwrap();
        let known = Bundled::remembered(directory.path()).await.unwrap();
        let scorer = Digest::from_content(builtin::module("weighted-scorer").unwrap());
        let (dedup, old_scorer) = (("seen-dedup", old_dedup), ("weighted-scorer", old_scorer));
        assert!(known.has_modules(&[dedup, old_scorer]));
        assert!(known.has_modules(&[("weighted-scorer", scorer)]));
        assert!(!known.has_modules(&[dedup, ("weighted-scorer", scorer)]));
        assert!(!known.has_modules(&[("seen-dedup", scorer)]));
        let again = Bundled::remembered(directory.path()).await.unwrap();
        assert_eq!(again, known);
    }

    #[tokio::test]
    async fn a_damaged_record_is_renamed_and_started_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        std::fs::write(&path, "{}").unwrap();
        let known = Bundled::remembered(directory.path()).await.unwrap();
        assert_eq!(known, Bundled::here());
        let aside = path.with_extension("damaged");
        assert_eq!(std::fs::read_to_string(aside).unwrap(), "{}");
        let again = Bundled::remembered(directory.path()).await.unwrap();
        assert_eq!(again, known);
    }
}
