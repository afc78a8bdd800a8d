//! The schema migrations: numbered files, each applied once and recorded in `schema_version`.

use super::{ClickHouseStore, failure};
use crate::guard::Failure;
use crate::ports::StoreResult;

/// All migrations in order. The statements of a file end with `;` at the end of a line.
const MIGRATIONS: [Migration; 4] = [
    Migration {
        version: 1,
        name: "community",
        sql: include_str!("../../../../clickhouse/0001_community.sql"),
    },
    Migration {
        version: 2,
        name: "events",
        sql: include_str!("../../../../clickhouse/0002_events.sql"),
    },
    Migration {
        version: 3,
        name: "aggregates",
        sql: include_str!("../../../../clickhouse/0003_aggregates.sql"),
    },
    Migration {
        version: 4,
        name: "served",
        sql: include_str!("../../../../clickhouse/0004_served.sql"),
    },
];

#[derive(Debug)]
struct Migration {
    version: u32,
    name: &'static str,
    sql: &'static str,
}

/// The table of applied versions. Its engine replaces equal rows, so that two hosts that migrate
/// at once leave one row.
const SCHEMA_VERSION: &str = "
CREATE TABLE IF NOT EXISTS schema_version (
    version    UInt32,
    name       String,
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3)
) ENGINE = ReplacingMergeTree ORDER BY version";

impl ClickHouseStore {
    /// Brings the database to the schema that this program knows, and creates the database if it
    /// is missing. Running it again, or on two hosts at once, changes nothing. Returns the names
    /// of the migrations that were applied.
    ///
    /// # Errors
    /// Fails if the server fails or refuses, or if a newer program wrote the schema.
    pub async fn migrate(&self) -> StoreResult<Vec<&'static str>> {
        self.work_guard.run("migrate", self.apply_missing()).await
    }

    async fn apply_missing(&self) -> Result<Vec<&'static str>, Failure> {
        self.create_database().await?;
        self.execute(SCHEMA_VERSION).await?;
        let found: u32 = self
            .worker
            .query("SELECT max(version) FROM schema_version")
            .fetch_one()
            .await
            .map_err(failure)?;
        let known = MIGRATIONS.last().map_or(0, |migration| migration.version);
        if found > known {
            return Err(Failure::permanent(anyhow::anyhow!(
                "its schema has version {found}, this nova knows up to {known}: use the newer nova that wrote it"
            )));
        }
        let mut applied = Vec::new();
        for migration in MIGRATIONS
            .iter()
            .filter(|migration| migration.version > found)
        {
            self.apply(migration).await?;
            applied.push(migration.name);
        }
        Ok(applied)
    }

    async fn apply(&self, migration: &Migration) -> Result<(), Failure> {
        let Migration { version, name, sql } = migration;
        for statement in statements(sql) {
            self.execute(statement).await.map_err(|failed| Failure {
                source: failed.source.context(format!("{version:04}_{name}.sql")),
                ..failed
            })?;
        }
        let remember =
            "INSERT INTO schema_version (version, name) SELECT {version:UInt32}, {name:String}";
        (self.worker.query(remember))
            .param("version", version)
            .param("name", name)
            .execute()
            .await
            .map_err(failure)
    }

    /// Checks first if the database exists, because the user may lack the right to create
    /// databases and not need it.
    async fn create_database(&self) -> Result<(), Failure> {
        let outside = self.worker.clone().with_database("default");
        let found: u64 = outside
            .query("SELECT count() FROM system.databases WHERE name = {name:String}")
            .param("name", &self.database)
            .fetch_one()
            .await
            .map_err(failure)?;
        if found > 0 {
            return Ok(());
        }
        outside
            .query("CREATE DATABASE IF NOT EXISTS {name:Identifier}")
            .param("name", &self.database)
            .execute()
            .await
            .map_err(failure)
    }

    async fn execute(&self, statement: &str) -> Result<(), Failure> {
        let query = self.worker.query_raw(statement);
        let done = query.execute().await.map_err(failure);
        done.map_err(|failed| Failure {
            source: failed.source.context(first_line(statement).to_owned()),
            ..failed
        })
    }
}

/// Splits a file at semicolons at the ends of lines, and leaves out parts that hold only comments.
fn statements(sql: &str) -> impl Iterator<Item = &str> {
    let says_something = |statement: &&str| {
        let lines = statement.lines().map(str::trim);
        lines
            .clone()
            .any(|line| !line.is_empty() && !line.starts_with("--"))
    };
    sql.split(";\n").map(str::trim).filter(says_something)
}

fn first_line(statement: &str) -> &str {
    let code = statement
        .lines()
        .find(|line| !line.trim_start().starts_with("--") && !line.trim().is_empty());
    code.unwrap_or_default()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_migration_in_the_order_of_its_number() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../clickhouse");
        let mut files: Vec<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".sql"))
            .collect();
        files.sort();
        let known = MIGRATIONS
            .iter()
            .map(|m| format!("{:04}_{}.sql", m.version, m.name));
        assert_eq!(files, known.collect::<Vec<_>>());
        assert!(MIGRATIONS.is_sorted_by_key(|migration| migration.version));
    }

    #[test]
    fn statements_name_no_database_and_may_be_repeated() {
        for migration in &MIGRATIONS {
            assert!(statements(migration.sql).count() > 0);
            for statement in statements(migration.sql) {
                let line = first_line(statement);
                assert!(
                    line.contains("IF NOT EXISTS") && !line.contains('.'),
                    "{line}"
                );
            }
        }
    }
}
