//! Tests of the audit log and of reading what changed: the same assertions against SQLite and
//! PostgreSQL. A person who can write to the database is played by SQL statements.

use super::registry::PostgresRegistry;
use super::registry_tests::{a_life, apply_all, flag, publish, reference, store_modules};
use super::testing::TestDatabase;
use crate::embedded::EmbeddedStore;
use crate::embedded::registry::SqliteRegistry;
use crate::ports::registry::{Registry, RegistryError};
use nova_model::artifact::Digest;
use nova_model::audit::{AuditEntry, AuditPage, Verified, Verifier};
use nova_model::audit_head::AuditHead;
use nova_model::audit_key::AuditKeys;
use nova_model::experiments::cohort::Rule;
use nova_model::registry::{Change, RegistryState};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use sqlx::{PgPool, SqlitePool};
use std::sync::Arc;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(30);

/// One engine's database, which several hosts open.
enum Engine {
    Sqlite {
        store: EmbeddedStore,
        /// Removed with the engine.
        _directory: tempfile::TempDir,
    },
    Postgres(PgPool, TestDatabase),
}

impl Engine {
    async fn both() -> Vec<Self> {
        let directory = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(directory.path()).await.unwrap();
        let mut engines = vec![Self::Sqlite {
            store,
            _directory: directory,
        }];
        if let Some(database) = TestDatabase::migrated().await {
            let pool = super::pool(&database.url, 4, TIMEOUT, TIMEOUT).unwrap();
            engines.push(Self::Postgres(pool, database));
        }
        engines
    }

    async fn open(&self, keys: &AuditKeys) -> Arc<dyn Registry> {
        match self {
            Self::Sqlite { store, .. } => {
                let registry = SqliteRegistry::open(store).await.unwrap();
                Arc::new(registry.with_audit_keys(keys.clone()))
            }
            Self::Postgres(_, database) => {
                let registry = PostgresRegistry::new(&database.url).unwrap();
                Arc::new(registry.with_audit_keys(keys.clone()))
            }
        }
    }

    async fn try_run(&self, sql: impl Into<String>) -> Result<(), sqlx::Error> {
        let sql = sqlx::AssertSqlSafe(sql.into());
        match self {
            Self::Sqlite { store, .. } => {
                let writer: &SqlitePool = store.writer();
                sqlx::raw_sql(sql).execute(writer).await?;
            }
            Self::Postgres(pool, _) => {
                sqlx::raw_sql(sql).execute(pool).await?;
            }
        }
        Ok(())
    }

    async fn run(&self, sql: impl Into<String>) {
        self.try_run(sql).await.unwrap();
    }

    /// Removes what keeps the log from being changed, as the owner of the tables can.
    async fn unprotect(&self) {
        match self {
            Self::Sqlite { .. } => {
                for trigger in [
                    "audit_is_not_changed",
                    "audit_is_not_removed",
                    "audit_is_chained",
                    "audit_stays_authenticated",
                ] {
                    self.run(format!("DROP TRIGGER {trigger}")).await;
                }
            }
            Self::Postgres(..) => {
                self.run("ALTER TABLE audit DISABLE TRIGGER USER; ALTER TABLE audit DROP CONSTRAINT audit_is_chained")
                    .await;
            }
        }
    }

    /// Sets the revision that the registry has, in the place where each engine keeps it.
    async fn set_revision(&self, revision: i64) {
        self.run(match self {
            Self::Sqlite { .. } => {
                format!("UPDATE sqlite_sequence SET seq = {revision} WHERE name = 'audit'")
            }
            Self::Postgres(..) => format!("UPDATE registry_revision SET revision = {revision}"),
        })
        .await;
    }
}

const COLUMNS: &str = "id, at_ms, actor, action, subject, detail, previous_hash, hash, mac";

fn keys() -> AuditKeys {
    AuditKeys::new([[7; 32]])
}

async fn whole_log(registry: &dyn Registry) -> Vec<AuditEntry> {
    let (mut log, mut page) = (Vec::new(), AuditPage::OLDEST);
    loop {
        let more = registry.audit(page, 1_000).await.unwrap();
        let Some(last) = more.last() else { return log };
        page = AuditPage::After(last.id);
        log.extend(more);
    }
}

