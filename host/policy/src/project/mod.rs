//! A policy's source directory: detection of its language from the files in it, and its build
//! into a component.

mod javascript;
mod python;
pub mod sources;
mod tool;

use super::toolchain::{Job, build_component_modules, encode_component};
pub use javascript::COMPONENTIZE_JS;
pub use python::COMPONENTIZE_PY;
use std::path::{Path, PathBuf};
pub use tool::BuildError;
use tool::fields;

/// The language of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Language {
    Rust,
    Python,
    Javascript,
}

impl Language {
    const ALL: [Self; 3] = [Self::Rust, Self::Python, Self::Javascript];

    /// Returns the name of the file that identifies a project in this language.
    fn manifest(self) -> &'static str {
        match self {
            Self::Rust => "Cargo.toml",
            Self::Python => "pyproject.toml",
            Self::Javascript => "package.json",
        }
    }
}

/// The purpose of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Full optimization.
    Shipping,
    /// Fast compilation, because a person is waiting. A Rust policy is compiled incrementally.
    Watching,
}

/// Callback that shows the current step to the person who waits.
pub type Progress<'a> = &'a (dyn Fn(&str) + Sync);

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
    pub fn build(&self, purpose: Purpose, progress: Progress<'_>) -> Result<Vec<u8>, BuildError> {
        let bytes = match self.language {
            Language::Rust => self.build_rust(purpose, progress),
            Language::Python => python::build(self, progress),
            Language::Javascript => javascript::build(self, progress),
        }?;
        tool::refuse_imports(&bytes)?;
        Ok(bytes)
    }

    fn build_rust(&self, purpose: Purpose, progress: Progress<'_>) -> Result<Vec<u8>, BuildError> {
        progress("compiling");
        let target = self.directory.join("target");
        let watching = target.join("watch");
        let job = Job {
            directory: &self.directory,
            target: &target,
            profile: "release",
            arguments: &["--lib"],
        };
        let job = match purpose {
            Purpose::Shipping => job,
            // The watch build has its own target directory, because it is optimized for build
            // time and never shipped.
            Purpose::Watching => Job {
                target: &watching,
                arguments: &[
                    "--lib",
                    "--config=profile.release.lto=false",
                    "--config=profile.release.incremental=true",
                    "--config=profile.release.codegen-units=16",
                ],
                ..job
            },
        };
        build_component_modules(job)
            .and_then(|modules| encode_component(&modules.join(self.module_file())))
            .map_err(BuildError::Rust)
    }
}

/// Returns the file name of a module: its project's name with underscores.
pub fn module_file(name: &str) -> String {
    format!("{}.wasm", name.replace('-', "_"))
}
