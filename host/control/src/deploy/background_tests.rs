//! Tests of policies that cannot be loaded in time, and of what serves in the meantime.

use super::Deploy;
use crate::offline::HostRegistry;
use crate::testing::Fleet;
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
    let serving = here.serving().clone();
    assert!(serving.canary.is_none());
    assert_eq!(names(&serving.shadows), [diversity.to_string()]);
    // The missing canary does not delay later changes either.
    there.end_shadow(&diversity, "ada").await.unwrap();
    here.look().await.unwrap();
    assert_eq!(names(&here.serving().shadows), [] as [String; 0]);
    let revision = here.serving().state.revision;

    let_through.send(true).unwrap();
    let begun = Instant::now();
    while here.serving().canary.is_none() {
        assert!(begun.elapsed() < WITHIN, "the canary never serves");
        here.look().await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(here.serving().state.revision, revision);
}
