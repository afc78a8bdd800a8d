//! Deletion of rows that are older than every window that reads them.

use super::Outcome;
use crate::clock::unix_ms;
use crate::stores::embedded::EmbeddedStore;

pub async fn run(store: EmbeddedStore) -> anyhow::Result<Outcome> {
    let expired = store.expire(unix_ms()).await?;
    tracing::debug!(?expired, "expired rows deleted");
    Ok(Outcome::Done)
}
