//! `nova serve --watch` and `nova demo --watch`: rebuild a policy whenever it is saved, activate
//! it, and show the new order. If the build or the admission fails, only the terminal shows it.

use super::{output, table};
use crate::app::App;
use crate::feed::preview::{Preview, PreviewPost};
use anyhow::{Context as _, anyhow};
use nova_control::deploy::{DeployError, Published};
use nova_control::watcher::read_policy_directory;
use nova_policy::loaded::LoadedPolicy;
use nova_policy::project::sources::{Sources, change_code, is_source};
use nova_policy::project::{Project, Purpose};
use nova_support::watch::DirectoryChanges;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;

/// Interval between two reads of the sources. Editors write in several steps, so the sources
/// must read the same twice.
const SETTLE: Duration = Duration::from_millis(50);
/// Polling interval. Some mounts send no notifications of changes.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
const ACTOR: &str = "watch";
const POSTS_SHOWN: u32 = 10;
/// Viewer whose feed is shown on a host that has no active viewers yet.
const ANY_VIEWER: u64 = 1;

#[derive(Debug, Clone, clap::Args)]
pub struct WatchArguments {
    /// Directory of a policy: rebuilds it on every save, activates it, and shows the new order.
    #[arg(long, value_name = "CRATE")]
    watch: Option<PathBuf>,
    /// Viewer whose feed --watch shows [default: the most active viewer]
    #[arg(long, value_name = "ID", requires = "watch")]
    watch_user: Option<u64>,
}

impl WatchArguments {
    /// Opens the policy to watch, if one was named.
    ///
    /// # Errors
    /// The directory contains no policy.
    pub fn open(&self) -> anyhow::Result<Option<Watched>> {
        let Some(directory) = &self.watch else {
            return Ok(None);
        };
        Ok(Some(Watched {
            project: Project::open(directory)?,
            viewer: self.watch_user,
        }))
    }
}

/// A policy that a host will follow.
#[derive(Debug)]
pub struct Watched {
    project: Project,
    viewer: Option<u64>,
}

impl Watched {
    /// Follows the policy until the host ends. Must be called within the host's runtime.
    pub fn start(self, app: &Arc<App>) {
        let Self { project, viewer } = self;
        let app = app.clone();
        tokio::spawn(
            Watch {
                app,
                project,
                viewer,
            }
            .run(),
        );
    }
}

#[derive(Debug)]
struct Watch {
    app: Arc<App>,
    project: Project,
    /// Viewer whose feed is shown. `None` selects the most active viewer.
    viewer: Option<u64>,
}

impl Watch {
    /// Follows the sources until the host ends.
    async fn run(self) {
        let mut changes = watch_sources(&self.project.directory);
        let mut followed = Sources::default();
        let mut built = None;
        loop {
            match self.settled().await {
                Err(error) => say(&format!("{error:#}")),
                Ok(sources) => {
                    let changed = sources.changed_since(&followed);
                    if !changed.is_empty() {
                        if change_code(&changed) {
                            built = None;
                        }
                        // The first read finds files that existed before the host started, so
                        // they were not just saved.
                        let first = followed == Sources::default();
                        let since = Since(sources.saved_at(&changed).filter(|_| !first));
                        if let Err(error) = self.follow(&mut built, since).await {
                            let active = &self.app.deploy.serving().active.spec.policy;
                            say(&format!("{active} goes on serving: {error:#}"));
                        }
                        followed = sources;
                    }
                }
            }
            tokio::select! {
                () = changes.changed() => {}
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
        }
    }

    async fn settled(&self) -> anyhow::Result<Sources> {
        let mut before = Sources::read(&self.project.directory)?;
        loop {
            tokio::time::sleep(SETTLE).await;
            let now = Sources::read(&self.project.directory)?;
            if now == before {
                return Ok(now);
            }
            before = now;
        }
    }

    /// Builds the sources, publishes and activates the policy, and shows the new order.
    async fn follow(&self, built: &mut Option<Vec<u8>>, since: Since) -> anyhow::Result<()> {
        let bytes = match built {
            Some(bytes) => bytes.clone(),
            None => {
                let bytes = build(&self.project).await?;
                say(&format!("{} is built{since}", self.project.name));
                built.insert(bytes).clone()
            }
        };
        let before = self.app.deploy.serving().active.clone();
        let published = self.publish(bytes).await?;
        if !published.new {
            say(&format!("{} is unchanged", published.policy));
            return Ok(());
        }
        say(&format!("{} is active{since}", published.policy));
        self.show(before, since).await
    }

    async fn publish(&self, bytes: Vec<u8>) -> anyhow::Result<Published> {
        let module = self.project.module_file();
        let mut files =
            read_policy_directory(&self.project.directory).map_err(anyhow::Error::msg)?;
        if !files.manifest.contains(&module) {
            return Err(anyhow!(
                "policy.toml has no stage with module = \"{module}\""
            ));
        }
        files.modules.insert(module, bytes);
        files.manifest = following(&files.manifest)?;
        self.app
            .deploy
            .publish(files, ACTOR)
            .await
            .map_err(|error| match error {
                DeployError::Refused(refusal) => {
                    anyhow!("refused:\n  {}", refusal.messages().join("\n  "))
                }
                other => other.into(),
            })
    }

    /// Shows one viewer's first posts, with their positions under the previous policy.
    async fn show(&self, before: Arc<LoadedPolicy>, since: Since) -> anyhow::Result<()> {
        let viewer = match self.viewer {
            Some(viewer) => viewer,
            None => self.some_viewer().await?,
        };
        let preview = Preview::fetch(&self.app.feed, viewer, POSTS_SHOWN).await?;
        let active = self.app.deploy.serving().active.clone();
        let now = preview
            .ranked_by(&self.app.feed, active.clone())
            .await
            .context("the new policy fails, so viewers are served by the fallback chain")?;
        // The previous policy may fail here, and the edit may have fixed that.
        let before = preview.ranked_by(&self.app.feed, before).await;
        let before = before.unwrap_or_default().posts;
        say(&format!("viewer {viewer} now sees{since}"));
        show_in_terminal(order_table(&before, &now.posts));
        let deadline = Duration::from_millis(active.spec.limits.deadline_ms.into());
        if now.took > deadline {
            say(&format!(
                "the ranking took {} ms, but the deadline is {} ms: viewers would be served by another policy",
                now.took.as_millis(),
                deadline.as_millis()
            ));
        }
        Ok(())
    }

    async fn some_viewer(&self) -> anyhow::Result<u64> {
        let active = self.app.stores.exposures.active_viewers(0, 1).await?;
        Ok(active.first().copied().unwrap_or(ANY_VIEWER))
    }
}

/// Time since a save.
#[derive(Debug, Clone, Copy)]
struct Since(Option<SystemTime>);

impl std::fmt::Display for Since {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.and_then(|saved| saved.elapsed().ok()) {
            Some(elapsed) => write!(f, ", {:.1} s after the save", elapsed.as_secs_f64()),
            None => Ok(()),
        }
    }
}

