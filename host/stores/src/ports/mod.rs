//! The ports: what Nova asks of its stores, in the words of ranking.
//!
//! There is one trait for each job that has two real implementations: the embedded set (SQLite and
//! in-process caches) and a set of servers. The caller sets the deadline: every call may be dropped
//! at an await point without harm.

mod cache;
mod candidates;
mod events;
mod exposures;
mod import;
mod lease;
pub mod registry;
mod relational;
mod seen;

pub use cache::{CandidatesLookup, FeedCache, ValueCache};
pub use candidates::CandidateStore;
pub use events::EventSink;
pub use exposures::ExposureStore;
pub use import::{BadRow, FileKind, FileLoad, ImportTarget, Loaded, Shift};
pub use lease::Lease;
pub use registry::{Registry, RegistryError};
pub use relational::RelationalStore;
pub use seen::{SeenAmong, SeenPosts};

/// A failed call to a store. It says if a retry may help.
#[derive(Debug, thiserror::Error)]
#[error("{store}: {query}: {source}")]
pub struct StoreError {
    /// The part that is named in `degraded`, e.g. `sqlite`.
    pub store: &'static str,
    /// The name of the query, as in the metrics.
    pub query: &'static str,
    pub retryable: bool,
    #[source]
    pub source: anyhow::Error,
}

impl StoreError {
    /// Returns a copy of an error that several callers share.
    pub(crate) fn from_shared(error: &Self) -> Self {
        Self {
            store: error.store,
            query: error.query,
            retryable: error.retryable,
            source: anyhow::anyhow!("{:#}", error.source),
        }
    }
}

pub type StoreResult<T> = Result<T, StoreError>;
