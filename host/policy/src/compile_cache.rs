//! The cache of compiled modules on disk, which spares a restarted host from compiling them
//! again. Files are `data_dir/compiled/<engine>/<module digest>`, each sealed
//! ([`super::sealed`]).
//!
//! It is only a cache: any problem with it costs a compilation and nothing else.

#![expect(
    clippy::disallowed_methods,
    reason = "compares with the times of files, which are wall-clock times"
)]

use super::sealed::{Origin, Seal, hash_of};
use anyhow::Context as _;
use nova_model::artifact::Digest;
use nova_support::key_file;
use nova_support::metrics::METRICS;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use wasmtime::Engine;
use wasmtime::component::Component;

const DIRECTORY: &str = "compiled";
const KEY_FILE: &str = "compiled.key";
/// Enough for thirty policies in Python or about ten thousand in Rust.
const BYTES_MAX: u64 = 1 << 30;

#[derive(Debug)]
pub struct CompileCache {
    directory: PathBuf,
    seal: Seal,
    bytes_max: u64,
}

impl CompileCache {
    /// Opens the cache and removes code compiled by engines other than `engines`, which an older
    /// version of this program left.
    ///
    /// # Errors
    /// Fails if the directory or its key cannot be created or read.
    pub fn open<'a>(
        data_dir: &Path,
        engines: impl IntoIterator<Item = &'a Engine>,
    ) -> anyhow::Result<Self> {
        let directory = data_dir.join(DIRECTORY);
        std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        let cache = Self {
            seal: Seal::new(&key_file::load_or_make_file(&data_dir.join(KEY_FILE))?),
            directory,
            bytes_max: BYTES_MAX,
        };
        let current: Vec<String> = engines
            .into_iter()
            .map(|engine| directory_name(hash_of(engine)))
            .collect();
        for entry in std::fs::read_dir(&cache.directory)?.flatten() {
            let name = entry.file_name();
            if !current.iter().any(|current| name == current.as_str()) {
                tracing::info!(directory = %entry.path().display(), "removing compiled code of another version or engine configuration");
                // A failure costs only disk space. Another process may be removing the same entry
                // at this moment.
                if let Err(error) = std::fs::remove_dir_all(entry.path()) {
                    tracing::warn!(directory = %entry.path().display(), %error, "could not remove compiled code of another version; it keeps taking disk space");
                }
            }
        }
        Ok(cache)
    }

    /// Returns the code that this host compiled earlier from this module for this engine.
    pub fn load(&self, engine: &Engine, module: Digest) -> Option<Component> {
        let origin = origin(engine, module);
        let path = self.path(origin);
        let Ok(sealed) = std::fs::read(&path) else {
            count("miss");
            return None;
        };
        let component = self.seal.open(engine, origin, &sealed).unwrap_or_else(|_| {
            tracing::error!(
                file = %path.display(),
                "a file of compiled code is not as this host wrote it; ignoring it and compiling the module again"
            );
            None
        });
        count(if component.is_some() {
            "hit"
        } else {
            "refused"
        });
        // When the cache is full, the files unused for longest are removed first. If the time
        // cannot be set, the file is only removed earlier than it should be.
        let _ = std::fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        component
    }

    /// Stores compiled code. If that fails, the next start has to compile it again.
    pub fn keep(&self, engine: &Engine, module: Digest, component: &Component) {
        if let Err(error) = self.try_to_keep(engine, module, component) {
            not_kept(&error);
        }
    }

    /// Loads and stores code that a child process of this host compiled.
    ///
    /// # Errors
    /// Fails if the engine rejects the code.
    pub fn adopt(&self, engine: &Engine, module: Digest, code: &[u8]) -> anyhow::Result<Component> {
        let component = self.seal.adopt(engine, module, code)?;
        if let Err(error) = self.try_to_keep_code(origin(engine, module), code) {
            not_kept(&error);
        }
        Ok(component)
    }

    fn try_to_keep(
        &self,
        engine: &Engine,
        module: Digest,
        component: &Component,
    ) -> anyhow::Result<()> {
        let code = component
            .serialize()
            .map_err(|error| anyhow::anyhow!("{error:?}"))?;
        self.try_to_keep_code(origin(engine, module), &code)
    }

    fn try_to_keep_code(&self, origin: Origin, code: &[u8]) -> anyhow::Result<()> {
        let path = self.path(origin);
        let directory = path.parent().unwrap_or(&self.directory);
        std::fs::create_dir_all(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&self.seal.close(origin, code))?;
        file.persist(&path)?;
        self.shrink()
    }

    /// Removes the least recently used files until the rest fits.
    fn shrink(&self) -> anyhow::Result<()> {
        let mut files = Vec::new();
        for engine in std::fs::read_dir(&self.directory)?.flatten() {
            for file in std::fs::read_dir(engine.path())?.flatten() {
                let metadata = file.metadata()?;
                files.push((metadata.modified()?, metadata.len(), file.path()));
            }
        }
        files.sort_by_key(|(used, ..)| std::cmp::Reverse(*used));
        let mut bytes = 0;
        for (_, length, path) in files {
            bytes += length;
            if bytes > self.bytes_max {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn path(&self, origin: Origin) -> PathBuf {
        self.directory
            .join(directory_name(origin.engine_hash))
            .join(origin.module.to_string())
    }
}

fn not_kept(error: &anyhow::Error) {
    tracing::warn!(
        error = format!("{error:#}"),
        "could not store compiled code in the cache; the next start compiles the module again"
    );
}

fn origin(engine: &Engine, module: Digest) -> Origin {
    Origin::of(engine, module)
}

fn directory_name(engine_hash: u64) -> String {
    format!("{engine_hash:016x}")
}

fn count(outcome: &str) {
    METRICS
        .cache_operations_total
        .with_label_values(&["compiled", outcome])
        .inc();
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::builtin;
    use crate::engine::Engine as PolicyEngine;

    fn bytes(name: &str) -> &'static [u8] {
        builtin::module(name).unwrap()
    }

    fn engine(data_dir: &Path) -> PolicyEngine {
        PolicyEngine::start().unwrap().with_cache(data_dir).unwrap()
    }

    /// Returns the only file in the cache.
    fn only_file(data_dir: &Path) -> PathBuf {
        let mut files = files(data_dir);
        assert_eq!(files.len(), 1, "{files:?}");
        files.remove(0)
    }

    fn files(data_dir: &Path) -> Vec<PathBuf> {
        let engines = std::fs::read_dir(data_dir.join(DIRECTORY)).unwrap();
        let files = engines.flat_map(|engine| std::fs::read_dir(engine.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().path()).collect()
    }

    /// Stores code under the name of another module, sealed with the host's own key.
    fn forge(data_dir: &Path, name: &str, code_of: &str) {
        let engine = engine(data_dir);
        let cache = CompileCache::open(data_dir, [engine.standard()]).unwrap();
        let component = Component::new(engine.standard(), bytes(code_of)).unwrap();
        cache.keep(
            engine.standard(),
            Digest::from_content(bytes(name)),
            &component,
        );
    }

    #[test]
    fn a_compiled_module_is_loaded_from_disk_and_not_compiled_again() {
        let dir = tempfile::tempdir().unwrap();
        forge(dir.path(), "seen-dedup", "author-saturation");
        // Only code from the disk can differ from the module's bytes.
        let loaded = engine(dir.path()).load(bytes("seen-dedup")).unwrap();
        assert_eq!(loaded.description.name, "author-saturation");
        let compiled = PolicyEngine::start()
            .unwrap()
            .load(bytes("seen-dedup"))
            .unwrap();
        assert_eq!(compiled.description.name, "seen-dedup");
    }

    #[test]
    fn a_file_changed_at_any_byte_is_compiled_again_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        forge(dir.path(), "seen-dedup", "author-saturation");
        let path = only_file(dir.path());
        let sealed = std::fs::read(&path).unwrap();
        for at in [0, 31, 32, sealed.len() / 2, sealed.len() - 1] {
            let mut tampered = sealed.clone();
            tampered[at] ^= 1;
            std::fs::write(&path, tampered).unwrap();
            let loaded = engine(dir.path()).load(bytes("seen-dedup")).unwrap();
            assert_eq!(loaded.description.name, "seen-dedup", "byte {at}");
        }
        for cut in [0, 10, 32, sealed.len() - 1] {
            std::fs::write(&path, &sealed[..cut]).unwrap();
            let loaded = engine(dir.path()).load(bytes("seen-dedup")).unwrap();
            assert_eq!(loaded.description.name, "seen-dedup", "cut at {cut}");
        }
        let replaced = std::fs::read(only_file(dir.path())).unwrap();
        assert_ne!(replaced, sealed);
        let engine = engine(dir.path());
        let cache = CompileCache::open(dir.path(), [engine.standard()]).unwrap();
        let module = Digest::from_content(bytes("seen-dedup"));
        assert!(cache.load(engine.standard(), module).is_some());
    }

    #[test]
    fn code_of_another_module_or_sealed_with_another_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        forge(dir.path(), "seen-dedup", "seen-dedup");
        let path = only_file(dir.path());
        let other = Digest::from_content(bytes("author-saturation")).to_string();
        std::fs::copy(&path, path.with_file_name(other)).unwrap();
        let loaded = engine(dir.path()).load(bytes("author-saturation")).unwrap();
        assert_eq!(loaded.description.name, "author-saturation");

        let foreign = tempfile::tempdir().unwrap();
        forge(foreign.path(), "seen-dedup", "author-saturation");
        std::fs::copy(only_file(foreign.path()), &path).unwrap();
        let loaded = engine(dir.path()).load(bytes("seen-dedup")).unwrap();
        assert_eq!(loaded.description.name, "seen-dedup");
    }

    #[test]
    fn code_of_another_engine_is_removed_and_the_module_compiled_again() {
        let dir = tempfile::tempdir().unwrap();
        forge(dir.path(), "seen-dedup", "author-saturation");
        let ours = only_file(dir.path());
        let theirs = dir.path().join(DIRECTORY).join("00000000000000ff");
        std::fs::rename(ours.parent().unwrap(), &theirs).unwrap();
        let loaded = engine(dir.path()).load(bytes("seen-dedup")).unwrap();
        assert_eq!(loaded.description.name, "seen-dedup");
        assert!(!theirs.exists());
        assert_eq!(only_file(dir.path()), ours);
    }

    #[test]
    fn a_full_cache_removes_the_least_recently_used_file() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path());
        let mut cache = CompileCache::open(dir.path(), [engine.standard()]).unwrap();
        let keep = |cache: &CompileCache, name: &str| {
            let component = Component::new(engine.standard(), bytes(name)).unwrap();
            cache.keep(
                engine.standard(),
                Digest::from_content(bytes(name)),
                &component,
            );
        };
        keep(&cache, "seen-dedup");
        let first = only_file(dir.path());
        let long_ago = SystemTime::UNIX_EPOCH;
        std::fs::File::open(&first)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        keep(&cache, "author-saturation");
        let both: u64 = files(dir.path())
            .iter()
            .map(|file| file.metadata().unwrap().len())
            .sum();
        // The limit leaves no room for a third file of any size.
        cache.bytes_max = both;
        keep(&cache, "weighted-scorer");
        let left = files(dir.path());
        assert!(!left.contains(&first));
        assert!(left.iter().any(|file| {
            file.ends_with(Digest::from_content(bytes("weighted-scorer")).to_string())
        }));
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_the_key() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        drop(engine(dir.path()));
        let mode = std::fs::metadata(dir.path().join(KEY_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