fn say(line: &str) {
    show_in_terminal(format!("watch: {line}\n"));
}

/// A terminal that is gone must not end the host.
fn show_in_terminal(text: String) {
    let _ = output::text(text);
}

/// Builds on a separate thread, so that a host that is asked to stop does not wait for a
/// compiler.
async fn build(project: &Project) -> anyhow::Result<Vec<u8>> {
    let (send, receive) = oneshot::channel();
    let project = project.clone();
    std::thread::Builder::new()
        .name("policy-build".into())
        .spawn(move || {
            let built = project.build(Purpose::Watching, &|step| {
                say(&format!("{}: {step}", project.name));
            });
            let _ = send.send(built);
        })?;
    Ok(receive.await??)
}

/// Returns the manifest with `follow = true`. The author's file stays unchanged.
fn following(manifest: &str) -> anyhow::Result<String> {
    let mut table: toml::Table = manifest.parse()?;
    table.insert("follow".into(), true.into());
    Ok(toml::to_string(&table)?)
}

fn order_table(before: &[PreviewPost], now: &[PreviewPost]) -> String {
    let was = |post: &PreviewPost| {
        let place = before
            .iter()
            .position(|other| other.post_id == post.post_id);
        place.map_or_else(|| "–".to_owned(), |place| (place + 1).to_string())
    };
    let rows = now.iter().enumerate().map(|(place, post)| {
        [
            (place + 1).to_string(),
            was(post),
            post.post_id.to_string(),
            post.author_id.to_string(),
            format!("{:.1}", post.age_hours),
            format!("{:.4}", post.score),
        ]
    });
    let header = ["place", "was", "post", "author", "age_hours", "score"];
    table::render(header, &rows.collect::<Vec<_>>())
}

/// Returns true if one of the paths is a source below `root`.
fn has_source(root: &Path, paths: &[PathBuf]) -> bool {
    paths.iter().any(|path| {
        let inner = path.strip_prefix(root).unwrap_or(path);
        inner
            .ancestors()
            .filter(|part| part.file_name().is_some())
            .all(is_source)
    })
}

fn watch_sources(directory: &Path) -> DirectoryChanges {
    let root = directory.to_owned();
    DirectoryChanges::watch(directory, move |paths| has_source(&root, paths))
        .inspect_err(|error| tracing::warn!(%error, "could not watch the policy's directory; polling it instead"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(post_id: u64, score: f32) -> PreviewPost {
        PreviewPost {
            post_id,
            author_id: 7,
            age_hours: 1.5,
            score,
        }
    }

    #[test]
    fn the_table_shows_the_previous_position_of_each_post() {
        let before = [post(1, 3.0), post(2, 2.0)];
        let now = [post(2, 2.5), post(3, 1.0)];
        assert_eq!(
            order_table(&before, &now),
            "place  was  post  author  age_hours  score\n\
             1      2    2     7       1.5        2.5000\n\
             2      –    3     7       1.5        1.0000\n"
        );
    }
}
