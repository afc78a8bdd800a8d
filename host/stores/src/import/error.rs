//! The errors that stop an import, with texts for the person who runs it.

use super::FileSummary;
use crate::ports::StoreError;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(
        "{0} contains none of users.csv, posts.csv, follows.csv, comments.csv, likes.csv and events.csv; name the directory that contains them"
    )]
    NothingToImport(PathBuf),

    /// Nothing of `file` was loaded. `line` counts from the header, which is line 1.
    #[error("{file}:{line}: {reason} ({})", outcome(file, loaded))]
    BadRow {
        file: &'static str,
        line: u64,
        reason: String,
        loaded: Vec<&'static str>,
    },

    #[error("{file}: {source} ({})", outcome(file, loaded))]
    Unreadable {
        file: &'static str,
        #[source]
        source: std::io::Error,
        loaded: Vec<&'static str>,
    },

    #[error("{file}: {source} ({})", outcome(file, loaded))]
    Store {
        file: &'static str,
        #[source]
        source: StoreError,
        loaded: Vec<&'static str>,
    },
}

impl ImportError {
    pub(super) fn bad_row(file: &'static str, line: u64, reason: String) -> Self {
        ImportError::BadRow {
            file,
            line,
            reason,
            loaded: Vec::new(),
        }
    }

    pub(super) fn unreadable(file: &'static str, source: std::io::Error) -> Self {
        ImportError::Unreadable {
            file,
            source,
            loaded: Vec::new(),
        }
    }

    pub(super) fn store(file: &'static str, source: StoreError) -> Self {
        ImportError::Store {
            file,
            source,
            loaded: Vec::new(),
        }
    }

    /// Returns the same error with the list of files that were loaded before it.
    #[must_use]
    pub(super) fn after(mut self, done: &[FileSummary]) -> Self {
        match &mut self {
            ImportError::NothingToImport(_) => {}
            ImportError::BadRow { loaded, .. }
            | ImportError::Unreadable { loaded, .. }
            | ImportError::Store { loaded, .. } => {
                *loaded = done.iter().map(|file| file.file).collect();
            }
        }
        self
    }
}

fn outcome(file: &str, loaded: &[&str]) -> String {
    if loaded.is_empty() {
        return format!("nothing of {file} was loaded, and no file was loaded before it");
    }
    format!(
        "nothing of {file} was loaded; loaded before it: {}",
        loaded.join(", ")
    )
}