/// Verifies the log as a host does that remembers its head.
async fn verify(registry: &dyn Registry, remembered: AuditHead) -> Result<Verified, String> {
    let revision = registry.head().await.unwrap().revision;
    let mut verifier = Verifier::new(keys());
    verifier.expect(Some(remembered.revision), remembered.hash.unwrap());
    for entry in whole_log(registry).await {
        verifier.push(&entry).map_err(|broken| broken.to_string())?;
    }
    let verified = verifier.finish().map_err(|missing| missing.to_string())?;
    match verified.revision == revision {
        true => Ok(verified),
        false => Err("the newest entries are missing".to_owned()),
    }
}

fn random_changes(random: &mut StdRng, count: usize) -> Vec<Change> {
    (0..count)
        .map(|_| {
            let key = format!("c{}", random.random_range(0..4));
            match random.random_range(0..2) {
                0 => flag(&key),
                _ => Change::PutCohort {
                    key,
                    rule: Rule::everybody(),
                },
            }
        })
        .collect()
}

/// Returns a random forgery of a log of `n` entries, as SQL, and the revision to set afterwards.
fn forgery(random: &mut StdRng, log: &[AuditEntry]) -> (String, Option<i64>) {
    let n = log.len() as i64;
    let at = random.random_range(1..=n);
    let other = 1 + (at - 1 + random.random_range(1..n)) % n;
    let forged = |field: &str| format!("UPDATE audit SET {field} WHERE id = {at}");
    match random.random_range(0..12) {
        0 => (format!("DELETE FROM audit WHERE id = {at}"), None),
        1 => (format!("DELETE FROM audit WHERE id >= {at}"), None),
        2 => (format!("DELETE FROM audit WHERE id >= {at}"), Some(at - 1)),
        3 => ("DELETE FROM audit".to_owned(), Some(0)),
        4 => (forged("actor = 'eve'"), None),
        5 => (forged("detail = '{\"enabled\": \"perhaps\"}'"), None),
        6 => (forged("at_ms = at_ms + 1"), None),
        7 => (forged("action = 'retire'"), None),
        // An authentication that is missing at the beginning changes nothing that others attest.
        8 => (
            format!("UPDATE audit SET mac = NULL WHERE id = {}", at.max(2)),
            None,
        ),
        9 => (
            format!(
                "UPDATE audit SET id = -1 WHERE id = {at}; UPDATE audit SET id = {at} WHERE id = {other}; \
                 UPDATE audit SET id = {other} WHERE id = -1"
            ),
            None,
        ),
        10 => (appended(log, &AuditKeys::default()), Some(n + 1)),
        _ => (appended(log, &AuditKeys::new([[8; 32]])), Some(n + 1)),
    }
}

/// Returns the statement that adds an entry with a correct chain, as a person with write access
/// and without the hosts' key can.
fn appended(log: &[AuditEntry], keys: &AuditKeys) -> String {
    let (id, previous) = (log.len() as i64 + 1, log[log.len() - 1].hash);
    let entry = AuditEntry::new(&flag("forged"), "ada", id, 5, previous, keys).unwrap();
    let mac = entry
        .mac
        .map_or("NULL".to_owned(), |mac| format!("'{mac}'"));
    format!(
        "INSERT INTO audit ({COLUMNS}) VALUES ({id}, 5, 'ada', '{}', '{}', '{}', '{}', '{}', {mac})",
        entry.action,
        entry.subject,
        entry.detail,
        previous.unwrap(),
        entry.hash.unwrap()
    )
}

