//! Deletion of rows that are older than every window that reads them.

use super::Outcome;
use nova_stores::embedded::EmbeddedStore;
use nova_support::clock::unix_ms;

pub async fn run(store: EmbeddedStore) -> anyhow::Result<Outcome> {
    let expired = store.expire(unix_ms()).await?;
    tracing::debug!(?expired, "expired rows deleted");
    Ok(Outcome::Done)
}
