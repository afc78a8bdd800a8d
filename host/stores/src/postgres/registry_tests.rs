//! Tests of the registry: the same assertions against SQLite and PostgreSQL, and tests of
//! PostgreSQL's own features.

use super::registry::PostgresRegistry;
use super::testing::TestDatabase;
use crate::embedded::EmbeddedStore;
use crate::embedded::registry::SqliteRegistry;
use crate::ports::registry::{Registry, RegistryError};
use futures::future::join_all;
use nova_model::artifact::{Digest, PolicyRef, PolicySpec};
use nova_model::audit::{AuditEntry, AuditPage, verify};
use nova_model::experiments::cohort::Rule;
use nova_model::quarantine::{Lift, Quarantine, Withdrawal};
use nova_model::registry::{Change, RegistryState};
use std::sync::Arc;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);

async fn on_both(check: impl AsyncFn(Arc<dyn Registry>)) {
    let data_dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(data_dir.path()).await.unwrap();
    check(Arc::new(SqliteRegistry::open(&store).await.unwrap())).await;
    if let Some(database) = TestDatabase::migrated().await {
        check(Arc::new(PostgresRegistry::new(&database.url).unwrap())).await;
    }
}

fn module() -> (Digest, Vec<u8>) {
    let bytes = vec![0, 0x61, 0x73, 0x6d, 0xff];
    (Digest::from_content(&bytes), bytes)
}

/// A policy with parameters that a database can easily corrupt.
fn policy(version: &str) -> PolicySpec {
    let (digest, _) = module();
    let stage = |value: f64| serde_json::json!({"module": digest, "params": {"w": value}});
    let spec = serde_json::json!({
        "policy": format!("p@{version}"),
        "description": "ünïcode",
        "stages": {"dedup": stage(0.1 + 0.2), "score": stage(-0.0), "saturation": stage(1e300)},
        "limits": {"deadline_ms": 20, "memory_mb": 16, "instance": "fresh"},
    });
    serde_json::from_value(spec).unwrap()
}

pub(super) fn publish(version: &str) -> Change {
    let spec = policy(version);
    Change::Publish {
        digest: spec.digest(),
        spec,
        modules: vec![module()],
        at_ms: 1_700_000_000_000,
        measured: None,
    }
}

pub(super) fn reference(version: &str) -> PolicyRef {
    policy(version).policy
}

pub(super) async fn apply_all(registry: &dyn Registry, changes: &[Change]) -> i64 {
    let mut revision = registry.revision().await.unwrap();
    for change in changes {
        store_modules(registry, change).await;
        revision = registry.apply(change, "ada", revision).await.unwrap();
    }
    revision
}

pub(super) async fn store_modules(registry: &dyn Registry, change: &Change) {
    for (digest, bytes) in crate::registry::modules_of(change) {
        registry.store_module(*digest, bytes).await.unwrap();
    }
}

#[tokio::test]
async fn a_published_policy_is_read_back_bit_for_bit() {
    on_both(async |registry| {
        assert_eq!(registry.load().await.unwrap(), RegistryState::default());
        apply_all(&*registry, &[publish("1.0.0")]).await;
        let state = registry.load().await.unwrap();
        let published = state.policy(&reference("1.0.0")).unwrap();
        assert_eq!(published.spec.digest(), published.digest);
        assert_eq!(published.spec, policy("1.0.0"));
        let (digest, bytes) = module();
        assert_eq!(registry.module(digest).await.unwrap(), Some(bytes));
        assert_eq!(
            registry.module(Digest::from_content(b"?")).await.unwrap(),
            None
        );
    })
    .await;
}

#[tokio::test]
async fn a_change_against_an_older_revision_is_refused_and_leaves_no_trace() {
    on_both(async |registry| {
        let before = apply_all(&*registry, &[publish("1.0.0")]).await;
        let flag = |enabled| Change::SetFlag {
            name: "enable_caching".into(),
            enabled,
        };
        let revision = registry.apply(&flag(false), "ada", before).await.unwrap();
        assert!(revision > before);
        let late = registry.apply(&flag(true), "bob", before).await;
        assert!(matches!(late, Err(RegistryError::Conflict(_))), "{late:?}");
        let state = registry.load().await.unwrap();
        assert_eq!(state.revision, revision);
        assert!(!state.flags["enable_caching"]);
        assert_eq!(
            registry.audit(AuditPage::NEWEST, 10).await.unwrap().len(),
            2
        );
    })
    .await;
}

