//! A policy's source directory: detection of its language from the files in it, and its build
//! into a component.

mod error;
mod javascript;
mod language;
mod python;
pub mod sources;
mod tool;

use super::toolchain::{ComponentBuild, build_component_modules, encode_component};
pub use error::BuildError;
pub use javascript::COMPONENTIZE_JS;
pub use language::Language;
pub use python::COMPONENTIZE_PY;
use std::path::{Path, PathBuf};
use tool::fields;

/// The purpose of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Full optimization.
    Shipping,
    /// Fast compilation, because a person is waiting. A Rust policy is compiled incrementally.
    Watching,
}

/// Callback that shows the current step to the person who waits.
pub type BuildProgress<'a> = &'a (dyn Fn(&str) + Sync);

#[derive(Debug, Clone)]
pub struct Project {
    /// Absolute path.
    pub directory: PathBuf,
    pub language: Language,
    pub name: String,
    version: String,
}

impl Project {
    /// # Errors
    /// Fails if the directory has no project file, or one without a valid name and version.
    pub fn open(directory: &Path) -> Result<Self, BuildError> {
        let found = Language::ALL
            .into_iter()
            .find(|language| directory.join(language.manifest()).is_file());
        let language = found.ok_or_else(|| BuildError::NotAProject(directory.to_owned()))?;
        let (name, version) = fields(&directory.join(language.manifest()), language)?;
        // Tools run in the directory and get paths of files in it, and file notifications report
        // absolute paths.
        let directory =
            std::fs::canonicalize(directory).map_err(|error| BuildError::file(directory, error))?;
        Ok(Self {
            directory,
            language,
            name,
            version,
        })
    }

    /// Returns the component's file name: the project's name with underscores.
    pub fn module_file(&self) -> String {
        module_file(&self.name)
    }

    /// Compiles the project to a component that imports nothing.
    ///
    /// # Errors
    /// Fails with the missing tool and how to get it, or with the compiler's output.
    pub fn build(
        &self,
        purpose: Purpose,
        progress: BuildProgress<'_>,
    ) -> Result<Vec<u8>, BuildError> {
        let bytes = match self.language {
            Language::Rust => self.build_rust(purpose, progress),
            Language::Python => python::build(self, progress),
            Language::Javascript => javascript::build(self, progress),
        }?;
        tool::refuse_imports(&bytes)?;
        Ok(bytes)
    }

    fn build_rust(
        &self,
        purpose: Purpose,
        progress: BuildProgress<'_>,
    ) -> Result<Vec<u8>, BuildError> {
        progress("compiling");
        let target = self.directory.join("target");
        let watching = target.join("watch");
        let build = ComponentBuild {
            directory: &self.directory,
            working_directory: &self.directory,
            target: &target,
            profile: "release",
            arguments: &["--lib"],
        };
        let build = match purpose {
            Purpose::Shipping => build,
            // The watch build has its own target directory, because it is optimized for build
            // time and never published.
            Purpose::Watching => ComponentBuild {
                target: &watching,
                arguments: &[
                    "--lib",
                    "--config=profile.release.lto=false",
                    "--config=profile.release.incremental=true",
                    "--config=profile.release.codegen-units=16",
                ],
                ..build
            },
        };
        build_component_modules(build)
            .and_then(|modules| encode_component(&modules.join(self.module_file())))
            .map_err(BuildError::Rust)
    }
}

/// Returns the file name of a module: its project's name with underscores.
pub fn module_file(name: &str) -> String {
    format!("{}.wasm", name.replace('-', "_"))
}