#[tokio::test]
async fn every_removed_changed_moved_cut_off_or_added_entry_is_found() {
    for engine in Engine::both().await {
        let mut random = StdRng::seed_from_u64(11);
        let registry = engine.open(&keys()).await;
        apply_all(&*registry, &random_changes(&mut random, 9)).await;
        let (log, head) = (whole_log(&*registry).await, registry.head().await.unwrap());
        engine.unprotect().await;
        engine
            .run("CREATE TABLE audit_copy AS SELECT * FROM audit")
            .await;
        for _ in 0..80 {
            let (sql, revision) = forgery(&mut random, &log);
            engine.run(sql.as_str()).await;
            if let Some(revision) = revision {
                engine.set_revision(revision).await;
            }
            let found = verify(&*registry, head).await;
            assert!(found.is_err(), "not found: {sql}: {found:?}");
            engine
                .run(format!(
                    "DELETE FROM audit; INSERT INTO audit ({COLUMNS}) SELECT {COLUMNS} FROM audit_copy ORDER BY id"
                ))
                .await;
            engine.set_revision(head.revision).await;
            let verified = verify(&*registry, head).await.unwrap();
            assert_eq!((verified.entries, verified.authenticated), (9, 9));
        }
    }
}

#[tokio::test]
async fn the_database_refuses_to_change_or_remove_an_entry() {
    for engine in Engine::both().await {
        let registry = engine.open(&AuditKeys::default()).await;
        apply_all(&*registry, &[flag("f"), flag("g")]).await;
        let mut refused = vec![
            "UPDATE audit SET actor = 'eve'",
            "DELETE FROM audit WHERE id = 2",
        ];
        if let Engine::Postgres(..) = engine {
            refused.push("TRUNCATE audit");
        }
        for sql in refused {
            assert!(engine.try_run(sql).await.is_err(), "{sql}");
        }
        assert_eq!(whole_log(&*registry).await.len(), 2);
    }
}

#[tokio::test]
async fn a_log_becomes_authenticated_with_the_first_key_and_then_needs_one() {
    for engine in Engine::both().await {
        let without = engine.open(&AuditKeys::default()).await;
        let with = engine.open(&keys()).await;
        let revision = apply_all(&*without, &[flag("f"), flag("g")]).await;
        let revision = with.apply(&flag("h"), "ada", revision).await.unwrap();
        let verified = verify(&*with, with.head().await.unwrap()).await.unwrap();
        assert_eq!(verified.before_authentication, 2);
        assert_eq!(verified.authenticated, 1);
        let refused = without.apply(&flag("i"), "ada", revision).await;
        assert!(
            matches!(refused, Err(RegistryError::NoAuditKey(_))),
            "{refused:?}"
        );
        // A host of the former version writes no authentication either.
        let log = whole_log(&*with).await;
        let older = appended(&log, &AuditKeys::default());
        assert!(engine.try_run(older).await.is_err());
        assert_eq!(with.head().await.unwrap().revision, revision);
        with.apply(&flag("i"), "ada", revision).await.unwrap();
    }
}

#[tokio::test]
async fn a_page_of_the_log_ends_before_its_details_get_too_large() {
    let ids: Vec<u64> = (0..40_000).map(|id| id + 1_000_000_000).collect();
    let rule: Rule = serde_json::from_value(serde_json::json!({ "ids": ids })).unwrap();
    let large = |n: usize| Change::PutCohort {
        key: format!("c{n}"),
        rule: rule.clone(),
    };
    for engine in Engine::both().await {
        let registry = engine.open(&AuditKeys::default()).await;
        let changes: Vec<Change> = (0..8).map(large).chain([flag("f")]).collect();
        apply_all(&*registry, &changes).await;
        for newest_first in [true, false] {
            let mut page = match newest_first {
                true => AuditPage::NEWEST,
                false => AuditPage::OLDEST,
            };
            let (mut ids, mut pages) = (Vec::new(), 0);
            loop {
                let entries = registry.audit(page, 1_000).await.unwrap();
                let Some(last) = entries.last() else { break };
                let bytes = entries.iter().map(|entry| entry.detail.to_string().len());
                let bytes: usize = bytes.sum();
                assert!(entries.len() == 1 || bytes < 2 << 20, "{bytes} bytes");
                page = match newest_first {
                    true => AuditPage::Before(last.id),
                    false => AuditPage::After(last.id),
                };
                ids.extend(entries.iter().map(|entry| entry.id));
                pages += 1;
            }
            assert!(pages > 2, "{pages} pages");
            if newest_first {
                ids.reverse();
            }
            assert_eq!(ids, (1..=9).collect::<Vec<i64>>());
        }
    }
}

