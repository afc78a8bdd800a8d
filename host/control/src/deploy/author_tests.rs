//! Tests of preconditions, and of what an experiment that assigns viewers protects.

use super::{Author, Deploy, DeployError};
use crate::testing::{Fleet, active};
use nova_model::artifact::PolicyRef;
use nova_model::experiments::cohort::Rule;
use nova_model::experiments::spec::{ExperimentSpec, ExperimentState};
use nova_model::lifecycle::PolicyState;
use serde_json::json;

fn policy(name: &str) -> PolicyRef {
    name.parse().unwrap()
}

fn at(revision: i64) -> Author<'static> {
    Author {
        if_revision: Some(revision),
        ..Author::from("ada")
    }
}

fn rule(ids: &[u64]) -> Rule {
    serde_json::from_value(json!({ "ids": ids })).unwrap()
}

fn experiment(cohort: &str, weight: f64) -> ExperimentSpec {
    serde_json::from_value(json!({"cohort": cohort, "variations": [
        {"key": "a", "weight": 0.5, "policy": "baseline@1.0.0", "params": {"score": {"w_freshness": weight}}},
        {"key": "b", "weight": 0.5, "policy": "baseline@1.0.0"}]}))
    .unwrap()
}

/// Makes every kind of change, at this revision or the ones after it, and returns the errors.
async fn every_change(host: &Deploy, mut revision: impl FnMut() -> i64) -> Vec<DeployError> {
    let (timeline, diversity) = (policy("timeline@1.0.0"), policy("decay-diversity@1.0.0"));
    let mut errors = Vec::new();
    errors.extend(host.activate(&timeline, at(revision())).await.err());
    let rolled_back = host.rollback("bad", None, at(revision())).await;
    errors.extend(rolled_back.err());
    errors.extend(host.shadow(&diversity, at(revision())).await.err());
    errors.extend(host.end_shadow(&diversity, at(revision())).await.err());
    errors.extend(host.canary(&timeline, 5.0, at(revision())).await.err());
    errors.extend(host.retire(&diversity, at(revision())).await.err());
    errors.extend(host.set_flag("f", true, at(revision())).await.err());
    let cohort = host.put_cohort("c", rule(&[7]), at(revision())).await;
    errors.extend(cohort.err());
    let put = host.put_experiment("e", experiment("all", 0.5), at(revision()));
    errors.extend(put.await.err());
    let stop = host.set_experiment_state("e", ExperimentState::Stopped, at(revision()));
    errors.extend(stop.await.err());
    errors
}

#[tokio::test]
async fn no_change_is_made_at_another_revision_than_its_author_expects() {
    let fleet = Fleet::new().await;
    let host = fleet.host("here").await;
    let before = host.revision();
    let errors = every_change(&host, || before - 1).await;
    assert_eq!(errors.len(), 10);
    for error in errors {
        assert!(
            matches!(error, DeployError::Outdated { current, .. } if current == before),
            "{error:?}"
        );
    }
    assert_eq!(host.revision(), before);
    let mut revision = before - 1;
    let errors = every_change(&host, || {
        revision += 1;
        revision
    })
    .await;
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(host.revision(), before + 10);
}

#[tokio::test]
async fn a_host_that_lags_behind_accepts_the_revision_that_another_host_showed() {
    let fleet = Fleet::new().await;
    let (here, there) = (fleet.host("here").await, fleet.host("there").await);
    let old = here.revision();
    there.set_flag("f", true, "bob").await.unwrap();
    let late = here.set_flag("f", false, at(old)).await;
    assert!(
        matches!(late, Err(DeployError::Outdated { current, .. }) if current == old + 1),
        "{late:?}"
    );
    there.set_flag("f", true, "bob").await.unwrap();
    here.set_flag("f", false, at(there.revision()))
        .await
        .unwrap();
    assert_eq!(here.revision(), old + 3);
}

#[tokio::test]
async fn an_activation_is_refused_if_another_policy_is_active_than_its_author_expects() {
    let fleet = Fleet::new().await;
    let host = fleet.host("here").await;
    let (timeline, diversity) = (policy("timeline@1.0.0"), policy("decay-diversity@1.0.0"));
    let expecting = |active| Author::from("ada").expecting(Some(active));
    let refused = host.activate(&timeline, expecting(&diversity)).await;
    assert!(
        matches!(&refused, Err(DeployError::Conflict(why)) if why.contains("baseline@1.0.0 is active")),
        "{refused:?}"
    );
    let baseline = policy("baseline@1.0.0");
    host.activate(&timeline, expecting(&baseline))
        .await
        .unwrap();
    assert_eq!(active(&host), "timeline@1.0.0");
}

#[tokio::test]
async fn a_cohort_cannot_change_under_an_experiment_that_assigns_its_viewers() {
    let fleet = Fleet::new().await;
    let host = fleet.host("here").await;
    host.put_cohort("c", rule(&[7]), "ada").await.unwrap();
    let put = host.put_experiment("e", experiment("c", 0.5), "ada");
    put.await.unwrap();
    host.put_cohort("c", rule(&[8]), "ada").await.unwrap();
    for state in [ExperimentState::Running, ExperimentState::Paused] {
        let set = host.set_experiment_state("e", state, "ada");
        set.await.unwrap();
        host.put_cohort("c", rule(&[8]), "ada").await.unwrap();
        let refused = host.put_cohort("c", rule(&[9]), "ada").await;
        assert!(
            matches!(&refused, Err(DeployError::Conflict(why)) if why.contains("`e`") && why.contains("stop")),
            "{refused:?}"
        );
        host.put_cohort("other", rule(&[9]), "ada").await.unwrap();
    }
    let stop = host.set_experiment_state("e", ExperimentState::Stopped, "ada");
    stop.await.unwrap();
    host.put_cohort("c", rule(&[9]), "ada").await.unwrap();
}

#[tokio::test]
async fn negative_zero_in_an_experiment_has_the_effective_digest_of_zero() {
    let fleet = Fleet::new().await;
    let host = fleet.host("here").await;
    for (key, weight) in [("zero", 0.0), ("negative", -0.0)] {
        let put = host.put_experiment(key, experiment("all", weight), "ada");
        put.await.unwrap();
    }
    let serving = host.serving();
    let text = |key: &str| serde_json::to_string(&serving.state.experiments[key].spec).unwrap();
    assert_eq!(text("zero"), text("negative"));
}

#[tokio::test]
async fn a_policy_that_behaves_like_a_quarantined_one_is_published_as_quarantined() {
    let fleet = Fleet::new().await;
    let host = fleet.host("here").await;
    let timeline = policy("timeline@1.0.0");
    host.quarantine(&timeline, "bad", "ada").await.unwrap();
    let mut files = nova_policy::builtin::recipes()
        .find(|files| files.manifest.contains("name = \"timeline\""))
        .unwrap();
    files.manifest = files
        .manifest
        .replace("version = \"1.0.0\"", "version = \"1.0.1\"");
    let published = host.publish(files, "ada").await.unwrap();
    assert_eq!(published.policy, policy("timeline@1.0.1"));
    assert_eq!(published.state, PolicyState::Quarantined);
}
