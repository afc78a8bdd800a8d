//! The schema in `migrations/`, compiled in and applied by `nova migrate`.

use super::connect_options;
use anyhow::Context as _;
use sqlx::migrate::{Migrate as _, MigrateError, Migration, MigrationType, Migrator};
use sqlx::{ConnectOptions as _, SqlSafeStr as _};

/// The migrations in the order of their numbers. A released migration never changes. If it has
/// an error, a later one corrects it.
const MIGRATIONS: [(i64, &str, &str); 8] = [
    (
        1,
        "community",
        include_str!("../../../../migrations/0001_community.sql"),
    ),
    (
        2,
        "capture",
        include_str!("../../../../migrations/0002_capture.sql"),
    ),
    (
        3,
        "import",
        include_str!("../../../../migrations/0003_import.sql"),
    ),
    (
        4,
        "registry",
        include_str!("../../../../migrations/0004_registry.sql"),
    ),
    (
        5,
        "lifecycle",
        include_str!("../../../../migrations/0005_lifecycle.sql"),
    ),
    (
        6,
        "audit_chain",
        include_str!("../../../../migrations/0006_audit_chain.sql"),
    ),
    (
        7,
        "withdrawals",
        include_str!("../../../../migrations/0007_withdrawals.sql"),
    ),
    (
        9,
        "audit_authentication",
        include_str!("../../../../migrations/0009_audit_authentication.sql"),
    ),
];

fn migrator() -> Migrator {
    let migration = |(version, name, sql): (i64, &'static str, &'static str)| {
        let sql = sql.into_sql_str();
        Migration::new(version, name.into(), MigrationType::Simple, sql, false)
    };
    Migrator::with_migrations(MIGRATIONS.map(migration).to_vec())
}

/// Brings the schema up to date: applies the missing migrations in order, each in one
/// transaction, and returns the names of those applied now. If several run at once, one
/// migrates and the others wait.
///
/// # Errors
/// If the server does not respond, the schema is newer than this program or was changed by
/// hand, or a statement fails.
pub async fn migrate(url: &str) -> anyhow::Result<Vec<String>> {
    let mut connection = connect_options(url)?
        .connect()
        .await
        .context("could not connect to PostgreSQL; check POSTGRES_URL and that the server runs")?;
    let migrator = migrator();
    connection
        .ensure_migrations_table(&migrator.table_name)
        .await?;
    let before = connection
        .list_applied_migrations(&migrator.table_name)
        .await?;
    let newest = before.iter().map(|applied| applied.version).max();
    let known = MIGRATIONS.map(|(version, ..)| version).into_iter().max();
    if let (Some(newest), Some(known)) = (newest, known) {
        anyhow::ensure!(
            newest <= known,
            "PostgreSQL's schema has version {newest}, this nova knows up to {known}: use the newer nova that made it"
        );
    }
    migrator
        .run_direct(None, &mut connection, false)
        .await
        .map_err(explain)?;
    Ok(MIGRATIONS
        .into_iter()
        .filter(|(version, ..)| before.iter().all(|applied| applied.version != *version))
        .map(|(version, name, _)| format!("{version:04}_{name}"))
        .collect())
}

fn explain(error: MigrateError) -> anyhow::Error {
    match error {
        MigrateError::VersionMismatch(version) => anyhow::anyhow!(
            "migration {version} in PostgreSQL differs from the one in this nova: use the nova that applied it, or an empty database"
        ),
        other => anyhow::Error::from(other).context("could not migrate PostgreSQL"),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_directory_is_compiled_in() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
        let mut files: Vec<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let compiled = MIGRATIONS.map(|(version, name, _)| format!("{version:04}_{name}.sql"));
        assert_eq!(files, compiled);
    }
}
