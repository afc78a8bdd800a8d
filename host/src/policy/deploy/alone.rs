//! What a host does while the registry is away, and how it settles that when the registry returns.

use super::{Deploy, DeployError, Reach};
use crate::clock::unix_ms;
use crate::metrics::METRICS;
use crate::policy::audit::AuditPage;
use crate::policy::local::{Intent, LocalChange, LocalChanges, Since, reconciled};
use crate::policy::registry::{Change, RegistryError, RegistryState};
use tokio::sync::MutexGuard;
use uuid::Uuid;

/// Entries of the audit log that are read at once.
const AUDIT_PAGE: u32 = 500;
/// Other hosts that settle theirs at the same time get in the way now and then.
const SETTLE_ATTEMPTS: u32 = 16;

impl Deploy {
    /// One change at a time, and what this host did alone comes first.
    pub(super) async fn begin_change(&self) -> MutexGuard<'_, ()> {
        let changing = self.changing.lock().await;
        if self.is_ahead()
            && let Err(error) = self.settle_local_changes().await
        {
            tracing::debug!(error = format!("{error:#}"), "local changes wait");
        }
        changing
    }

    /// Whether this host did something that the registry does not know yet.
    pub(super) fn is_ahead(&self) -> bool {
        let local = self.registry.local_changes();
        local.is_some_and(|local| !local.is_empty())
    }

    /// What this host did alone and the registry does not know yet, oldest first.
    pub fn local_changes(&self) -> Vec<LocalChange> {
        let local = self.registry.local_changes();
        local.map(LocalChanges::list).unwrap_or_default()
    }

    /// Records a change in the registry, or on this host's disk while the registry is away. When this
    /// returns, this host serves by it.
    pub(super) async fn carry_out_or_keep(
        &self,
        change: Change,
        intent: Intent,
        actor: &str,
    ) -> Result<Reach, DeployError> {
        match (
            self.carry_out(change.clone(), actor).await,
            self.registry.local_changes(),
        ) {
            (Err(DeployError::Unavailable(cause)), Some(local)) => {
                tracing::warn!(
                    cause = format!("{cause:#}"),
                    action = change.action(),
                    subject = change.subject(),
                    actor,
                    "the registry does not answer: changed on this host alone"
                );
                self.keep(local, &change, intent, actor).await?;
                Ok(Reach::ThisHost)
            }
            (done, _) => done.map(|()| Reach::Everywhere),
        }
    }

    async fn keep(
        &self,
        local: &LocalChanges,
        change: &Change,
        intent: Intent,
        actor: &str,
    ) -> Result<(), DeployError> {
        let mut state = self.serving().state.clone();
        let kept = LocalChange {
            id: Uuid::now_v7(),
            host: local.host.clone(),
            intent,
            actor: actor.to_owned(),
            made_at_ms: unix_ms(),
            base_revision: state.revision,
        };
        let kept = local.add(kept).await;
        kept.map_err(|error| {
            DeployError::Unavailable(
                error.context("the registry does not answer, and on this host's disk"),
            )
        })?;
        state.apply(change);
        self.serve(state).await.map_err(DeployError::Recorded)
    }

    /// The registry's state with what this host did alone.
    pub(super) fn with_local_changes(&self, mut state: RegistryState) -> RegistryState {
        for local in self.local_changes() {
            // What does not hold any more is dropped as soon as the registry can be told.
            if let Ok(change) = local.intent.on(&state) {
                state.apply(&change);
            }
        }
        state
    }

    /// Carries out in the registry what this host did alone, in its order, or drops it there.
    pub(super) async fn settle_local_changes(&self) -> anyhow::Result<()> {
        let Some(local) = self.registry.local_changes() else {
            return Ok(());
        };
        while let Some(change) = local.first() {
            self.settle(&change).await?;
            local.remove(change.id).await?;
        }
        self.refresh().await
    }

    async fn settle(&self, local: &LocalChange) -> Result<(), RegistryError> {
        for _ in 0..SETTLE_ATTEMPTS {
            let since = self.since(local).await?;
            if since.is_settled {
                return Ok(());
            }
            let state = self.registry.load().await?;
            if state.revision > since.revision {
                continue;
            }
            let change = reconciled(local, &state, &since);
            match self
                .registry
                .apply(&change, &local.actor, state.revision)
                .await
            {
                Err(RegistryError::Conflict(_)) => {}
                Err(error) => return Err(error),
                Ok(_) => {
                    report(local, &change);
                    return Ok(());
                }
            }
        }
        let busy = anyhow::anyhow!("other hosts keep changing the registry");
        Err(RegistryError::Unavailable(busy))
    }

    /// The registry's log from where this host knew it.
    async fn since(&self, local: &LocalChange) -> Result<Since, RegistryError> {
        let mut since = Since::new(local.base_revision);
        loop {
            let page = AuditPage::After(since.revision);
            let entries = self.registry.audit(page, AUDIT_PAGE).await?;
            for entry in &entries {
                since.read(local, entry);
            }
            if entries.is_empty() {
                return Ok(since);
            }
        }
    }
}

