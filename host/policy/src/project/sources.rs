//! The source files of a policy: the files of its directory without the output of builds.

use super::error::BuildError;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Maximum number of files. A policy has a handful, so a larger directory is not one.
const FILES_MAX: usize = 10_000;
const MANIFEST: &str = "policy.toml";
/// Names of files and directories that compilers, interpreters and editors write.
const BUILT: [&str; 5] = [
    "target",
    "node_modules",
    "__pycache__",
    "Cargo.lock",
    "4913",
];

/// All source files, each with its modification time and length in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources(BTreeMap<PathBuf, (SystemTime, u64)>);

impl Sources {
    /// # Errors
    /// Fails if the directory cannot be read or is too large to be a policy's.
    pub fn read(directory: &Path) -> Result<Self, BuildError> {
        let mut sources = Self::default();
        let mut open = vec![directory.to_owned()];
        while let Some(directory) = open.pop() {
            let entries = std::fs::read_dir(&directory)
                .map_err(|error| BuildError::file(&directory, error))?;
            for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
                // The metadata follows links. A file that an editor has removed meanwhile is
                // skipped.
                let Some(metadata) = std::fs::metadata(&path).ok().filter(|_| is_source(&path))
                else {
                    continue;
                };
                if metadata.is_dir() {
                    open.push(path);
                } else if let Ok(modified) = metadata.modified() {
                    sources.0.insert(path, (modified, metadata.len()));
                }
                if sources.0.len() + open.len() > FILES_MAX {
                    let reason = format!("has over {FILES_MAX} files, too many for a policy");
                    return Err(BuildError::file(&directory, reason));
                }
            }
        }
        Ok(sources)
    }

    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(PathBuf::as_path)
    }

    /// Returns the files that were written, created or removed since `earlier`.
    pub fn changed_since<'a>(&'a self, earlier: &'a Self) -> Vec<&'a Path> {
        let written = self
            .0
            .iter()
            .filter(|(path, state)| earlier.0.get(*path) != Some(*state));
        let gone = earlier.0.keys().filter(|path| !self.0.contains_key(*path));
        let written = written.map(|(path, _)| path);
        written.chain(gone).map(PathBuf::as_path).collect()
    }

    /// Returns the time when the last of these files was saved.
    pub fn saved_at(&self, changed: &[&Path]) -> Option<SystemTime> {
        let saved = changed.iter().filter_map(|path| self.0.get(*path));
        saved.map(|(modified, _)| *modified).max()
    }
}

/// Reports if a change of these files changes the component, not only its parameters and limits.
pub fn change_code(changed: &[&Path]) -> bool {
    changed
        .iter()
        .any(|path| path.file_name() != Some(OsStr::new(MANIFEST)))
}

/// Reports if the author wrote this file. Hidden files and backups belong to tools and editors.
pub fn is_source(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(OsStr::to_str) else {
        return false;
    };
    let is_built = BUILT.contains(&name) || name.ends_with(".wasm");
    !is_built && !name.starts_with('.') && !name.ends_with('~')
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn build_output_is_no_change_and_a_source_file_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let write = |file: &str, content: &str| {
            let path = directory.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        write("src/lib.rs", "fn a() {}");
        write("policy.toml", "");
        let before = Sources::read(directory.path()).unwrap();
        for built in [
            "target/debug/x.d",
            ".venv/bin/python",
            "node_modules/a/index.js",
            "__pycache__/policy.pyc",
            "Cargo.lock",
            "fresh.wasm",
            "src/.lib.rs.swp",
            "src/lib.rs~",
        ] {
            write(built, "");
        }
        assert_eq!(Sources::read(directory.path()).unwrap(), before);

        write("policy.toml", "version = \"2\"");
        let tuned = Sources::read(directory.path()).unwrap();
        assert!(!change_code(&tuned.changed_since(&before)));
        write("src/lib.rs", "fn a() { b() }");
        let edited = Sources::read(directory.path()).unwrap();
        let changed = edited.changed_since(&tuned);
        assert_eq!(changed, [directory.path().join("src/lib.rs")]);
        assert!(change_code(&changed) && edited.saved_at(&changed).is_some());
        std::fs::remove_file(directory.path().join("src/lib.rs")).unwrap();
        let removed = Sources::read(directory.path()).unwrap();
        assert_eq!(
            removed.changed_since(&edited),
            [directory.path().join("src/lib.rs")]
        );
    }
}
