//! Hosts that are cut off from their registry, and come back.

use super::{Deploy, DeployError, Reach};
use crate::experiments::spec::{ExperimentSpec, ExperimentState};
use crate::policy::artifact::PolicyRef;
use crate::policy::audit::{AuditEntry, verify};
use crate::policy::last_good::Away;
use crate::policy::registry::Registry as _;
use crate::policy::testing::{Fleet, active};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;

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
async fn a_host_that_knows_of_an_outage_does_not_ask_and_settles_as_soon_as_it_sees_the_end() {
    let fleet = Fleet::new().await;
    let host = fleet.host("here").await;
    activate(&host, TIMELINE, "ada").await;
    host.away.store(true, Ordering::Release);
    assert_eq!(roll_back(&host).await, Reach::ThisHost);
    let following = tokio::spawn(host.clone().follow_registry());
    while host.is_ahead() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(newest(&fleet).await.action, "rollback");
    activate(&host, TIMELINE, "ada").await;
    assert_eq!(roll_back(&host).await, Reach::Everywhere);
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
    assert!(cause.downcast_ref::<Away>().is_some());
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

/// The timeline, which takes part in a running experiment.
async fn quarantine(host: &Deploy, actor: &str) -> Reach {
    let quarantined = host.quarantine(&policy(TIMELINE), "traps", actor).await;
    quarantined.unwrap().1
}

#[tokio::test]
async fn a_quarantine_made_alone_survives_a_restart_and_holds_everywhere_with_what_follows_from_it()
{
    let fleet = Fleet::new().await;
    let host = fleet.host("here").await;
    host.put_experiment("e", experiment(), "ada").await.unwrap();
    let running = ExperimentState::Running;
    host.set_experiment_state("e", running, "ada")
        .await
        .unwrap();
    activate(&host, TIMELINE, "ada").await;
    fleet.cut_off("here", true);
    assert_eq!(quarantine(&host, "ada").await, Reach::ThisHost);
    assert_eq!(active(&host), BASELINE);
    drop(host);
    let host = fleet.host("here").await;
    assert_eq!(active(&host), BASELINE);
    let alone = host.serving().state.clone();
    assert_eq!(alone.experiments["e"].state, ExperimentState::Paused);
    returned(&fleet, &host).await;
    let state = fleet.registry.load().await.unwrap();
    assert_eq!(state.quarantined, alone.quarantined);
    assert_eq!(state.activations, alone.activations);
    assert_eq!(state.experiments["e"].state, ExperimentState::Paused);
    let log = fleet.log().await;
    verify(&log).unwrap();
    let quarantined = log.iter().find(|entry| entry.action == "quarantine");
    let quarantined = quarantined.unwrap();
    assert_eq!(quarantined.actor, "ada");
    assert!(quarantined.detail["local"].is_object());
}

#[tokio::test]
async fn a_rollback_made_alone_after_a_quarantine_made_alone_goes_one_further_everywhere() {
    let fleet = Fleet::new().await;
    let host = fleet.host("here").await;
    activate(&host, DIVERSITY, "ada").await;
    activate(&host, TIMELINE, "ada").await;
    fleet.cut_off("here", true);
    quarantine(&host, "ada").await;
    assert_eq!(active(&host), DIVERSITY);
    assert_eq!(roll_back(&host).await, Reach::ThisHost);
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
    assert_eq!(quarantine(&host, "ada").await, Reach::ThisHost);
    assert_eq!(quarantine(&elsewhere, "bob").await, Reach::Everywhere);
    returned(&fleet, &host).await;
    let entry = newest(&fleet).await;
    assert_eq!(
        (entry.action.as_str(), entry.actor.as_str()),
        ("dropped", "ada")
    );
    assert_eq!(host.serving().state.quarantined.len(), 1);
}
