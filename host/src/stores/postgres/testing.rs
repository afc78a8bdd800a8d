//! A database for one test, in the server that `POSTGRES_URL` names.

use super::connect_options;
use super::migrate::migrate;
use sqlx::{ConnectOptions as _, Connection as _};
use uuid::Uuid;

/// A database of its own; dropping it drops it there too.
#[derive(Debug)]
pub(crate) struct TestDatabase {
    server: String,
    name: String,
    pub url: String,
}

impl TestDatabase {
    /// With the schema of `migrations/`; `None`, and a line that says so, when there is no server.
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
        // The test's own runtime may be the one that unwinds.
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
    // A name cannot be bound; this one is made of hexadecimal digits.
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}
