//! `POST /api/v1/events`.

use super::auth::EventSender;
use super::extract::Json as JsonBody;
use crate::app::App;
use crate::clock::unix_ms;
use crate::error::Problem;
use crate::events::drain::overtaking;
use crate::events::event::{BATCH_MAX, EventBatch, EventBody, validate};
use crate::metrics::METRICS;
use crate::stores::{AcceptedEvent, Action};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use std::sync::Arc;

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct EventsResponse {
    /// Events in the batch.
    pub received: usize,
    /// How many of them were known already.
    pub deduped: usize,
}

/// What the viewer did. 202 means that it survives a crash; one bad event refuses the whole batch.
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
    let received = events.len();
    let accepted = app.spool.append(events.clone()).await.map_err(|error| {
        count("unavailable", received);
        Problem::unavailable(error.to_string())
    })?;
    let deduped = accepted.known.len();
    count("accepted", received - deduped);
    count("deduped", deduped);
    let seen = seen_posts(&events, &accepted.known);
    if !seen.is_empty()
        && let Err(error) = app
            .stores
            .seen
            .mark(viewer, &seen, events[0].accepted_ms)
            .await
    {
        // The events are safe. A filter in the process reads them from the spool when it is asked again; the shared one
        // has lost the mark, and the viewer may see these posts once more.
        tracing::warn!(%error, "seen posts");
    }
    app.overtake(overtaking(&events)).await;
    Ok((
        StatusCode::ACCEPTED,
        Json(EventsResponse { received, deduped }),
    ))
}

/// The body, for the description of the API.
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

/// Posts of impressions and views that were accepted now; a repeat shows nothing again.
fn seen_posts(events: &[AcceptedEvent], known: &[usize]) -> Vec<u64> {
    events
        .iter()
        .enumerate()
        .filter(|(at, event)| {
            matches!(event.action, Action::Impression | Action::View)
                && known.binary_search(at).is_err()
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
