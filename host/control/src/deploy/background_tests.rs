//! Tests of policies that cannot be loaded in time, and of what serves in the meantime.

use super::{Author, Deploy, Serving};
use crate::offline::HostRegistry;
use crate::testing::{Fleet, active};
use async_trait::async_trait;
use nova_model::artifact::{Digest, PolicyRef};
use nova_model::audit::{AuditEntry, AuditPage};
use nova_model::audit_head::AuditHead;
use nova_model::prune::StoredModule;
use nova_model::registry::{Change, RegistryState};
use nova_policy::engine::Engine;
use nova_policy::loaded::LoadedPolicy;
use nova_stores::embedded::registry::SqliteRegistry;
use nova_stores::ports::registry::{Registry, RegistryError};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

const WITHIN: Duration = Duration::from_secs(30);

/// A registry that returns one of its modules only after the test allows it.
#[derive(Debug)]
struct Slow {
    registry: SqliteRegistry,
    module: Digest,
    through: watch::Receiver<bool>,
}

impl HostRegistry for Slow {}

#[async_trait]
impl Registry for Slow {
    async fn load(&self) -> Result<RegistryState, RegistryError> {
        self.registry.load().await
    }

    async fn head(&self) -> Result<AuditHead, RegistryError> {
        self.registry.head().await
    }

    async fn apply(
        &self,
        change: &Change,
        actor: &str,
        revision: i64,
    ) -> Result<i64, RegistryError> {
        self.registry.apply(change, actor, revision).await
    }

    async fn store_module(&self, digest: Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        self.registry.store_module(digest, bytes).await
    }

    async fn stored_module(&self, digest: Digest) -> Result<Option<Vec<u8>>, RegistryError> {
        if digest == self.module {
            let mut through = self.through.clone();
            through.wait_for(|through| *through).await.unwrap();
        }
        self.registry.stored_module(digest).await
    }

    async fn stored_modules(&self) -> Result<Vec<StoredModule>, RegistryError> {
        self.registry.stored_modules().await
    }

    async fn audit(&self, page: AuditPage, limit: u32) -> Result<Vec<AuditEntry>, RegistryError> {
        self.registry.audit(page, limit).await
    }
}

fn names(policies: &[Arc<LoadedPolicy>]) -> Vec<String> {
    let names = policies.iter().map(|policy| policy.spec.policy.to_string());
    names.collect()
}

#[tokio::test]
async fn a_policy_that_loads_late_delays_no_other_and_serves_without_another_change() {
    let fleet = Fleet::new().await;
    let there = fleet.host("there").await;
    let timeline: PolicyRef = "timeline@1.0.0".parse().unwrap();
    let diversity: PolicyRef = "decay-diversity@1.0.0".parse().unwrap();
    let state = fleet.registry.load().await.unwrap();
    let scorer = state.policy(&timeline).unwrap().spec.stages.score.module;
    let (let_through, through) = watch::channel(false);
    let slow = Slow {
        registry: fleet.registry.clone(),
        module: scorer,
        through,
    };
    let here = Deploy::start(Engine::start().unwrap(), Arc::new(slow), false)
        .await
        .unwrap();

    // The canary is loaded before the shadow, and its module does not arrive.
    there.canary(&timeline, 50.0, "ada").await.unwrap();
    there.shadow(&diversity, "ada").await.unwrap();
    here.look().await.unwrap();
    until(&here, "the shadow serves", |serving| {
        names(&serving.shadows) == [diversity.to_string()]
    })
    .await;
    assert!(here.serving().canary.is_none());
    // The missing canary does not delay later changes either.
    there.end_shadow(&diversity, "ada").await.unwrap();
    here.look().await.unwrap();
    assert_eq!(names(&here.serving().shadows), [] as [String; 0]);
    let revision = here.serving().state.revision;

    let_through.send(true).unwrap();
    until(&here, "the canary serves", |serving| {
        serving.canary.is_some()
    })
    .await;
    assert_eq!(here.serving().state.revision, revision);
}

