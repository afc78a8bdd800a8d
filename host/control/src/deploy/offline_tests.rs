//! Tests of hosts that lose the connection to their registry and get it back.

use super::{Deploy, DeployError, Scope};
use crate::offline::RegistryUnavailable;
use crate::testing::{Fleet, active};
use nova_model::artifact::PolicyRef;
use nova_model::audit::{AuditEntry, verify};
use nova_model::experiments::spec::{ExperimentSpec, ExperimentState};
use nova_stores::ports::registry::Registry as _;
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

async fn roll_back(host: &Deploy) -> Scope {
    host.rollback("bad", None, "ada").await.unwrap().1
}

/// A host that loses the registry while the timeline is active and the baseline was active
/// before.
async fn cut_off_host(fleet: &Fleet) -> Arc<Deploy> {
    let host = fleet.host("here").await;
    activate(&host, TIMELINE, "ada").await;
    fleet.cut_off("here", true);
    host
}

/// Restores the connection and lets the host notice it.
async fn returned(fleet: &Fleet, host: &Deploy) {
    fleet.cut_off("here", false);
    drop(host.begin_change().await);
    host.look_and_load().await.unwrap();
    assert!(!host.offline.is_ahead());
}

async fn newest(fleet: &Fleet) -> AuditEntry {
    let log = fleet.log().await;
    verify(&log).unwrap();
    log.last().unwrap().clone()
}