fn report(local: &LocalChange, change: &Change) {
    let (action, subject) = (change.action(), change.subject());
    let outcome = match change {
        Change::Dropped { why, .. } => {
            tracing::warn!(
                subject,
                actor = local.actor,
                why,
                "a local change was dropped"
            );
            "dropped"
        }
        _ => {
            tracing::info!(
                action,
                subject,
                actor = local.actor,
                "a local change holds everywhere"
            );
            "applied"
        }
    };
    METRICS
        .registry_local_changes_settled_total
        .with_label_values(&[outcome])
        .inc();
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::experiments::spec::{ExperimentSpec, ExperimentState};
    use crate::policy::artifact::PolicyRef;
    use crate::policy::audit::{AuditEntry, verify};
    use crate::policy::registry::Registry as _;
    use crate::policy::testing::{Fleet, active};
    use serde_json::json;
    use std::sync::Arc;

    const BASELINE: &str = "baseline@1.0.0";
    const TIMELINE: &str = "timeline@1.0.0";
    const DIVERSITY: &str = "decay-diversity@1.0.0";

    fn policy(name: &str) -> PolicyRef {
        name.parse().unwrap()
    }

    async fn activate(host: &Deploy, name: &str, actor: &str) {
        host.activate(&policy(name), actor).await.unwrap();
    }

    async fn roll_back(host: &Deploy) -> Reach {
        host.rollback("bad", None, "ada").await.unwrap().1
    }

    /// A host that is cut off while the timeline is active, after the baseline.
    async fn cut_off_host(fleet: &Fleet) -> Arc<Deploy> {
        let host = fleet.host("here").await;
        activate(&host, TIMELINE, "ada").await;
        fleet.cut_off("here", true);
        host
    }

    /// The registry answers again, and the host saw it.
    async fn returned(fleet: &Fleet, host: &Deploy) {
        fleet.cut_off("here", false);
        drop(host.begin_change().await);
        assert!(!host.is_ahead());
    }

    async fn newest(fleet: &Fleet) -> AuditEntry {
        let log = fleet.log().await;
        verify(&log).unwrap();
        log.last().unwrap().clone()
    }

    #[tokio::test]
    async fn a_rollback_while_the_registry_is_away_is_in_force_at_once_and_everywhere_when_it_returns()
     {
        let fleet = Fleet::new().await;
        let host = cut_off_host(&fleet).await;
        assert_eq!(roll_back(&host).await, Reach::ThisHost);
        assert_eq!(active(&host), BASELINE);
        assert_eq!(host.local_changes().len(), 1);
        let elsewhere = fleet.host("there").await;
        assert_eq!(active(&elsewhere), TIMELINE);
        returned(&fleet, &host).await;
        assert_eq!(active(&host), BASELINE);
        let state = fleet.registry.load().await.unwrap();
        assert_eq!(state.activations, [policy(BASELINE)]);
        let entry = newest(&fleet).await;
        assert_eq!(
            (entry.action.as_str(), entry.actor.as_str()),
            ("rollback", "ada")
        );
        assert_eq!(entry.detail["reason"], "bad");
        assert_eq!(entry.detail["local"]["host"], "here");
        assert!(entry.detail["local"]["made_at"].is_string());
    }

    #[tokio::test]
    async fn a_restart_without_the_registry_forgets_no_local_change() {
        let fleet = Fleet::new().await;
        let host = cut_off_host(&fleet).await;
        roll_back(&host).await;
        drop(host);
        let host = fleet.host("here").await;
        assert_eq!(active(&host), BASELINE);
        fleet.cut_off("here", false);
        drop(host);
        let host = fleet.host("here").await;
        assert!(!host.is_ahead());
        assert_eq!(active(&host), BASELINE);
        assert_eq!(newest(&fleet).await.action, "rollback");
    }

    #[tokio::test]
    async fn without_the_registry_nothing_is_activated_and_the_error_says_what_works() {
        let fleet = Fleet::new().await;
        let host = cut_off_host(&fleet).await;
        roll_back(&host).await;
        let refused = host.activate(&policy(TIMELINE), "ada").await.unwrap_err();
        let DeployError::Unavailable(cause) = refused else {
            panic!("{refused:?}");
        };
        assert!(cause.downcast_ref::<super::super::Away>().is_some());
        assert_eq!(active(&host), BASELINE);
    }

    #[tokio::test]
    async fn rollbacks_made_alone_are_carried_out_in_their_order() {
        let fleet = Fleet::new().await;
        let host = fleet.host("here").await;
        activate(&host, DIVERSITY, "ada").await;
        activate(&host, TIMELINE, "ada").await;
        fleet.cut_off("here", true);
        roll_back(&host).await;
        assert_eq!(active(&host), DIVERSITY);
        roll_back(&host).await;
        assert_eq!(active(&host), BASELINE);
        returned(&fleet, &host).await;
        let log = fleet.log().await;
        let subjects: Vec<&str> = log
            .iter()
            .rev()
            .take(2)
            .map(|e| e.subject.as_str())
            .collect();
        assert_eq!(subjects, [DIVERSITY, TIMELINE]);
        assert_eq!(
            fleet.registry.load().await.unwrap().activations,
            [policy(BASELINE)]
        );
    }

    #[tokio::test]
    async fn a_rollback_made_alone_undoes_nobody_who_acted_meanwhile() {
        for again in [DIVERSITY, TIMELINE] {
            let fleet = Fleet::new().await;
            let host = cut_off_host(&fleet).await;
            roll_back(&host).await;
            let elsewhere = fleet.host("there").await;
            // Bob rolled back as well, and what he activated then is what he wants; the same policy too.
            elsewhere.rollback("bad", None, "bob").await.unwrap();
            activate(&elsewhere, again, "bob").await;
            returned(&fleet, &host).await;
            assert_eq!(active(&host), again);
            let entry = newest(&fleet).await;
            assert_eq!(
                (entry.action.as_str(), entry.actor.as_str()),
                ("dropped", "ada")
            );
            let why = entry.detail["why"].as_str().unwrap();
            assert!(
                why.starts_with("bob rolled timeline@1.0.0 back meanwhile"),
                "{why}"
            );
        }
    }

    #[tokio::test]
    async fn of_two_hosts_that_rolled_back_alone_one_is_heard_and_both_are_in_the_log() {
        let fleet = Fleet::new().await;
        let host = fleet.host("here").await;
        activate(&host, DIVERSITY, "ada").await;
        activate(&host, TIMELINE, "ada").await;
        let other = fleet.host("there").await;
        for name in ["here", "there"] {
            fleet.cut_off(name, true);
        }
        roll_back(&host).await;
        other.rollback("bad", None, "bob").await.unwrap();
        fleet.cut_off("there", false);
        drop(other.begin_change().await);
        returned(&fleet, &host).await;
        assert_eq!(active(&host), DIVERSITY);
        let log = fleet.log().await;
        let newest: Vec<_> = log
            .iter()
            .rev()
            .take(2)
            .map(|e| (e.action.as_str(), e.actor.as_str()))
            .collect();
        assert_eq!(newest, [("dropped", "ada"), ("rollback", "bob")]);
    }

    fn experiment() -> ExperimentSpec {
        serde_json::from_value(json!({"variations": [
            {"key": "a", "weight": 0.5, "policy": BASELINE}, {"key": "b", "weight": 0.5, "policy": TIMELINE}],
            "coverage": 0.1}))
        .unwrap()
    }

    #[tokio::test]
    async fn an_experiment_stopped_alone_is_stopped_whatever_else_became_of_it() {
        let fleet = Fleet::new().await;
        let host = fleet.host("here").await;
        host.put_experiment("e", experiment(), "ada").await.unwrap();
        let running = ExperimentState::Running;
        host.set_experiment_state("e", running, "ada")
            .await
            .unwrap();
        fleet.cut_off("here", true);
        let stopped = host
            .set_experiment_state("e", ExperimentState::Stopped, "ada")
            .await;
        assert_eq!(stopped.unwrap().1, Reach::ThisHost);
        assert!(host.serving().experiments.is_empty());
        let paused = host
            .set_experiment_state("e", ExperimentState::Paused, "ada")
            .await;
        assert!(
            matches!(paused, Err(DeployError::Conflict(_))),
            "{paused:?}"
        );
        let elsewhere = fleet.host("there").await;
        let grown = ExperimentSpec {
            coverage: 0.5,
            ..experiment()
        };
        elsewhere.put_experiment("e", grown, "bob").await.unwrap();
        returned(&fleet, &host).await;
        let now = fleet.registry.load().await.unwrap().experiments["e"].clone();
        assert_eq!(
            (now.state, now.spec.coverage),
            (ExperimentState::Stopped, 0.5)
        );
    }

    #[tokio::test]
    async fn a_host_that_ends_before_it_notes_a_settled_change_does_not_make_it_twice() {
        let fleet = Fleet::new().await;
        let host = fleet.host("here").await;
        activate(&host, DIVERSITY, "ada").await;
        activate(&host, TIMELINE, "ada").await;
        fleet.cut_off("here", true);
        roll_back(&host).await;
        let file = fleet.data_dir("here").join("registry/local_changes.json");
        let before = std::fs::read(&file).unwrap();
        returned(&fleet, &host).await;
        activate(&host, TIMELINE, "bob").await;
        let entries = fleet.log().await.len();
        drop(host);
        std::fs::write(&file, before).unwrap();
        let host = fleet.host("here").await;
        assert!(!host.is_ahead());
        assert_eq!(active(&host), TIMELINE);
        assert_eq!(fleet.log().await.len(), entries);
    }

    #[tokio::test]
    async fn a_damaged_file_of_local_changes_is_put_aside_and_the_host_starts() {
        let fleet = Fleet::new().await;
        let host = cut_off_host(&fleet).await;
        roll_back(&host).await;
        drop(host);
        let file = fleet.data_dir("here").join("registry/local_changes.json");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("rollback", "rollbock")).unwrap();
        let host = fleet.host("here").await;
        assert_eq!(active(&host), TIMELINE);
        assert!(file.with_extension("damaged").is_file());
    }
}