#[tokio::test]
async fn only_one_of_several_concurrent_changes_of_one_revision_succeeds() {
    on_both(async |registry| {
        let changes = (0..8).map(|n| {
            let registry = registry.clone();
            async move {
                let change = Change::PutCohort {
                    key: format!("c{n}"),
                    rule: Rule::everybody(),
                };
                registry.apply(&change, "ada", 0).await
            }
        });
        let done = join_all(changes).await;
        assert_eq!(done.iter().filter(|result| result.is_ok()).count(), 1);
        assert_eq!(registry.load().await.unwrap().cohorts.len(), 1);
        assert_eq!(
            registry.audit(AuditPage::NEWEST, 10).await.unwrap().len(),
            1
        );
    })
    .await;
}

#[tokio::test]
async fn a_rollback_removes_the_activations_above_its_target() {
    on_both(async |registry| {
        let activate = |version| Change::Activate {
            policy: reference(version),
        };
        let rollback = Change::Rollback {
            from: reference("3.0.0"),
            to: reference("1.0.0"),
            reason: "2.0.0 is quarantined".into(),
        };
        let changes = [
            activate("1.0.0"),
            activate("2.0.0"),
            activate("1.0.0"),
            activate("2.0.0"),
            activate("3.0.0"),
            rollback,
        ];
        apply_all(&*registry, &changes).await;
        let activations = registry.load().await.unwrap().activations;
        let expected = ["1.0.0", "2.0.0", "1.0.0"].map(reference);
        assert_eq!(activations, expected);
    })
    .await;
}

/// Returns every kind of change for two policies of equal behaviour and two others. The order
/// is one that a lifecycle would not take, because the stores and the fold must agree on more
/// than the allowed orders.
pub(super) fn a_life() -> Vec<Change> {
    let reference = |version: &str| reference(version);
    let [one, two, three, equal] = ["1.0.0", "2.0.0", "3.0.0", "4.0.0"].map(reference);
    let publish = |version: &str, digest: &[u8], at_ms| match publish(version) {
        Change::Publish { spec, modules, .. } => Change::Publish {
            spec,
            digest: Digest::from_content(digest),
            modules,
            at_ms,
            measured: None,
        },
        other => other,
    };
    let activate = |policy: &PolicyRef| Change::Activate {
        policy: policy.clone(),
    };
    let shadow = |policy: &PolicyRef| Change::Shadow {
        policy: policy.clone(),
    };
    let canary = |policy: &PolicyRef, percent| Change::Canary {
        policy: policy.clone(),
        percent,
    };
    let retire = |policy: &PolicyRef| Change::Retire {
        policy: policy.clone(),
    };
    let quarantine = |policy: &PolicyRef, digest: &[u8]| Change::Quarantine {
        digest: Digest::from_content(digest),
        quarantine: Quarantine {
            policy: policy.clone(),
            reason: "trap".into(),
            by: "host".into(),
            at_ms: 7,
        },
    };
    let withdraw = |policy: &PolicyRef, digest: &[u8], host: &str| Change::Withdraw {
        digest: Digest::from_content(digest),
        host: host.into(),
        withdrawal: Withdrawal {
            policy: policy.clone(),
            reason: format!("trap on {host}"),
            at_ms: 8,
            is_only_host: host == "b",
        },
    };
    let lift = |policy: &PolicyRef, digest: &[u8], base_revision| Change::Lift {
        digest: Digest::from_content(digest),
        lift: Lift {
            policy: policy.clone(),
            reason: "a bad disk".into(),
            by: "ada".into(),
            at_ms: 9,
            base_revision,
        },
    };
    vec![
        publish("2.0.0", b"2", 2),
        publish("1.0.0", b"1", 1),
        publish("3.0.0", b"3", 3),
        publish("4.0.0", b"3", 3),
        activate(&one),
        shadow(&two),
        shadow(&three),
        canary(&two, 5.0),
        canary(&two, 12.5),
        canary(&three, 1.0),
        shadow(&equal),
        quarantine(&three, b"3"),
        quarantine(&equal, b"3"),
        activate(&two),
        activate(&one),
        retire(&two),
        shadow(&two),
        retire(&two),
        canary(&two, 0.0),
        canary(&two, 100.0),
        canary(&one, 3.0),
        activate(&one),
        canary(&two, 1.0),
        Change::Rollback {
            from: one.clone(),
            to: two.clone(),
            reason: "x".into(),
        },
        Change::Rollback {
            from: two.clone(),
            to: three,
            reason: "never was active: nothing changes".into(),
        },
        retire(&one),
        withdraw(&one, b"1", "a"),
        withdraw(&one, b"1", "b"),
        withdraw(&two, b"1", "a"),
        withdraw(&two, b"2", "a"),
        quarantine(&one, b"1"),
        lift(&one, b"1", 4),
        lift(&one, b"1", 5),
        lift(&equal, b"unknown", 6),
        withdraw(&one, b"1", "a"),
        Change::SetFlag {
            name: "f".into(),
            enabled: true,
        },
        Change::PutCohort {
            key: "c".into(),
            rule: Rule::everybody(),
        },
    ]
}

