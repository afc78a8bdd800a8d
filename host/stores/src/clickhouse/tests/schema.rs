//! Tests of the migration, and that the server accepts every statement of the schema.

use super::TestDatabase;

#[tokio::test]
async fn migrating_creates_the_database_and_a_second_run_changes_nothing() {
    let Some(database) = TestDatabase::absent() else {
        return;
    };
    let applied = database.store.migrate().await.unwrap();
    assert_eq!(applied, ["community", "events", "aggregates", "served"]);
    let describe = "SELECT name, create_table_query FROM system.tables WHERE database = currentDatabase() ORDER BY name";
    let before: Vec<(String, String)> = database.rows(describe).await;
    assert_eq!(database.store.migrate().await.unwrap(), Vec::<&str>::new());
    assert_eq!(database.rows::<(String, String)>(describe).await, before);
}

#[tokio::test]
async fn two_hosts_can_migrate_at_once() {
    let Some(database) = TestDatabase::absent() else {
        return;
    };
    let (first, second) = tokio::join!(database.store.migrate(), database.store.migrate());
    first.unwrap();
    second.unwrap();
    let versions = "SELECT count() FROM schema_version FINAL";
    assert_eq!(database.number(versions).await, 4);
}

#[tokio::test]
async fn a_schema_newer_than_the_program_is_refused() {
    let Some(database) = TestDatabase::migrated().await else {
        return;
    };
    let newer = "INSERT INTO schema_version (version, name) SELECT 1000, 'tomorrow'";
    database.execute(newer).await;
    let refused = database.store.migrate().await.unwrap_err();
    assert!(refused.to_string().contains("1000"), "{refused}");
    assert!(!refused.retryable);
}
