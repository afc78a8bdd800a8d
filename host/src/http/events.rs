//! `POST /api/v1/events`: validates a batch of events and makes it durable before it answers.

use super::auth::EventSender;
use super::extract::Json as JsonBody;
use crate::app::App;
use crate::events::drain::invalidating;
use crate::http::problem::Problem;
use crate::request_id::{REQUEST_ID, request_id};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use nova_model::event::{AcceptedEvent, Action};
use nova_model::event::{BATCH_MAX, EventBatch, EventBody, validate};
use nova_model::time::HOUR_MS;
use nova_support::clock::unix_ms;
use nova_support::metrics::METRICS;
use serde::Serialize;
use std::sync::Arc;
use tracing::Instrument as _;

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct EventsResponse {
    /// Number of events in the batch.
    pub received: usize,
    /// Number of events in the batch that were already known.
    pub deduped: usize,
}

/// Accepts actions of the viewer. A 202 means that the events survive a crash. One invalid event
/// refuses the whole batch.
#[utoipa::path(post, path = "/api/v1/events", tag = "clients", security(("viewer" = [])),
    request_body = EventBatchDescription,
    responses((status = 202, body = EventsResponse), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 413, body = Problem), (status = 429, body = Problem), (status = 503, body = Problem)))]
pub async fn accept(
    State(app): State<Arc<App>>,
    EventSender(viewer): EventSender,
    JsonBody(batch): JsonBody<EventBatch>,
) -> Result<(StatusCode, Json<EventsResponse>), Problem> {
    let events =
        read_batch(&batch, viewer).inspect_err(|_| count("refused", batch.events.len()))?;
    // Runs in its own task, so that a client that disconnects cannot leave events that are
    // stored but have no effect.
    let take = REQUEST_ID.scope(request_id(), take(app, viewer, events));
    let taken = tokio::spawn(take.in_current_span()).await;
    let answer = taken.map_err(|failed| Problem::internal(&failed))??;
    Ok((StatusCode::ACCEPTED, Json(answer)))
}

async fn take(
    app: Arc<App>,
    viewer: u64,
    events: Vec<AcceptedEvent>,
) -> Result<EventsResponse, Problem> {
    let received = events.len();
    let accepted = app.spool.append(events.clone()).await.map_err(|error| {
        count("unavailable", received);
        Problem::unavailable(error.to_string())
    })?;
    let mut known = accepted.known;
    let (elsewhere, ()) = tokio::join!(
        known_elsewhere(&app, viewer, &events, &known),
        app.invalidate(invalidating(&events)),
    );
    known.extend(elsewhere);
    known.sort_unstable();
    mark_seen(&app, viewer, &events, &known).await;
    let deduped = known.len();
    count("accepted", received - deduped);
    count("deduped", deduped);
    Ok(EventsResponse { received, deduped })
}

async fn mark_seen(app: &App, viewer: u64, events: &[AcceptedEvent], known: &[usize]) {
    let seen = seen_posts(events, known);
    if seen.is_empty() {
        return;
    }
    let marked = app.stores.seen.mark(viewer, &seen, events[0].accepted_ms);
    if let Err(error) = marked.await {
        // The events are durable. A seen filter inside this process rebuilds its state from the
        // spool. The shared filter has lost the mark, so the viewer may see these posts once
        // more.
        tracing::warn!(%error, "could not mark posts as seen; the viewer may see them again");
    }
}

/// The request body, as the API description shows it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct EventBatchDescription {
    /// 1 … 100 events.
    events: Vec<EventBody>,
}

fn read_batch(batch: &EventBatch, viewer: u64) -> Result<Vec<AcceptedEvent>, Problem> {
    if let Some(user) = batch
        .user_id
        .as_ref()
        .filter(|user| user.as_u64() != Some(viewer))
    {
        let message = format!("{user} is not the token's user; leave user_id out");
        return Err(Problem::invalid_field("user_id", message));
    }
    let size = batch.events.len();
    if !(1..=BATCH_MAX).contains(&size) {
        return Err(Problem::invalid_field(
            "events",
            format!("must have 1 … {BATCH_MAX} members, it has {size}"),
        ));
    }
    let now_ms = unix_ms();
    let (mut events, mut errors) = (Vec::with_capacity(size), Vec::new());
    for (at, value) in batch.events.iter().enumerate() {
        match validate(at, value, viewer, now_ms) {
            Ok(event) => events.push(event),
            Err(wrong) => errors.extend(wrong),
        }
    }
    if errors.is_empty() {
        Ok(events)
    } else {
        Err(Problem::invalid(errors))
    }
}

/// Returns the indices of events that are new to this spool but were accepted before, by this or
/// another host. These events are stored anyway, because only the consumer removes duplicates.
async fn known_elsewhere(
    app: &App,
    viewer: u64,
    events: &[AcceptedEvent],
    known: &[usize],
) -> Vec<usize> {
    let Some(claims) = &app.stores.claims else {
        return Vec::new();
    };
    let is_new = |place: &usize| known.binary_search(place).is_err();
    let new: Vec<usize> = (0..events.len()).filter(is_new).collect();
    match claims.claim(viewer, events, &new).await {
        Ok(known) => known,
        Err(error) => {
            tracing::warn!(%error, "could not claim events; repeats are not counted in `deduped`");
            Vec::new()
        }
    }
}

/// Age of an event up to which a repeat counts as a client's retry after a lost response.
const RETRY_WITHIN_MS: u64 = HOUR_MS;

/// Returns the posts of impressions and views. A repeated event normally marks nothing, but a
/// retry does, because the host that stored the event first may have lost the mark.
fn seen_posts(events: &[AcceptedEvent], known: &[usize]) -> Vec<u64> {
    let is_retry =
        |event: &AcceptedEvent| event.event_time_ms + RETRY_WITHIN_MS >= event.accepted_ms;
    events
        .iter()
        .enumerate()
        .filter(|(at, event)| {
            matches!(event.action, Action::Impression | Action::View)
                && (known.binary_search(at).is_err() || is_retry(event))
        })
        .map(|(_, event)| event.post_id)
        .collect()
}

fn count(outcome: &str, events: usize) {
    METRICS
        .events_received_total
        .with_label_values(&[outcome])
        .inc_by(events as u64);
}
