//! The errors of a build, which say what to do.

use std::path::{Path, PathBuf};

/// Reason for a failed build.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("{} is not a policy directory; create one with: nova policy new NAME", .0.display())]
    NotAProject(PathBuf),
    #[error("{}: {reason}", .file.display())]
    File { file: PathBuf, reason: String },
    #[error("{program} could not be started: {reason}; {advice}")]
    Missing {
        program: String,
        reason: std::io::Error,
        advice: &'static str,
    },
    #[error("{what} failed:\n{output}")]
    Failed { what: &'static str, output: String },
    #[error("{0}")]
    Unsuitable(String),
    #[error("{0}")]
    Rust(String),
    #[error("the component imports {}, but a policy imports nothing; remove the code that needs them", .0.join(", "))]
    Imports(Vec<String>),
}

impl BuildError {
    pub fn file(file: &Path, reason: impl std::fmt::Display) -> Self {
        Self::File {
            file: file.to_owned(),
            reason: reason.to_string(),
        }
    }
}