#[tokio::test]
async fn the_stores_and_the_pure_fold_agree_on_every_change() {
    on_both(async |registry| {
        let mut folded = RegistryState::default();
        for change in a_life() {
            folded.revision = apply_all(&*registry, std::slice::from_ref(&change)).await;
            folded.apply(&change);
            folded.head = registry.head().await.unwrap().hash;
            assert_eq!(registry.load().await.unwrap(), folded, "{change:?}");
        }
        assert!(!folded.quarantined.is_empty() && !folded.retired.is_empty());
        assert_eq!((folded.withdrawals.len(), folded.lifts.len()), (2, 2));
    })
    .await;
}

#[tokio::test]
async fn every_change_is_in_the_audit_log_newest_first() {
    on_both(async |registry| {
        let revision = apply_all(
            &*registry,
            &[
                publish("1.0.0"),
                Change::SetFlag {
                    name: "f".into(),
                    enabled: true,
                },
            ],
        )
        .await;
        let entries = registry.audit(AuditPage::NEWEST, 10).await.unwrap();
        let actions: Vec<_> = entries
            .iter()
            .map(|entry| (entry.action.as_str(), entry.subject.as_str()))
            .collect();
        assert_eq!(actions, [("set_flag", "f"), ("publish", "p@1.0.0")]);
        assert_eq!(entries[0].id, revision);
        assert_eq!(entries[0].actor, "ada");
        assert_eq!(entries[0].detail, serde_json::json!({"enabled": true}));
        assert_eq!(registry.audit(AuditPage::NEWEST, 1).await.unwrap().len(), 1);
    })
    .await;
}

pub(super) fn flag(name: &str) -> Change {
    Change::SetFlag {
        name: name.into(),
        enabled: true,
    }
}

/// Reads the log in several pages, oldest first.
async fn whole_log(registry: &dyn Registry) -> Vec<AuditEntry> {
    let (mut log, mut page) = (Vec::new(), AuditPage::OLDEST);
    loop {
        let more = registry.audit(page, 2).await.unwrap();
        let Some(last) = more.last() else { return log };
        page = AuditPage::After(last.id);
        log.extend(more);
    }
}

#[tokio::test]
async fn every_entry_of_the_log_carries_the_hash_of_the_one_before_it() {
    on_both(async |registry| {
        apply_all(&*registry, &[publish("1.0.0"), flag("ünï"), flag("g")]).await;
        let log = whole_log(&*registry).await;
        let verified = verify(&log).unwrap();
        assert_eq!((verified.entries, verified.unattested), (3, 0));
        assert_eq!(verified.head, log[2].hash);
        assert_eq!(log[0].previous_hash, None);
        assert_eq!(log[2].previous_hash, log[1].hash);
        let older = registry
            .audit(AuditPage::Before(log[2].id), 10)
            .await
            .unwrap();
        assert_eq!(older, [log[1].clone(), log[0].clone()]);
    })
    .await;
}

/// Entries of a version without a hash chain.
const OLD_ENTRIES: &str = "INSERT INTO audit (id, at_ms, actor, action, subject, detail) VALUES \
    (1, 1, 'ada', 'set_flag', 'f', '{\"weight\": 0.30000000000000004}'), (2, 2, 'bob', 'set_flag', 'g', '{}')";

async fn a_chain_begins_after_old_entries(registry: &dyn Registry) {
    let verified = verify(&whole_log(registry).await).unwrap();
    assert_eq!((verified.entries, verified.unattested), (2, 2));
    apply_all(registry, &[flag("f"), flag("g")]).await;
    let mut log = whole_log(registry).await;
    let verified = verify(&log).unwrap();
    assert_eq!((verified.entries, verified.unattested), (4, 0));
    log[0].actor = "eve".into();
    assert_eq!(verify(&log).unwrap_err().id, 3);
}

