//! Reads of the policies directory.

use nova_model::artifact::{Digest, MANIFEST_BYTES_MAX, Manifest, ModuleSource, Stage};
use nova_policy::admission::{MODULE_BYTES_MAX, PolicyFiles};
use nova_policy::signature::{SIGNATURE_FILE, SUMS_FILE};
use nova_support::bounded_file;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Maximum size of a signature, and of the list of digests that it signs.
const SIGNATURE_BYTES_MAX: u64 = 64 << 10;

/// Current content of a sub-directory.
pub struct Candidate {
    pub name: String,
    /// Digest of the manifest and of every file that it names.
    pub fingerprint: Digest,
    pub read: Result<PolicyFiles, String>,
}

/// File system metadata of every file: path, modification time and size. No file is read for it.
pub type Stamps = Vec<(PathBuf, Option<SystemTime>, u64)>;

pub async fn stamps(directory: &Path) -> Stamps {
    let directory = directory.to_owned();
    let look = move || {
        let inner = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
        let files = inner(directory).flat_map(|entry| inner(entry.path()));
        let mut stamps: Stamps = files
            .filter_map(|file| {
                // Symlinks are followed, because a ConfigMap replaces the link and not the file.
                let metadata = std::fs::metadata(file.path()).ok()?;
                Some((file.path(), metadata.modified().ok(), metadata.len()))
            })
            .collect();
        stamps.sort();
        stamps
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

pub async fn read_all(directory: &Path) -> Vec<Candidate> {
    let directory = directory.to_owned();
    tokio::task::spawn_blocking(move || read_all_blocking(&directory))
        .await
        .unwrap_or_default()
}

fn read_all_blocking(directory: &Path) -> Vec<Candidate> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut names: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    names.sort();
    names
        .iter()
        .filter_map(|path| read_candidate(path))
        .collect()
}

fn read_candidate(path: &Path) -> Option<Candidate> {
    let name = path
        .file_name()?
        .to_str()
        .filter(|name| !name.starts_with('.'))?
        .to_owned();
    // A directory without a manifest is no policy.
    std::fs::metadata(path.join("policy.toml")).ok()?;
    let read = read_policy_directory(path);
    let mut everything = match &read {
        Ok(files) => files.manifest.clone().into_bytes(),
        Err(reason) => reason.clone().into_bytes(),
    };
    if let Ok(files) = &read {
        for (file, bytes) in &files.modules {
            everything.extend_from_slice(file.as_bytes());
            everything.extend_from_slice(bytes);
        }
    }
    Some(Candidate {
        name,
        fingerprint: Digest::from_content(&everything),
        read,
    })
}

/// Reads a manifest and the files that it names. Ignores a missing file, because the admission
/// reports it.
///
/// # Errors
/// Fails if a file cannot be read, or if the manifest is invalid.
pub fn read_policy_directory(path: &Path) -> Result<PolicyFiles, String> {
    let named = |file: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let manifest_path = path.join("policy.toml");
    let manifest = bounded_file::read(&manifest_path, MANIFEST_BYTES_MAX as u64)
        .map_err(|error| named(&manifest_path, &error))?;
    let manifest =
        String::from_utf8(manifest).map_err(|_| named(&manifest_path, &"is not UTF-8"))?;
    let mut files = PolicyFiles {
        manifest,
        ..PolicyFiles::default()
    };
    let parsed = Manifest::parse(&files.manifest)?;
    for stage in Stage::ALL {
        let ModuleSource::File(name) = &parsed.stage(stage).module else {
            continue;
        };
        let module = path.join(name);
        if std::fs::metadata(&module).is_ok() {
            let bytes = bounded_file::read(&module, MODULE_BYTES_MAX as u64)
                .map_err(|error| named(&module, &error))?;
            files.modules.insert(name.clone(), bytes);
        }
    }
    for name in [SUMS_FILE, SIGNATURE_FILE] {
        let file = path.join(name);
        if std::fs::metadata(&file).is_ok() {
            let bytes = bounded_file::read(&file, SIGNATURE_BYTES_MAX)
                .map_err(|error| named(&file, &error))?;
            files.modules.insert(name.to_owned(), bytes);
        }
    }
    Ok(files)
}
