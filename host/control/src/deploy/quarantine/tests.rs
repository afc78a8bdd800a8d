//! Tests of quarantines while the registry hangs, and of quarantines by two hosts at once.

use super::*;
use crate::offline::HostRegistry;
use async_trait::async_trait;
use nova_model::audit::{AuditEntry, AuditPage};
use nova_model::audit_head::AuditHead;
use nova_model::budget::Call;
use nova_model::failure::FailureKind;
use nova_model::prune::StoredModule;
use nova_model::registry::{Change, RegistryState};
use nova_policy::engine::Engine;
use nova_stores::embedded::EmbeddedStore;
use nova_stores::embedded::registry::SqliteRegistry;
use nova_stores::ports::registry::{Registry, RegistryError};
use std::time::Duration;
use tokio::sync::watch;

const BASELINE: &str = "baseline@1.0.0";
const TIMELINE: &str = "timeline@1.0.0";

/// A registry that accepts every call and returns none while it hangs.
#[derive(Debug)]
struct Hanging {
    registry: SqliteRegistry,
    hangs: watch::Receiver<bool>,
}

impl Hanging {
    async fn answering(&self) -> &SqliteRegistry {
        let mut hangs = self.hangs.clone();
        hangs.wait_for(|hangs| !hangs).await.unwrap();
        &self.registry
    }
}

impl HostRegistry for Hanging {}

#[async_trait]
impl Registry for Hanging {
    async fn load(&self) -> Result<RegistryState, RegistryError> {
        self.answering().await.load().await
    }

    async fn head(&self) -> Result<AuditHead, RegistryError> {
        self.answering().await.head().await
    }

    async fn apply(
        &self,
        change: &Change,
        actor: &str,
        revision: i64,
    ) -> Result<i64, RegistryError> {
        self.answering().await.apply(change, actor, revision).await
    }

    async fn stored_module(&self, digest: Digest) -> Result<Option<Vec<u8>>, RegistryError> {
        self.answering().await.stored_module(digest).await
    }

    async fn stored_modules(&self) -> Result<Vec<StoredModule>, RegistryError> {
        self.answering().await.stored_modules().await
    }

    async fn audit(&self, page: AuditPage, limit: u32) -> Result<Vec<AuditEntry>, RegistryError> {
        self.answering().await.audit(page, limit).await
    }
}

struct Fixture {
    _data_dir: tempfile::TempDir,
    registry: SqliteRegistry,
    hangs: watch::Sender<bool>,
}

impl Fixture {
    async fn new() -> Self {
        let data_dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(data_dir.path()).await.unwrap();
        Self {
            registry: SqliteRegistry::open(&store).await.unwrap(),
            _data_dir: data_dir,
            hangs: watch::Sender::new(false),
        }
    }

    async fn host(&self) -> Arc<Deploy> {
        let registry = Hanging {
            registry: self.registry.clone(),
            hangs: self.hangs.subscribe(),
        };
        Deploy::start(Engine::start().unwrap(), Arc::new(registry), false)
            .await
            .unwrap()
    }

    /// Audit entries after the publications and activations, oldest first.
    async fn log(&self) -> Vec<(String, String)> {
        let entries = self.registry.audit(AuditPage::OLDEST, 100).await.unwrap();
        entries
            .into_iter()
            .filter(|entry| !["publish", "activate"].contains(&entry.action.as_str()))
            .map(|entry| (entry.action, entry.actor))
            .collect()
    }
}

const THRESHOLDS: Thresholds = Thresholds {
    min_failures: 5,
    ratio: 0.05,
    window_s: 30,
    p99_factor: 3.0,
    p99_min_calls: 200,
};

/// Records five traps of the active policy and lets the host check the budgets.
async fn spend(host: &Deploy) {
    let now = Instant::now();
    for _ in 0..THRESHOLDS.min_failures {
        let call = Call {
            failure: Some(FailureKind::Trap),
            cpu: Duration::from_micros(10),
        };
        host.serving().active.outcomes.record(now, call);
    }
    host.enforce_budgets(&THRESHOLDS, now).await;
}

fn active(host: &Deploy) -> String {
    host.serving().active.spec.policy.to_string()
}

#[tokio::test]
async fn a_spent_budget_applies_here_while_the_registry_hangs_and_is_recorded_when_it_answers() {
    let fixture = Fixture::new().await;
    let host = fixture.host().await;
    host.activate(&TIMELINE.parse().unwrap(), "ada")
        .await
        .unwrap();
    let following = tokio::spawn(host.clone().follow_registry());
    fixture.hangs.send_replace(true);
    // A change that hangs with the registry does not delay a quarantine.
    let hanging = host.clone();
    let flag = tokio::spawn(async move { hanging.set_flag("enable_caching", false, "ada").await });
    tokio::task::yield_now().await;
    spend(&host).await;
    assert_eq!(active(&host), BASELINE);
    assert!(fixture.log().await.is_empty());
    fixture.hangs.send_replace(false);
    flag.await.unwrap().unwrap();
    while host.offline.is_unreconciled() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let log = fixture.log().await;
    let expected = [
        ("set_flag", "ada"),
        ("quarantine", HOST),
        ("rollback", HOST),
    ];
    assert_eq!(
        log,
        expected.map(|(action, actor)| (action.to_owned(), actor.to_owned()))
    );
    assert_eq!(active(&host), BASELINE);
    following.abort();
}

#[tokio::test]
async fn two_hosts_that_decide_at_once_record_one_quarantine_and_one_rollback() {
    let fixture = Fixture::new().await;
    let (here, there) = (fixture.host().await, fixture.host().await);
    let diversity = "decay-diversity@1.0.0".parse().unwrap();
    here.activate(&diversity, "ada").await.unwrap();
    here.activate(&TIMELINE.parse().unwrap(), "ada")
        .await
        .unwrap();
    there.look().await.unwrap();
    spend(&here).await;
    spend(&there).await;
    let (first, second) = tokio::join!(here.look(), there.look());
    first.unwrap();
    second.unwrap();
    for host in [&here, &there] {
        host.look().await.unwrap();
        assert!(!host.offline.is_unreconciled());
        assert_eq!(active(host), "decay-diversity@1.0.0");
    }
    let expected = [("quarantine", HOST), ("rollback", HOST)];
    assert_eq!(
        fixture.log().await,
        expected.map(|(action, actor)| (action.to_owned(), actor.to_owned()))
    );
}

#[tokio::test]
async fn a_host_completes_a_quarantine_that_another_host_left_unfinished() {
    let fixture = Fixture::new().await;
    let (here, there) = (fixture.host().await, fixture.host().await);
    let timeline: PolicyRef = TIMELINE.parse().unwrap();
    here.activate(&timeline, "ada").await.unwrap();
    let state = fixture.registry.load().await.unwrap();
    let change = Change::Quarantine {
        digest: state.policy(&timeline).unwrap().digest,
        quarantine: Quarantine {
            policy: timeline,
            reason: "trap".into(),
            by: HOST.into(),
            at_ms: 1,
        },
    };
    let revision = state.revision;
    fixture
        .registry
        .apply(&change, HOST, revision)
        .await
        .unwrap();
    there.look().await.unwrap();
    assert_eq!(active(&there), BASELINE);
    assert_eq!(fixture.log().await.len(), 2);
    let recorded = fixture.registry.load().await.unwrap();
    assert_eq!(recorded.activations.last().unwrap().to_string(), BASELINE);
}
