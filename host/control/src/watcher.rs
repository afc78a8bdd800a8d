//! Watcher of the policies directory. A sub-directory with a `policy.toml` is published when it
//! is complete, valid and no longer changing.
//!
//! The watcher debounces notifications and then reads the directory again, because editors write
//! in several steps and ConfigMaps replace a symlink. Some mounts send no notifications at all,
//! so the directory is also polled.

use super::deploy::{Deploy, DeployError};
use notify::{RecursiveMode, Watcher};
use nova_model::artifact::{Digest, Manifest, ModuleSource, Stage};
use nova_policy::admission::{MODULE_MISSING, PolicyFiles};
use nova_policy::signature::{SIGNATURE_FILE, SUMS_FILE};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;

/// Time between two reads of a directory. Both must give the same content before it is
/// published.
const SETTLE: Duration = Duration::from_millis(200);
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Time after which a refused policy is tried again, if it misses a module that another policy
/// may bring.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// Interval after which every file is read again without a notification or a change of its
/// times, because some mounts do not update the times.
const READ_AGAIN: Duration = Duration::from_secs(30);
const ACTOR: &str = "watcher";

/// Reasons why directories were not published, for `/debug/system/state`.
#[derive(Debug, Clone, Default)]
pub struct WatchReport(Arc<Mutex<BTreeMap<String, Vec<String>>>>);

impl WatchReport {
    pub fn refused(&self) -> BTreeMap<String, Vec<String>> {
        self.0
            .lock()
            .map(|refused| refused.clone())
            .unwrap_or_default()
    }

    fn set(&self, directory: &str, reasons: Vec<String>) {
        if let Ok(mut refused) = self.0.lock() {
            if reasons.is_empty() {
                refused.remove(directory);
            } else {
                refused.insert(directory.to_owned(), reasons);
            }
        }
    }

    fn keep_only(&self, present: &[Candidate]) {
        if let Ok(mut refused) = self.0.lock() {
            refused.retain(|directory, _| {
                present.iter().any(|candidate| candidate.name == *directory)
            });
        }
    }
}

/// Current content of a sub-directory.
struct Candidate {
    name: String,
    /// Digest of the manifest and of every file that it names.
    fingerprint: Digest,
    read: Result<PolicyFiles, String>,
}

/// A directory that needs no further work until its content changes.
struct Settled {
    fingerprint: Digest,
    /// Time of the next attempt without a change, if one may succeed.
    again: Option<Instant>,
}

impl Settled {
    fn holds_for(&self, candidate: &Candidate) -> bool {
        self.fingerprint == candidate.fingerprint
            && self.again.is_none_or(|again| Instant::now() < again)
    }
}

/// Publishes the policies that appear in `directory`, until the host ends.
pub async fn watch(deploy: Arc<Deploy>, directory: PathBuf, report: WatchReport) {
    let (changed, mut changes) = mpsc::channel(1);
    // This variable keeps the watcher running until the function returns.
    let _watcher = start_notifications(&directory, changed);
    let mut settled = HashMap::<String, Settled>::new();
    let (mut quiet, mut read_at) = (None, Instant::now());
    loop {
        let stamps = stamps(&directory).await;
        // Without this check an idle host would spend most of its work on reading and hashing
        // twenty interpreters every two seconds.
        if quiet.as_ref() != Some(&stamps) || read_at.elapsed() >= READ_AGAIN {
            let unchanged = sweep(&deploy, &directory, &report, &mut settled).await;
            quiet = unchanged.then_some(stamps);
            read_at = Instant::now();
        }
        tokio::select! {
            _ = changes.recv() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}

fn start_notifications(
    directory: &Path,
    changed: mpsc::Sender<()>,
) -> Option<notify::RecommendedWatcher> {
    let started = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // The sweep itself opens and reads every file. If these events counted, the sweep would
        // trigger itself forever.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            // One pending notification is enough, because the sweep reads everything.
            let _ = changed.try_send(());
        }
    })
    .and_then(|mut watcher| {
        watcher
            .watch(directory, RecursiveMode::Recursive)
            .map(|()| watcher)
    });
    started
        .inspect_err(|error| tracing::warn!(%error, "could not watch the policies directory for notifications; polling it"))
        .ok()
}

/// File system metadata of every file: path, modification time and size. No file is read for it.
type Stamps = Vec<(PathBuf, Option<SystemTime>, u64)>;

