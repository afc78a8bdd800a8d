//! Sessions of the engine, shared by the requests. Statements of different sessions run
//! concurrently; statements of one session run one after the other.
//!
//! A session keeps its database and settings from one statement to the next, but a request to
//! ClickHouse's HTTP interface starts with defaults. Each session is therefore stored with its
//! current database and settings. A request gets a session that already has the required ones,
//! if there is one; otherwise a session's database and settings are changed first.

use crate::engine::{Engine, Output, Session};
use crate::request::{Statement, format_clause};
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Semaphore;

#[derive(Debug)]
pub struct Sessions {
    engine: Engine,
    idle: Mutex<Vec<Lent>>,
    free: Semaphore,
    /// Directory for the data of INSERTs until the engine has read it.
    spool_dir: PathBuf,
    /// Session that keeps the engine running, because closing the last session stops the engine.
    _keeper: Mutex<Session>,
}

#[derive(Debug)]
struct Lent {
    session: Session,
    database: String,
    settings: BTreeMap<String, String>,
}

impl Sessions {
    /// # Errors
    /// If the engine does not start, e.g. because another process uses the directory.
    pub fn open(engine: Engine, count: usize, data_dir: &Path) -> anyhow::Result<Self> {
        let keeper = engine.connect()?;
        let idle: anyhow::Result<Vec<Lent>> = (0..count).map(|_| Lent::new(&engine)).collect();
        // The engine holds the lock on the directory by now, so any file there belongs to a
        // front that was killed. No response was sent for that data.
        let spool_dir = data_dir.join("front-spool");
        if spool_dir.exists() {
            std::fs::remove_dir_all(&spool_dir)?;
        }
        std::fs::create_dir(&spool_dir)?;
        Ok(Self {
            engine,
            idle: Mutex::new(idle?),
            free: Semaphore::new(count),
            spool_dir,
            _keeper: Mutex::new(keeper),
        })
    }

    /// Runs a statement on its own thread. The statement completes even if the caller gives up.
    ///
    /// # Errors
    /// The outer error is a failure of this front; the inner error is the engine's
    /// message.
    pub async fn run(
        self: &Arc<Self>,
        statement: Statement,
    ) -> anyhow::Result<Result<Output, String>> {
        let this = self.clone();
        let permit = self.free.acquire().await?;
        // The permit stays with the work. Returning it when a request is dropped would allow a
        // busy session to be lent again.
        permit.forget();
        tokio::task::spawn_blocking(move || {
            let result = this.run_blocking(&statement);
            this.free.add_permits(1);
            result
        })
        .await?
    }

    fn run_blocking(&self, statement: &Statement) -> anyhow::Result<Result<Output, String>> {
        let mut lent = self.lend(statement)?;
        if let Err(message) = lent.prepare(statement) {
            // The statements may have been applied partially, so a new session replaces this
            // one.
            drop(lent);
            let fresh = Lent::new(&self.engine)?;
            self.idle().push(fresh);
            return Ok(Err(message));
        }
        let result = self.execute(&mut lent.session, statement);
        self.idle().push(lent);
        result
    }

    fn execute(
        &self,
        session: &mut Session,
        statement: &Statement,
    ) -> anyhow::Result<Result<Output, String>> {
        let Statement {
            sql,
            data,
            format,
            params,
            ..
        } = statement;
        if data.is_empty() {
            return Ok(session.query(sql.as_bytes(), format, params));
        }
        // The engine reads data that follows a statement as text and ends it at an empty line,
        // which binary data may contain anywhere. From a file it reads every byte.
        let file = tempfile::Builder::new().tempfile_in(&self.spool_dir)?;
        std::fs::write(file.path(), data)?;
        let path = file
            .path()
            .to_str()
            .context("the data directory is not UTF-8")?;
        let format_at = format_clause(sql.as_bytes()).context("data without a format")?;
        let (insert, format_clause) = sql.split_at(format_at);
        let sql = format!(
            "{insert} FROM INFILE {} COMPRESSION 'none' {format_clause}",
            quoted(path)
        );
        Ok(session.query(sql.as_bytes(), format, params))
    }

    /// Takes an idle session. There always is one while the caller holds a permit.
    fn lend(&self, wanted: &Statement) -> anyhow::Result<Lent> {
        let mut idle = self.idle();
        let same =
            |lent: &Lent| lent.database == wanted.database && lent.settings == wanted.settings;
        let found = idle.iter().position(same);
        match found.or_else(|| idle.len().checked_sub(1)) {
            Some(position) => Ok(idle.swap_remove(position)),
            None => {
                drop(idle);
                Lent::new(&self.engine)
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Lent>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lent {
    fn new(engine: &Engine) -> anyhow::Result<Self> {
        Ok(Self {
            session: engine.connect()?,
            database: "default".to_owned(),
            settings: BTreeMap::new(),
        })
    }

    fn prepare(&mut self, wanted: &Statement) -> Result<(), String> {
        if self.settings != wanted.settings {
            let forgotten = self
                .settings
                .keys()
                .filter(|name| !wanted.settings.contains_key(*name));
            let changes: Vec<String> = forgotten
                .map(|name| format!("{name} = DEFAULT"))
                .chain(
                    wanted
                        .settings
                        .iter()
                        .map(|(name, value)| format!("{name} = {}", quoted(value))),
                )
                .collect();
            self.tell(&format!("SET {}", changes.join(", ")))?;
            self.settings.clone_from(&wanted.settings);
        }
        if self.database != wanted.database {
            self.tell(&format!(
                "USE `{}`",
                wanted.database.replace('\\', "\\\\").replace('`', "\\`")
            ))?;
            self.database.clone_from(&wanted.database);
        }
        Ok(())
    }

    fn tell(&mut self, sql: &str) -> Result<(), String> {
        self.session.query(sql.as_bytes(), "Null", &[]).map(drop)
    }
}

/// Returns a ClickHouse string literal.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
