//! Tests of quarantines while the registry hangs, of quarantines by two hosts at once, and of
//! withdrawals in a fleet.

use super::*;
use crate::offline::HostRegistry;
use crate::testing::Fleet;
use async_trait::async_trait;
use nova_model::audit::{AuditEntry, AuditPage};
use nova_model::audit_head::AuditHead;
use nova_model::budget::Call;
use nova_model::failure::FailureKind;
use nova_model::prune::StoredModule;
use nova_model::registry::{Change, HOST, RegistryState};
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

    async fn store_module(&self, digest: Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        self.answering().await.store_module(digest, bytes).await
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
    min_viewers: 3,
    ratio: 0.05,
    window_s: 30,
    p99_factor: 3.0,
    p99_min_calls: 200,
};

/// Records five traps of the active policy, for as many viewers, and lets the host check the
/// budgets.
async fn spend(host: &Deploy) {
    let now = Instant::now();
    for viewer in 0..THRESHOLDS.min_failures {
        let call = Call {
            viewer: viewer.into(),
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
        ("withdraw", HOST),
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
    there.look_and_load().await.unwrap();
    spend(&here).await;
    spend(&there).await;
    let (first, second) = tokio::join!(here.look_and_load(), there.look_and_load());
    first.unwrap();
    second.unwrap();
    for host in [&here, &there] {
        host.look_and_load().await.unwrap();
        assert!(!host.offline.is_unreconciled());
        assert_eq!(active(host), "decay-diversity@1.0.0");
    }
    let expected = [("withdraw", HOST), ("quarantine", HOST), ("rollback", HOST)];
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
    there.look_and_load().await.unwrap();
    assert_eq!(active(&there), BASELINE);
    assert_eq!(fixture.log().await.len(), 2);
    let recorded = fixture.registry.load().await.unwrap();
    assert_eq!(recorded.activations.last().unwrap().to_string(), BASELINE);
}

const DIVERSITY: &str = "decay-diversity@1.0.0";

/// Returns three hosts on one registry that has seen them all. `timeline` is active, and
/// `decay-diversity` was before it.
async fn three_hosts(fleet: &Fleet) -> [Arc<Deploy>; 3] {
    let names = ["a", "b", "c"];
    fleet
        .present
        .lock()
        .unwrap()
        .extend(names.map(str::to_owned));
    let hosts = [
        fleet.host(names[0]).await,
        fleet.host(names[1]).await,
        fleet.host(names[2]).await,
    ];
    for policy in [DIVERSITY, TIMELINE] {
        let policy = policy.parse().unwrap();
        hosts[0].activate(&policy, "ada").await.unwrap();
    }
    follow(&hosts).await;
    hosts
}

/// Lets every host look at the registry, often enough that each sees what the others wrote.
async fn follow(hosts: &[Arc<Deploy>]) {
    for host in hosts.iter().chain(hosts) {
        host.look_and_load().await.unwrap();
    }
}

fn actives(hosts: &[Arc<Deploy>]) -> Vec<String> {
    hosts.iter().map(|host| active(host)).collect()
}

#[tokio::test]
async fn one_host_takes_a_policy_out_of_its_own_service_and_the_others_keep_it() {
    let fleet = Fleet::new().await;
    let hosts = three_hosts(&fleet).await;
    spend(&hosts[0]).await;
    assert_eq!(active(&hosts[0]), DIVERSITY, "before the registry knows");
    follow(&hosts).await;
    assert_eq!(actives(&hosts), [DIVERSITY, TIMELINE, TIMELINE]);
    let recorded = fleet.registry.load().await.unwrap();
    assert!(recorded.quarantined.is_empty());
    assert_eq!(recorded.activations.last().unwrap().to_string(), TIMELINE);
    let log = fleet.log().await;
    let newest = log.last().unwrap();
    assert_eq!(
        (newest.action.as_str(), newest.actor.as_str()),
        ("withdraw", HOST)
    );
    assert_eq!(newest.detail["host"], "a");
    for host in &hosts {
        let status = host.status(&THRESHOLDS, Instant::now());
        let [out] = &status.out_of_service[..] else {
            panic!("{:?}", status.out_of_service);
        };
        assert_eq!((out.host.as_deref(), out.by.as_str()), (Some("a"), HOST));
        assert!(out.reason.contains("5 of 5 calls"), "{}", out.reason);
    }
    // An operator's changes are made on what all hosts share.
    let timeline = TIMELINE.parse().unwrap();
    let rolled_back = hosts[0]
        .rollback("x", Some(&timeline), "ada")
        .await
        .unwrap();
    assert_eq!(rolled_back.0.policy.to_string(), DIVERSITY);
}

#[tokio::test]
async fn the_fleet_follows_when_a_second_host_agrees() {
    let fleet = Fleet::new().await;
    let hosts = three_hosts(&fleet).await;
    spend(&hosts[0]).await;
    follow(&hosts).await;
    spend(&hosts[2]).await;
    follow(&hosts).await;
    assert_eq!(actives(&hosts), [DIVERSITY; 3]);
    let recorded = fleet.registry.load().await.unwrap();
    let quarantine = recorded.quarantined.values().next().unwrap();
    assert!(
        quarantine.reason.starts_with("2 hosts agree: "),
        "{}",
        quarantine.reason
    );
    let log = fleet.log().await;
    let newest: Vec<_> = log
        .iter()
        .rev()
        .take(4)
        .map(|e| e.action.as_str())
        .collect();
    assert_eq!(newest, ["rollback", "quarantine", "withdraw", "withdraw"]);
}

#[tokio::test]
async fn a_host_that_is_alone_needs_no_second_one_and_a_cut_off_host_does_not_count_as_alone() {
    let fleet = Fleet::new().await;
    let [host, other, _] = three_hosts(&fleet).await;
    fleet.present.lock().unwrap().clear();
    spend(&host).await;
    host.look_and_load().await.unwrap();
    assert_eq!(fleet.registry.load().await.unwrap().quarantined.len(), 1);

    fleet.cut_off("b", true);
    other.look_and_load().await.unwrap_err();
    spend(&other).await;
    assert!(other.serving().state.quarantined.is_empty());
}

#[tokio::test]
async fn a_withdrawal_survives_a_restart_with_and_without_the_registry() {
    let fleet = Fleet::new().await;
    let [host, other, _] = three_hosts(&fleet).await;
    fleet.cut_off("a", true);
    spend(&host).await;
    drop(host);
    let host = fleet.host("a").await;
    assert_eq!(active(&host), DIVERSITY, "from its own disk");
    fleet.cut_off("a", false);
    let hosts = [host, other];
    follow(&hosts).await;
    assert_eq!(actives(&hosts), [DIVERSITY, TIMELINE]);
    let file = fleet.data_dir("a").join("registry/withdrawals.json");
    std::fs::remove_file(file).unwrap();
    drop(hosts);
    let host = fleet.host("a").await;
    assert_eq!(active(&host), DIVERSITY, "from the registry");
}

#[tokio::test]
async fn a_lift_returns_a_withdrawn_policy_with_new_counts_and_is_audited() {
    let fleet = Fleet::new().await;
    let hosts = three_hosts(&fleet).await;
    let timeline = TIMELINE.parse().unwrap();
    let early = hosts[1].lift(&timeline, "x", "ada").await.unwrap_err();
    assert!(matches!(early, DeployError::Conflict(_)), "{early}");
    spend(&hosts[0]).await;
    follow(&hosts).await;
    hosts[1].lift(&timeline, "a bad disk", "ada").await.unwrap();
    follow(&hosts).await;
    assert_eq!(actives(&hosts), [TIMELINE; 3]);
    // The failures from before the lift must not count again.
    hosts[0].enforce_budgets(&THRESHOLDS, Instant::now()).await;
    assert_eq!(active(&hosts[0]), TIMELINE);
    let log = fleet.log().await;
    let newest = log.last().unwrap();
    assert_eq!(
        (newest.action.as_str(), newest.actor.as_str()),
        ("lift", "ada")
    );
    assert_eq!(newest.detail["reason"], "a bad disk");
    let status = hosts[2].status(&THRESHOLDS, Instant::now());
    assert_eq!(status.out_of_service, []);
    // The host decides anew afterwards, also after a restart.
    spend(&hosts[0]).await;
    assert_eq!(active(&hosts[0]), DIVERSITY);
    follow(&hosts).await;
    drop(hosts);
    assert_eq!(active(&*fleet.host("a").await), DIVERSITY);
}

#[tokio::test]
async fn a_lift_ends_a_quarantine_by_agreement_or_by_an_operator() {
    let fleet = Fleet::new().await;
    let hosts = three_hosts(&fleet).await;
    let timeline: PolicyRef = TIMELINE.parse().unwrap();
    spend(&hosts[0]).await;
    spend(&hosts[1]).await;
    follow(&hosts).await;
    assert_eq!(actives(&hosts), [DIVERSITY; 3]);
    for round in 0..2 {
        let refused = hosts[2].activate(&timeline, "ada").await.unwrap_err();
        assert!(
            refused.to_string().contains("nova policy lift"),
            "{refused}"
        );
        hosts[2].lift(&timeline, "fixed", "ada").await.unwrap();
        follow(&hosts).await;
        assert_eq!(actives(&hosts), [DIVERSITY; 3], "a lift activates nothing");
        hosts[2].activate(&timeline, "ada").await.unwrap();
        follow(&hosts).await;
        assert_eq!(actives(&hosts), [TIMELINE; 3]);
        if round == 0 {
            hosts[0].quarantine(&timeline, "odd", "ada").await.unwrap();
            follow(&hosts).await;
        }
    }
}

#[tokio::test]
async fn with_every_policy_out_of_service_the_native_copy_ranks_and_the_baseline_is_not_quarantined()
 {
    let fleet = Fleet::new().await;
    let hosts = three_hosts(&fleet).await;
    for _ in 0..3 {
        for host in &hosts {
            spend(host).await;
        }
        follow(&hosts).await;
    }
    let baseline: PolicyRef = BASELINE.parse().unwrap();
    let recorded = fleet.registry.load().await.unwrap();
    let baseline_digest = recorded.policy(&baseline).unwrap().digest;
    assert_eq!(recorded.quarantined.len(), 2);
    assert!(!recorded.quarantined.contains_key(&baseline_digest));
    for host in &hosts {
        assert!(host.serving().active_in_service().is_none());
    }
    hosts[0].lift(&baseline, "fixed", "ada").await.unwrap();
    follow(&hosts).await;
    for host in &hosts {
        assert!(host.serving().active_in_service().is_some());
    }
}
