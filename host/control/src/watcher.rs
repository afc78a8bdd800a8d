//! Watcher of the policies directory. A sub-directory with a `policy.toml` is published when it
//! is complete, valid and no longer changing.
//!
//! The watcher debounces notifications and then reads the directory again, because editors write
//! in several steps and ConfigMaps replace a symlink. Some mounts send no notifications at all,
//! so the directory is also polled.

mod directory;

pub use directory::read_policy_directory;

use super::deploy::{Deploy, DeployError};
use directory::{Candidate, read_all, stamps};
use nova_model::artifact::Digest;
use nova_policy::admission::MODULE_MISSING;
use nova_support::watch::DirectoryChanges;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Time between two reads of a directory. Both must give the same content before it is
/// published.
const REREAD_AFTER: Duration = Duration::from_millis(200);
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

/// A directory that needs no further work until its content changes.
struct Handled {
    fingerprint: Digest,
    /// Time of the next attempt without a change, if one may succeed.
    again: Option<Instant>,
}

impl Handled {
    fn holds_for(&self, candidate: &Candidate) -> bool {
        self.fingerprint == candidate.fingerprint
            && self.again.is_none_or(|again| Instant::now() < again)
    }
}

/// Publishes the policies that appear in `directory`, until the host ends.
pub async fn watch(deploy: Arc<Deploy>, directory: PathBuf, report: WatchReport) {
    let mut changes = DirectoryChanges::watch(&directory, |_| true)
        .inspect_err(|error| tracing::warn!(%error, "could not watch the policies directory for notifications; polling it"))
        .unwrap_or_default();
    let mut handled = HashMap::<String, Handled>::new();
    let (mut quiet, mut read_at) = (None, Instant::now());
    loop {
        let stamps = stamps(&directory).await;
        // Without this check an idle host would spend most of its work on reading and hashing
        // twenty interpreters every two seconds.
        if quiet.as_ref() != Some(&stamps) || read_at.elapsed() >= READ_AGAIN {
            let unchanged = sweep(&deploy, &directory, &report, &mut handled).await;
            quiet = unchanged.then_some(stamps);
            read_at = Instant::now();
        }
        tokio::select! {
            () = changes.changed() => tokio::time::sleep(REREAD_AFTER).await,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}

/// Checks all sub-directories once and publishes those that are new or changed and no longer
/// changing. Returns true if none was new or changed.
async fn sweep(
    deploy: &Deploy,
    directory: &Path,
    report: &WatchReport,
    handled: &mut HashMap<String, Handled>,
) -> bool {
    let first = read_all(directory).await;
    let is_handled = |handled: &HashMap<String, Handled>, candidate: &Candidate| {
        let handled = handled.get(&candidate.name);
        handled.is_some_and(|handled| handled.holds_for(candidate))
    };
    let changed = first
        .iter()
        .any(|candidate| !is_handled(handled, candidate));
    handled.retain(|name, _| first.iter().any(|candidate| candidate.name == *name));
    report.keep_only(&first);
    if !changed {
        return true;
    }
    tokio::time::sleep(REREAD_AFTER).await;
    for candidate in read_all(directory).await {
        let held_still = first.iter().any(|before| {
            before.name == candidate.name && before.fingerprint == candidate.fingerprint
        });
        if !held_still || is_handled(handled, &candidate) {
            continue;
        }
        if let Some(outcome) = publish(deploy, &candidate, report).await {
            let again = (outcome == Outcome::Waits).then(|| Instant::now() + RETRY_AFTER);
            let fingerprint = candidate.fingerprint;
            handled.insert(candidate.name, Handled { fingerprint, again });
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
        Err(DeployError::Conflict(_) | DeployError::Overtaken(_) | DeployError::Busy) => {
            return None;
        }
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