/// Waits until the host serves as expected, and swaps in what was loaded in the background.
async fn until(host: &Deploy, what: &str, holds: impl Fn(&Serving) -> bool) {
    let begun = Instant::now();
    while !holds(&host.serving()) {
        assert!(begun.elapsed() < WITHIN, "{what}: never");
        host.serve_loaded().await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Two hosts, of which `here` waits for a module of `timeline@1.0.0` until the test allows it.
struct TwoHosts {
    fleet: Fleet,
    there: Arc<Deploy>,
    here: Arc<Deploy>,
    let_through: watch::Sender<bool>,
}

impl TwoHosts {
    async fn new() -> Self {
        let fleet = Fleet::new().await;
        let there = fleet.host("there").await;
        let state = fleet.registry.load().await.unwrap();
        let timeline = state.policy(&policy("timeline@1.0.0")).unwrap();
        let (let_through, through) = watch::channel(false);
        let slow = Slow {
            registry: fleet.registry.clone(),
            module: timeline.spec.stages.score.module,
            through,
        };
        let here = Deploy::start(Engine::start().unwrap(), Arc::new(slow), false);
        Self {
            here: here.await.unwrap(),
            fleet,
            there,
            let_through,
        }
    }
}

fn policy(name: &str) -> PolicyRef {
    name.parse().unwrap()
}

#[tokio::test]
async fn nothing_waits_for_an_active_policy_that_is_not_loaded_yet() {
    let hosts = TwoHosts::new().await;
    let (here, there) = (&hosts.here, &hosts.there);
    let following = tokio::spawn(here.clone().follow_registry());
    there
        .activate(&policy("timeline@1.0.0"), "ada")
        .await
        .unwrap();
    until(here, "the activation is noted", |serving| {
        serving.state.activations.len() == 2
    })
    .await;
    assert_eq!(active(here), "baseline@1.0.0", "until timeline is loaded");
    there.set_flag("f", true, "ada").await.unwrap();
    until(here, "the flag is in force", |serving| {
        serving.state.flags.get("f") == Some(&true)
    })
    .await;
    // The change waits for the module, and holds nothing up while it does.
    let activation = tokio::spawn({
        let here = here.clone();
        async move { here.activate(&policy("timeline@1.0.0"), "bob").await }
    });
    tokio::task::yield_now().await;
    here.set_flag("f", false, "bob").await.unwrap();
    hosts.let_through.send(true).unwrap();
    activation.await.unwrap().unwrap();
    until(here, "timeline serves", |serving| {
        serving.active.spec.policy == policy("timeline@1.0.0")
    })
    .await;
    following.abort();
    drop(hosts.fleet);
}

#[tokio::test]
async fn a_change_without_a_precondition_is_made_again_after_a_lost_race() {
    let fleet = Fleet::new().await;
    let (here, there) = (fleet.host("here").await, fleet.host("there").await);
    // Each change is based on a state that the other host has replaced.
    for round in 0..3 {
        there.set_flag("f", round % 2 == 0, "ada").await.unwrap();
        here.activate(&policy("timeline@1.0.0"), "bob")
            .await
            .unwrap();
        there.set_flag("f", round % 2 == 1, "ada").await.unwrap();
        here.rollback("bad", None, "bob").await.unwrap();
        there.look().await.unwrap();
        here.set_flag("f", false, "bob").await.unwrap();
        there
            .canary(&policy("timeline@1.0.0"), 5.0, "ada")
            .await
            .unwrap();
        here.look().await.unwrap();
        there.set_flag("f", true, "ada").await.unwrap();
        here.canary(&policy("timeline@1.0.0"), 0.0, "bob")
            .await
            .unwrap();
    }
    let expected = policy("baseline@1.0.0");
    there.set_flag("f", true, "ada").await.unwrap();
    let author = Author::from("bob").expecting(Some(&expected));
    here.activate(&policy("timeline@1.0.0"), author)
        .await
        .unwrap();
}
