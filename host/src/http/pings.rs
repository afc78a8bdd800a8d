//! Pings of the stores, shared by all callers of the health routes.

#![expect(
    clippy::disallowed_methods,
    reason = "a ping is the check itself, so it has a deadline of its own"
)]

use crate::store_set::StoreSet;
use futures::future::BoxFuture;
use nova_stores::ports::StoreResult;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// Time for which ping results are reused. It is shorter than any usual probe interval.
const PINGS_KNOWN_FOR: Duration = Duration::from_millis(500);
/// Time after which a store that has not answered its ping counts as down.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ComponentState {
    Up,
    Degraded,
    Down,
}

#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Component {
    pub state: ComponentState,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Component {
    pub fn up() -> Self {
        Self {
            state: ComponentState::Up,
            detail: None,
        }
    }

    pub fn not_up(state: ComponentState, detail: impl Into<String>) -> Self {
        Self {
            state,
            detail: Some(detail.into()),
        }
    }
}

/// State of every store by name.
pub type Components = BTreeMap<&'static str, Component>;

/// Latest ping results of the stores. The routes are open to all callers, so concurrent callers
/// share one round of pings.
#[derive(Debug, Default, Clone)]
pub struct Pings(Arc<Mutex<Option<(Instant, Components)>>>);

impl Pings {
    /// Returns the state of every store by name. The embedded stores share one name.
    pub async fn components(&self, stores: &StoreSet) -> Components {
        let (pings, stores) = (self.clone(), stores.clone());
        // Runs in its own task, so that a caller who disconnects still leaves a result for the
        // next caller.
        let asked = tokio::spawn(async move {
            let mut known = pings.0.lock().await;
            if let Some((asked, components)) = &*known
                && asked.elapsed() < PINGS_KNOWN_FOR
            {
                return components.clone();
            }
            let components = ping_all(&stores).await;
            *known = Some((Instant::now(), components.clone()));
            components
        });
        asked.await.unwrap_or_default()
    }
}

async fn ping_all(stores: &StoreSet) -> Components {
    let mut pings: BTreeMap<&'static str, BoxFuture<'_, StoreResult<()>>> = BTreeMap::new();
    pings.insert(stores.cache.name(), stores.cache.ping());
    pings.insert(stores.sink.name(), stores.sink.ping());
    pings.insert(stores.relational.name(), stores.relational.ping());
    pings.insert(stores.candidates.name(), stores.candidates.ping());
    let answers = pings
        .into_iter()
        .map(|(name, ping)| async move { (name, ping_answer(name, ping).await) });
    futures::future::join_all(answers)
        .await
        .into_iter()
        .collect()
}

async fn ping_answer(store: &'static str, ping: BoxFuture<'_, StoreResult<()>>) -> Component {
    match tokio::time::timeout(PING_TIMEOUT, ping).await {
        Ok(Ok(())) => Component::up(),
        Ok(Err(error)) => {
            tracing::warn!(
                store,
                error = format!("{error:#}"),
                "a store failed its health check; reporting it as down"
            );
            Component::not_up(ComponentState::Down, "queries fail")
        }
        Err(_) => Component::not_up(ComponentState::Down, "no answer within 1 s"),
    }
}
