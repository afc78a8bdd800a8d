//! Notifications of changes below a directory. Some mounts send none, so a caller also polls.

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// Changes below one directory, watched until this is dropped. The default value never reports
/// any, for a directory that cannot be watched.
#[derive(Debug, Default)]
pub struct DirectoryChanges(Option<Watching>);

#[derive(Debug)]
struct Watching {
    changes: mpsc::Receiver<()>,
    /// Holds the sender of `changes`.
    _watcher: RecommendedWatcher,
}

impl DirectoryChanges {
    /// Watches a directory. `counts` gets the paths of an event and decides if it is reported.
    /// Events of pure reads are never reported, because the caller's own reads would trigger it
    /// forever.
    ///
    /// # Errors
    /// Fails if the system cannot watch the directory.
    pub fn watch(
        directory: &Path,
        counts: impl Fn(&[PathBuf]) -> bool + Send + 'static,
    ) -> anyhow::Result<Self> {
        // One pending notification is enough, because a caller reads everything again.
        let (changed, changes) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<_>| {
            let is_reported = event.map_or(true, |event: notify::Event| {
                !event.kind.is_access() && counts(&event.paths)
            });
            if is_reported {
                let _ = changed.try_send(());
            }
        })?;
        watcher.watch(directory, RecursiveMode::Recursive)?;
        Ok(Self(Some(Watching {
            changes,
            _watcher: watcher,
        })))
    }

    /// Returns when something changed since the last call.
    pub async fn changed(&mut self) {
        match &mut self.0 {
            Some(watching) => drop(watching.changes.recv().await),
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and waits for a notification"
)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_write_that_counts_is_reported_and_a_read_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let (counted, ignored) = (directory.path().join("a"), directory.path().join("b"));
        std::fs::write(&counted, "before").unwrap();
        let heeded = counted.clone();
        let mut changes =
            DirectoryChanges::watch(directory.path(), move |paths| paths.contains(&heeded))
                .unwrap();
        std::fs::read(&counted).unwrap();
        std::fs::write(&ignored, "now").unwrap();
        let wait = Duration::from_millis(200);
        assert!(timeout(wait, changes.changed()).await.is_err());
        std::fs::write(&counted, "now").unwrap();
        let wait = Duration::from_secs(10);
        assert!(timeout(wait, changes.changed()).await.is_ok());
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_watched_is_an_error_and_the_default_stays_silent() {
        assert!(DirectoryChanges::watch(Path::new("/does/not/exist"), |_| true).is_err());
        let mut none = DirectoryChanges::default();
        let wait = Duration::from_millis(10);
        assert!(timeout(wait, none.changed()).await.is_err());
    }
}
