//! Port: where the spool drains to.

use super::StoreResult;
use async_trait::async_trait;
use nova_model::event::AcceptedEvent;

/// The destination of the spool: the aggregates themselves when embedded, the broker in the real
/// stack.
#[async_trait]
pub trait EventSink: Send + Sync + 'static {
    /// The name used in `/health` and metrics.
    fn name(&self) -> &'static str;

    /// Writes a batch durably; its last spool entry is `through`. Returns the number of events
    /// written. If a batch, or a part of one, was written before, it changes no aggregate: the sink
    /// or the consumer behind it leaves out duplicates by idempotency key or by (user, event id).
    async fn write(&self, events: &[AcceptedEvent], through: i64) -> StoreResult<u64>;

    /// The last spool entry up to which everything was written; 0 if the sink does not remember it.
    async fn written_through(&self) -> StoreResult<i64>;

    async fn ping(&self) -> StoreResult<()>;
}