#[tokio::test]
async fn reading_what_changed_gives_the_same_state_as_reading_the_whole_registry() {
    for engine in Engine::both().await {
        let keys = AuditKeys::default();
        let (here, there) = (engine.open(&keys).await, engine.open(&keys).await);
        let mut random = StdRng::seed_from_u64(5);
        let mut changes = a_life();
        let mut more = random_changes(&mut random, 20);
        changes.append(&mut more);
        // Publications come once, so the order of the others is random around them.
        changes[4..].shuffle(&mut random);
        for change in changes {
            let changed_by = [&here, &there][random.random_range(0..2)];
            let revision = changed_by.head().await.unwrap().revision;
            store_modules(changed_by.as_ref(), &change).await;
            changed_by.apply(&change, "ada", revision).await.unwrap();
            if random.random_range(0..3) == 0 {
                let whole = engine.open(&keys).await.load().await.unwrap();
                assert_eq!(here.load().await.unwrap(), whole, "{change:?}");
            }
        }
        let whole = engine.open(&keys).await.load().await.unwrap();
        assert_eq!(here.load().await.unwrap(), whole);
        assert_eq!(there.load().await.unwrap(), whole);
    }
}

#[tokio::test]
async fn a_load_reads_only_what_changed_and_everything_after_a_restored_backup() {
    for engine in Engine::both().await {
        let registry = engine.open(&AuditKeys::default()).await;
        apply_all(&*registry, &[publish("1.0.0"), flag("f")]).await;
        let flags = async || registry.load().await.unwrap().flags;
        assert_eq!(flags().await.len(), 1);
        // No entry of the log tells of this row.
        let other = match engine {
            Engine::Sqlite { .. } => "INSERT INTO flags (name, enabled) VALUES ('g', 1)",
            Engine::Postgres(..) => "INSERT INTO flags (name, enabled) VALUES ('g', true)",
        };
        engine.run(other).await;
        let activate = Change::Activate {
            policy: reference("1.0.0"),
        };
        apply_all(&*registry, &[activate]).await;
        assert_eq!(flags().await.len(), 1);
        // The same revision with another entry, as after a restored backup.
        engine.unprotect().await;
        let hash = Digest::from_content(b"another entry");
        engine
            .run(format!("UPDATE audit SET hash = '{hash}' WHERE id = 3"))
            .await;
        assert_eq!(registry.load().await.unwrap().head, Some(hash));
        assert_eq!(flags().await.len(), 2);
    }
}

#[tokio::test]
async fn a_clean_up_removes_the_named_versions_and_modules_on_every_host() {
    for engine in Engine::both().await {
        let keys = AuditKeys::default();
        let (here, there) = (engine.open(&keys).await, engine.open(&keys).await);
        let activate = |version| Change::Activate {
            policy: reference(version),
        };
        let changes = [
            publish("1.0.0"),
            publish("1.0.0-dev.1"),
            activate("1.0.0-dev.1"),
            activate("1.0.0"),
            activate("1.0.0-dev.1"),
            activate("1.0.0"),
        ];
        apply_all(&*here, &changes).await;
        assert_eq!(there.load().await.unwrap().policies.len(), 2);
        let stored = here.stored_modules().await.unwrap();
        let bytes = here.module(stored[0].digest).await.unwrap().unwrap();
        assert_eq!((stored.len(), stored[0].bytes), (1, bytes.len() as u64));
        let prune = Change::Prune {
            policies: vec![reference("1.0.0-dev.1")],
            modules: vec![stored[0].digest],
        };
        apply_all(&*here, &[prune]).await;
        for registry in [&here, &there] {
            let state = registry.load().await.unwrap();
            assert_eq!(state.policies.len(), 1);
            assert_eq!(state.policies[0].spec.policy, reference("1.0.0"));
            let stack = [reference("1.0.0"), reference("1.0.0")];
            assert_eq!(state.activations, stack);
            assert_eq!(registry.module(stored[0].digest).await.unwrap(), None);
        }
        let newest = here.audit(AuditPage::NEWEST, 1).await.unwrap().remove(0);
        assert_eq!(newest.action, "prune");
        assert_eq!(newest.detail["policies"][0], "p@1.0.0-dev.1");
    }
}