#[tokio::test]
async fn the_next_change_begins_the_chain_in_an_older_data_directory() {
    let data_dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(data_dir.path()).await.unwrap();
    let old = "CREATE TABLE audit (id INTEGER PRIMARY KEY AUTOINCREMENT, at_ms INTEGER NOT NULL, actor TEXT NOT NULL, \
        action TEXT NOT NULL, subject TEXT NOT NULL, detail TEXT NOT NULL)";
    for statement in [old, OLD_ENTRIES] {
        let run = sqlx::query(statement).execute(store.writer());
        run.await.unwrap();
    }
    drop(SqliteRegistry::open(&store).await.unwrap());
    let registry = SqliteRegistry::open(&store).await.unwrap();
    a_chain_begins_after_old_entries(&registry).await;
    let unchained = sqlx::query(
        "INSERT INTO audit (at_ms, actor, action, subject, detail) VALUES (3, '', '', '', '{}')",
    )
    .execute(store.writer())
    .await;
    assert!(unchained.is_err());
}

#[tokio::test]
async fn the_next_change_begins_the_chain_in_an_older_database() {
    let Some(database) = TestDatabase::migrated().await else {
        return;
    };
    let pool = super::pool(&database.url, 1, TIMEOUT, TIMEOUT).unwrap();
    assert!(sqlx::query(OLD_ENTRIES).execute(&pool).await.is_err());
    for statement in [
        "ALTER TABLE audit DROP CONSTRAINT audit_is_chained",
        OLD_ENTRIES,
        "UPDATE registry_revision SET revision = 2",
    ] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    let registry = PostgresRegistry::new(&database.url).unwrap();
    a_chain_begins_after_old_entries(&registry).await;
}

#[tokio::test]
async fn a_change_is_announced_to_every_other_host() {
    let Some(database) = TestDatabase::migrated().await else {
        return;
    };
    let here = PostgresRegistry::new(&database.url).unwrap();
    let there = PostgresRegistry::new(&database.url).unwrap();
    // The first signal is for the connection itself, because changes before it were not received.
    there.changed().await;
    let heard = tokio::spawn(async move {
        there.changed().await;
        there.revision().await.unwrap()
    });
    let change = Change::SetFlag {
        name: "f".into(),
        enabled: true,
    };
    let revision = here.apply(&change, "ada", 0).await.unwrap();
    assert_eq!(heard.await.unwrap(), revision);
}

#[tokio::test]
async fn a_listener_whose_connection_was_cut_listens_again() {
    let Some(database) = TestDatabase::migrated().await else {
        return;
    };
    let registry = PostgresRegistry::new(&database.url).unwrap();
    registry.changed().await;
    let pool = super::pool(&database.url, 1, TIMEOUT, TIMEOUT).unwrap();
    sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()")
        .execute(&pool)
        .await
        .unwrap();
    registry.changed().await;
}

#[tokio::test]
async fn a_registry_that_is_down_is_unavailable_and_not_empty() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://nobody@{}/nothing", unused.local_addr().unwrap());
    drop(unused);
    let registry = PostgresRegistry::new(&url).unwrap();
    let state = registry.load().await;
    assert!(
        matches!(state, Err(RegistryError::Unavailable(_))),
        "{state:?}"
    );
}

#[tokio::test]
async fn a_host_counts_every_host_that_noted_its_presence_lately_and_changes_no_revision() {
    let Some(database) = TestDatabase::migrated().await else {
        return;
    };
    let registry = PostgresRegistry::new(&database.url).unwrap();
    assert_eq!(registry.present_hosts("a").await.unwrap(), 1);
    assert_eq!(registry.present_hosts("b").await.unwrap(), 2);
    assert_eq!(registry.present_hosts("a").await.unwrap(), 2);
    let pool = sqlx::PgPool::connect(&database.url).await.unwrap();
    let age = "UPDATE registry_hosts SET seen_at = seen_at - interval '2 minutes' WHERE host = 'b'";
    sqlx::query(age).execute(&pool).await.unwrap();
    assert_eq!(registry.present_hosts("a").await.unwrap(), 1);
    assert_eq!(registry.revision().await.unwrap(), 0);
}