async fn stamps(directory: &Path) -> Stamps {
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

/// Checks all sub-directories once and publishes those that are new or changed and no longer
/// changing. Returns true if none was new or changed.
async fn sweep(
    deploy: &Deploy,
    directory: &Path,
    report: &WatchReport,
    settled: &mut HashMap<String, Settled>,
) -> bool {
    let first = read_all(directory).await;
    let is_settled = |settled: &HashMap<String, Settled>, candidate: &Candidate| {
        let settled = settled.get(&candidate.name);
        settled.is_some_and(|settled| settled.holds_for(candidate))
    };
    let changed = first
        .iter()
        .any(|candidate| !is_settled(settled, candidate));
    settled.retain(|name, _| first.iter().any(|candidate| candidate.name == *name));
    report.keep_only(&first);
    if !changed {
        return true;
    }
    tokio::time::sleep(SETTLE).await;
    for candidate in read_all(directory).await {
        let held_still = first.iter().any(|before| {
            before.name == candidate.name && before.fingerprint == candidate.fingerprint
        });
        if !held_still || is_settled(settled, &candidate) {
            continue;
        }
        if let Some(outcome) = publish(deploy, &candidate, report).await {
            let again = (outcome == Outcome::Waits).then(|| Instant::now() + RETRY_AFTER);
            let fingerprint = candidate.fingerprint;
            settled.insert(candidate.name, Settled { fingerprint, again });
        }
    }
    false
}

#[derive(PartialEq, Eq)]
enum Outcome {
    Published,
    Refused,
    /// Refused because something is missing that may arrive later.
    Waits,
}

/// Publishes one directory. Returns `None` if it must be tried again, for example because the
/// registry did not answer.
async fn publish(deploy: &Deploy, candidate: &Candidate, report: &WatchReport) -> Option<Outcome> {
    let refused = |reasons: Vec<String>| {
        tracing::warn!(
            directory = candidate.name,
            reasons = reasons.join("; "),
            "a policy in the policies directory was refused; it is checked again when its files change"
        );
        report.set(&candidate.name, reasons);
    };
    let files = match &candidate.read {
        Ok(files) => files.clone(),
        Err(reason) => {
            refused(vec![reason.clone()]);
            return Some(Outcome::Refused);
        }
    };
    match deploy.publish(files, ACTOR).await {
        Ok(_) => report.set(&candidate.name, Vec::new()),
        Err(DeployError::Refused(refusal)) => {
            let waits = refusal.reasons.iter().any(|r| r.code == MODULE_MISSING);
            refused(refusal.messages());
            return Some(if waits {
                Outcome::Waits
            } else {
                Outcome::Refused
            });
        }
        Err(DeployError::Conflict(_) | DeployError::Busy) => return None,
        Err(DeployError::Unavailable(error) | DeployError::Recorded(error)) => {
            tracing::warn!(
                error = format!("{error:#}"),
                directory = candidate.name,
                "could not publish a policy from the policies directory; trying again"
            );
            return None;
        }
        Err(other) => {
            refused(vec![other.to_string()]);
            return Some(Outcome::Refused);
        }
    }
    Some(Outcome::Published)
}

async fn read_all(directory: &Path) -> Vec<Candidate> {
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
    let manifest = std::fs::read(path.join("policy.toml")).ok()?;
    let mut everything = manifest.clone();
    let read = read_policy_directory(path);
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
    let manifest =
        std::fs::read_to_string(&manifest_path).map_err(|error| named(&manifest_path, &error))?;
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
        match std::fs::metadata(&module) {
            Ok(metadata) if metadata.len() > nova_policy::admission::MODULE_BYTES_MAX as u64 => {
                return Err(named(
                    &module,
                    &format!(
                        "larger than {} bytes",
                        nova_policy::admission::MODULE_BYTES_MAX
                    ),
                ));
            }
            Ok(_) => {
                let bytes = std::fs::read(&module).map_err(|error| named(&module, &error))?;
                files.modules.insert(name.clone(), bytes);
            }
            Err(_) => {}
        }
    }
    for name in [SUMS_FILE, SIGNATURE_FILE] {
        if let Ok(bytes) = std::fs::read(path.join(name)) {
            files.modules.insert(name.to_owned(), bytes);
        }
    }
    Ok(files)
}