#[tokio::test]
async fn an_offline_rollback_applies_here_at_once_and_everywhere_when_the_registry_returns() {
    let fleet = Fleet::new().await;
    let host = cut_off_host(&fleet).await;
    assert_eq!(roll_back(&host).await, Scope::ThisHost);
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
async fn a_host_in_a_known_outage_does_not_ask_the_registry_and_reconciles_when_it_returns() {
    let fleet = Fleet::new().await;
    let host = fleet.host("here").await;
    activate(&host, TIMELINE, "ada").await;
    host.offline.set_unavailable(true);
    assert_eq!(roll_back(&host).await, Scope::ThisHost);
    let following = tokio::spawn(host.clone().follow_registry());
    while host.offline.is_ahead() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(newest(&fleet).await.action, "rollback");
    activate(&host, TIMELINE, "ada").await;
    assert_eq!(roll_back(&host).await, Scope::Everywhere);
    following.abort();
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
    assert!(!host.offline.is_ahead());
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
    assert!(cause.downcast_ref::<RegistryUnavailable>().is_some());
    assert_eq!(active(&host), BASELINE);
}

#[tokio::test]
async fn offline_rollbacks_are_applied_to_the_registry_in_order() {
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
async fn an_offline_rollback_is_dropped_if_another_operator_acted_meanwhile() {
    for again in [DIVERSITY, TIMELINE] {
        let fleet = Fleet::new().await;
        let host = cut_off_host(&fleet).await;
        roll_back(&host).await;
        let elsewhere = fleet.host("there").await;
        // Bob rolls back as well. The policy that he activates afterwards is his decision and
        // must stay active, even if it is the same policy as before.
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
async fn two_hosts_that_rolled_back_offline_record_one_rollback_and_one_drop() {
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
async fn an_experiment_stopped_offline_stays_stopped_despite_other_changes() {
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
    assert_eq!(stopped.unwrap().1, Scope::ThisHost);
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
async fn a_host_that_stops_before_it_removes_a_reconciled_change_does_not_apply_it_twice() {
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
    assert!(!host.offline.is_ahead());
    assert_eq!(active(&host), TIMELINE);
    assert_eq!(fleet.log().await.len(), entries);
}

#[tokio::test]
async fn a_damaged_file_of_local_changes_is_renamed_and_the_host_starts() {
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

/// Quarantines the timeline, which takes part in a running experiment.
async fn quarantine(host: &Deploy, actor: &str) -> Scope {
    let quarantined = host.quarantine(&policy(TIMELINE), "traps", actor).await;
    quarantined.unwrap().1
}

#[tokio::test]
async fn an_offline_quarantine_survives_a_restart_and_applies_everywhere_with_its_consequences() {
    let fleet = Fleet::new().await;
    let host = fleet.host("here").await;
    host.put_experiment("e", experiment(), "ada").await.unwrap();
    let running = ExperimentState::Running;
    host.set_experiment_state("e", running, "ada")
        .await
        .unwrap();
    activate(&host, TIMELINE, "ada").await;
    fleet.cut_off("here", true);
    assert_eq!(quarantine(&host, "ada").await, Scope::ThisHost);
    assert_eq!(active(&host), BASELINE);
    drop(host);
    let host = fleet.host("here").await;
    assert_eq!(active(&host), BASELINE);
    let offline = host.serving().state.clone();
    assert_eq!(offline.experiments["e"].state, ExperimentState::Paused);
    returned(&fleet, &host).await;
    let state = fleet.registry.load().await.unwrap();
    assert_eq!(state.quarantined, offline.quarantined);
    assert_eq!(state.activations, offline.activations);
    assert_eq!(state.experiments["e"].state, ExperimentState::Paused);
    let log = fleet.log().await;
    verify(&log).unwrap();
    let quarantined = log.iter().find(|entry| entry.action == "quarantine");
    let quarantined = quarantined.unwrap();
    assert_eq!(quarantined.actor, "ada");
    assert!(quarantined.detail["local"].is_object());
}

#[tokio::test]
async fn an_offline_rollback_after_an_offline_quarantine_goes_one_step_further_everywhere() {
    let fleet = Fleet::new().await;
    let host = fleet.host("here").await;
    activate(&host, DIVERSITY, "ada").await;
    activate(&host, TIMELINE, "ada").await;
    fleet.cut_off("here", true);
    quarantine(&host, "ada").await;
    assert_eq!(active(&host), DIVERSITY);
    assert_eq!(roll_back(&host).await, Scope::ThisHost);
    assert_eq!(active(&host), BASELINE);
    returned(&fleet, &host).await;
    assert_eq!(active(&host), BASELINE);
    let state = fleet.registry.load().await.unwrap();
    assert_eq!(state.activations, [policy(BASELINE)]);
    assert_eq!(newest(&fleet).await.subject, DIVERSITY);
}

#[tokio::test]
async fn a_quarantine_that_another_host_made_already_is_dropped() {
    let fleet = Fleet::new().await;
    let host = cut_off_host(&fleet).await;
    let elsewhere = fleet.host("there").await;
    assert_eq!(quarantine(&host, "ada").await, Scope::ThisHost);
    assert_eq!(quarantine(&elsewhere, "bob").await, Scope::Everywhere);
    returned(&fleet, &host).await;
    let entry = newest(&fleet).await;
    assert_eq!(
        (entry.action.as_str(), entry.actor.as_str()),
        ("dropped", "ada")
    );
    assert_eq!(host.serving().state.quarantined.len(), 1);
}

#[tokio::test]
async fn a_host_follows_a_restored_registry_that_has_the_same_revision_with_another_state() {
    let [fleet, restored] = [Fleet::new().await, Fleet::new().await];
    let host = cut_off_host(&fleet).await;
    activate(&*restored.host("other").await, DIVERSITY, "bob").await;
    fleet.restore(&restored);
    let revision = fleet.registry.revision().await.unwrap();
    assert_eq!(restored.registry.revision().await.unwrap(), revision);
    fleet.cut_off("here", false);
    assert_eq!(active(&host), TIMELINE);
    host.look_and_load().await.unwrap();
    assert_eq!(active(&host), DIVERSITY);
    // Also after a restart without the registry, once the state is saved.
    host.save_state().await;
    drop(host);
    fleet.cut_off("here", true);
    assert_eq!(active(&*fleet.host("here").await), DIVERSITY);
}