#[tokio::test]
async fn the_bytes_of_a_module_are_compared_with_its_digest() {
    for engine in Engine::both().await {
        let registry = engine.open(&AuditKeys::default()).await;
        apply_all(&*registry, &[publish("1.0.0")]).await;
        let RegistryState { policies, .. } = registry.load().await.unwrap();
        let digest = policies[0].spec.stages.score.module;
        assert!(registry.module(digest).await.unwrap().is_some());
        engine
            .run(match engine {
                Engine::Sqlite { .. } => "UPDATE policy_modules SET bytes = x'00'",
                Engine::Postgres(..) => "UPDATE policy_modules SET bytes = '\\x00'",
            })
            .await;
        let damaged = registry.module(digest).await;
        assert!(
            matches!(damaged, Err(RegistryError::Damaged(found)) if found == digest),
            "{damaged:?}"
        );
        // The module is stored again, so its bytes are right again.
        store_modules(&*registry, &publish("1.0.0")).await;
        assert!(registry.module(digest).await.unwrap().is_some());
        store_modules(&*registry, &publish("1.0.0")).await;
        assert!(registry.module(digest).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_publication_whose_modules_were_removed_meanwhile_is_refused() {
    for engine in Engine::both().await {
        let registry = engine.open(&AuditKeys::default()).await;
        // The removal comes after the modules are stored and before the change.
        engine
            .run(match engine {
                Engine::Sqlite { .. } => {
                    "CREATE TRIGGER lost AFTER INSERT ON policy_modules \
                     BEGIN DELETE FROM policy_modules WHERE digest = NEW.digest; END"
                }
                Engine::Postgres(..) => {
                    "CREATE FUNCTION lost() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
                     CREATE TRIGGER lost BEFORE INSERT ON policy_modules FOR EACH ROW EXECUTE FUNCTION lost()"
                }
            })
            .await;
        store_modules(&*registry, &publish("1.0.0")).await;
        let refused = registry.apply(&publish("1.0.0"), "ada", 0).await;
        assert!(
            matches!(refused, Err(RegistryError::Conflict(_))),
            "{refused:?}"
        );
        assert_eq!(registry.load().await.unwrap(), RegistryState::default());
    }
}

#[tokio::test]
async fn no_change_waits_for_the_modules_of_a_publication() {
    let Some(database) = TestDatabase::migrated().await else {
        return;
    };
    let pool = super::pool(&database.url, 1, TIMEOUT, TIMEOUT).unwrap();
    let open = || PostgresRegistry::new(&database.url).unwrap();
    let (publisher, other) = (open(), open());
    // Holds the publication up while it stores its modules, as a slow network does.
    let mut slow = pool.begin().await.unwrap();
    let lock = "LOCK TABLE policy_modules IN EXCLUSIVE MODE";
    sqlx::query(lock).execute(&mut *slow).await.unwrap();
    let publishing = tokio::spawn(async move {
        store_modules(&publisher, &publish("1.0.0")).await;
        publisher.apply(&publish("1.0.0"), "ada", 0).await
    });
    let waiting =
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'policy_modules'::regclass";
    loop {
        let waiting: i64 = sqlx::query_scalar(waiting)
            .fetch_one(&mut *slow)
            .await
            .unwrap();
        if waiting > 0 {
            break;
        }
        tokio::task::yield_now().await;
    }
    // The other host's own transfers take all connections that they may.
    let other = Arc::new(other);
    let transfers = (0..4).map(|_| {
        let other = other.clone();
        tokio::spawn(async move { store_modules(&*other, &publish("1.0.0")).await })
    });
    let transfers: Vec<_> = transfers.collect();
    tokio::task::yield_now().await;
    let revision = other.apply(&flag("f"), "bob", 0).await.unwrap();
    assert_eq!(revision, 1);
    slow.commit().await.unwrap();
    for transfer in transfers {
        transfer.await.unwrap();
    }
    let late = publishing.await.unwrap();
    assert!(matches!(late, Err(RegistryError::Conflict(_))), "{late:?}");
    let revision = other.apply(&publish("1.0.0"), "ada", revision).await;
    assert_eq!(revision.unwrap(), 2);
}
