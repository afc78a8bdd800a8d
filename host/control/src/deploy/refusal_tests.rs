//! Tests of registries that answer, and refuse.

use super::{Deploy, DeployError, Scope};
use crate::testing::{Fleet, Way, active};
use nova_model::artifact::PolicyRef;
use nova_stores::ports::registry::Registry as _;
use std::sync::Arc;

const BASELINE: &str = "baseline@1.0.0";
const TIMELINE: &str = "timeline@1.0.0";
const DIVERSITY: &str = "decay-diversity@1.0.0";

fn policy(name: &str) -> PolicyRef {
    name.parse().unwrap()
}

async fn roll_back(host: &Deploy) -> Result<Scope, DeployError> {
    let rolled_back = host.rollback("bad", None, "ada").await;
    rolled_back.map(|(_, scope)| scope)
}

/// A host that serves the timeline after the baseline.
async fn host_of(fleet: &Fleet) -> Arc<Deploy> {
    let host = fleet.host("here").await;
    host.activate(&policy(TIMELINE), "ada").await.unwrap();
    host
}

/// Another host activates a policy, and this host follows.
async fn assert_follows(fleet: &Fleet, host: &Deploy) {
    let elsewhere = fleet.host("there").await;
    elsewhere.activate(&policy(DIVERSITY), "bob").await.unwrap();
    host.look_and_load().await.unwrap();
    assert_eq!(active(host), DIVERSITY);
}

#[tokio::test]
async fn a_refused_change_is_made_nowhere_and_the_host_follows_the_others() {
    let fleet = Fleet::new().await;
    let host = host_of(&fleet).await;
    fleet.set_way("here", Way::Refusing);
    let refused = [
        roll_back(&host).await.map(drop),
        host.activate(&policy(DIVERSITY), "ada").await.map(drop),
        host.set_flag("f", true, "ada").await,
        host.quarantine(&policy(TIMELINE), "traps", "ada")
            .await
            .map(drop),
    ];
    for refused in refused {
        let Err(DeployError::RegistryRefused(reason)) = refused else {
            panic!("{refused:?}");
        };
        assert!(format!("{reason:#}").contains("permission denied"));
    }
    assert_eq!(active(&host), TIMELINE);
    assert!(host.local_changes().is_empty() && host.set_aside().is_empty());
    assert!(!host.is_unavailable());
    assert_follows(&fleet, &host).await;
}

#[tokio::test]
async fn a_refused_local_change_is_set_aside_and_the_host_follows_the_others() {
    for way in [Way::Refusing, Way::RefusingAllButEntries] {
        let fleet = Fleet::new().await;
        let host = host_of(&fleet).await;
        fleet.set_way("here", Way::CutOff);
        assert_eq!(roll_back(&host).await.unwrap(), Scope::ThisHost);
        assert_eq!(active(&host), BASELINE);
        fleet.set_way("here", way);
        host.look_and_load().await.unwrap();
        assert_eq!(active(&host), TIMELINE);
        assert_follows(&fleet, &host).await;
        assert!(host.local_changes().is_empty());
        let aside = host.set_aside();
        assert_eq!(aside.len(), 1);
        assert_eq!(aside[0].change.actor, "ada");
        assert!(aside[0].reason.contains("permission denied"), "{aside:?}");
        let is_audited = way == Way::RefusingAllButEntries;
        assert_eq!(aside[0].is_audited, is_audited);
        let log = fleet.log().await;
        assert_eq!(log.iter().any(|e| e.action == "dropped"), is_audited);
        // A restart forgets neither that it was set aside nor that it is not in force.
        drop(host);
        let host = fleet.host("here").await;
        assert_eq!(host.set_aside(), aside);
        assert_eq!(active(&host), DIVERSITY);
        // The host takes changes again once the registry does.
        fleet.set_way("here", Way::Open);
        assert_eq!(roll_back(&host).await.unwrap(), Scope::Everywhere);
    }
}

#[tokio::test]
async fn a_read_only_registry_is_an_outage_for_changes_and_the_host_follows_the_others() {
    let fleet = Fleet::new().await;
    let host = fleet.host("here").await;
    let (old, new) = (policy(DIVERSITY), policy(TIMELINE));
    host.activate(&old, "ada").await.unwrap();
    host.activate(&new, "ada").await.unwrap();
    fleet.set_way("here", Way::ReadOnly);
    assert_eq!(roll_back(&host).await.unwrap(), Scope::ThisHost);
    assert_eq!(active(&host), DIVERSITY);
    let elsewhere = fleet.host("there").await;
    elsewhere.set_flag("f", true, "bob").await.unwrap();
    // The local change stays, over the newest state of the others.
    host.look_and_load().await.unwrap_err();
    assert!(host.serving().state.flags["f"]);
    assert_eq!(active(&host), DIVERSITY);
    assert_eq!(host.local_changes().len(), 1);
    fleet.set_way("here", Way::Open);
    host.look_and_load().await.unwrap();
    assert!(host.local_changes().is_empty() && host.set_aside().is_empty());
    let state = fleet.registry.load().await.unwrap();
    assert_eq!(state.activations.last(), Some(&old));
}

#[tokio::test]
async fn a_host_without_grants_starts_and_serves_what_the_registry_has() {
    let fleet = Fleet::new().await;
    let elsewhere = fleet.host("there").await;
    elsewhere.activate(&policy(TIMELINE), "bob").await.unwrap();
    fleet.set_way("here", Way::Refusing);
    let host = fleet.host("here").await;
    assert_eq!(active(&host), TIMELINE);
    assert_follows(&fleet, &host).await;
}
