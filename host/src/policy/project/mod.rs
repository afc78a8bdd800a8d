//! A policy's source directory: which language it is in, recognised by what lies in it, and its way to a component.

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

/// What a policy is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Language {
    Rust,
    Python,
    Javascript,
}

impl Language {
    const ALL: [Self; 3] = [Self::Rust, Self::Python, Self::Javascript];

    /// The file that names the project.
    fn manifest(self) -> &'static str {
        match self {
            Self::Rust => "Cargo.toml",
            Self::Python => "pyproject.toml",
            Self::Javascript => "package.json",
        }
    }
}

/// Whom a build is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// As good as it gets.
    Shipping,
    /// Somebody waits for it: of a Rust policy, only what changed is compiled.
    Watching,
}

/// What is being done, for whoever waits.
pub type Progress<'a> = &'a (dyn Fn(&str) + Sync);

#[derive(Debug, Clone)]
pub struct Project {
    /// Absolute.
    pub directory: PathBuf,
    pub language: Language,
    pub name: String,
    version: String,
}

impl Project {
    /// # Errors
    /// When the directory has no project file, or one that names nothing.
    pub fn open(directory: &Path) -> Result<Self, BuildError> {
        let found = Language::ALL
            .into_iter()
            .find(|language| directory.join(language.manifest()).is_file());
        let language = found.ok_or_else(|| BuildError::NotAProject(directory.to_owned()))?;
        let (name, version) = fields(&directory.join(language.manifest()), language)?;
        // Tools run in the directory and are told of files in it; notifications name them by their whole path.
        let directory =
            std::fs::canonicalize(directory).map_err(|error| BuildError::file(directory, error))?;
        Ok(Self {
            directory,
            language,
            name,
            version,
        })
    }

    /// The component's file name: the project's, with underscores.
    pub fn module_file(&self) -> String {
        module_file(&self.name)
    }

    /// Compiles to a component that imports nothing.
    ///
    /// # Errors
    /// What is missing and how to get it, or what the compiler said.
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
            // A target directory of its own: this one is as fast to build as it can be, and never shipped.
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

/// The file name of a module: its project's, with underscores.
pub fn module_file(name: &str) -> String {
    format!("{}.wasm", name.replace('-', "_"))
}
