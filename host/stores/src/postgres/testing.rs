//! A database for one test, on the server that `POSTGRES_URL` names.

use super::connect_options;
use super::migrate::migrate;
use sqlx::{ConnectOptions as _, Connection as _};
use uuid::Uuid;

/// A database that only one test uses. Dropping this value drops the database on the server.
#[derive(Debug)]
pub(crate) struct TestDatabase {
    server: String,
    name: String,
    pub url: String,
}

impl TestDatabase {
    /// Creates a database with the schema of `migrations/`. Returns `None` and prints the
    /// reason if there is no server.
    pub async fn migrated() -> Option<Self> {
        let database = Self::empty().await?;
        migrate(&database.url).await.unwrap();
        Some(database)
    }

    pub async fn empty() -> Option<Self> {
        let Ok(server) = std::env::var("POSTGRES_URL") else {
            assert_ne!(
                std::env::var("NOVA_REQUIRE_SERVICES").as_deref(),
                Ok("1"),
                "POSTGRES_URL is not set"
            );
            eprintln!("not run against PostgreSQL: POSTGRES_URL is not set");
            return None;
        };
        let name = format!("nova_test_{}", Uuid::new_v4().simple());
        execute(&server, format!("CREATE DATABASE {name}")).await;
        let mut url = reqwest::Url::parse(&server).unwrap();
        url.set_path(&name);
        Some(Self {
            server,
            name,
            url: url.into(),
        })
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        let server = self.server.clone();
        // A new thread drops the database, because the test's own runtime may be the one that
        // unwinds.
        let dropped = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(execute(&server, drop));
        });
        dropped.join().unwrap();
    }
}

async fn execute(server: &str, statement: String) {
    let mut connection = connect_options(server).unwrap().connect().await.unwrap();
    // A database name cannot be bound. This one is safe, because it ends in hexadecimal digits.
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}
