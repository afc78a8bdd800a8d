//! Clients that send events until their host is gone, and record which batches were accepted.

use crate::harness::event;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub const BATCH_EVENTS: u64 = 20;

/// Returns the `number`-th batch of a sender: one like of each of the posts 1 to 20. All likes
/// of a batch have the same event time, which no other batch of this sender has.
pub fn batch(begun: DateTime<Utc>, number: u64) -> Vec<Value> {
    let time = begun - chrono::Duration::hours(20) + chrono::Duration::seconds(number as i64);
    let like = |post: u64| {
        let mut like = event(post, post, "like", 0);
        like["event_time"] = json!(time.to_rfc3339());
        like
    };
    (1..=BATCH_EVENTS).map(like).collect()
}

/// State of one sender: the number of batches that were accepted. The next one may have been
/// accepted too.
#[derive(Debug, Default)]
pub struct Sender {
    pub answered: AtomicU64,
}

/// Sends one batch after another until the host is gone.
pub async fn send_until_the_host_is_gone(
    url: String,
    token: String,
    sender: Arc<Sender>,
    begun: DateTime<Utc>,
) {
    let client = reqwest::Client::new();
    loop {
        let number = sender.answered.load(Ordering::SeqCst);
        let request = client
            .post(format!("{url}/api/v1/events"))
            .bearer_auth(&token)
            .json(&json!({"events": batch(begun, number)}));
        match request.send().await {
            Ok(answer) => assert_eq!(answer.status(), 202),
            Err(_) => return,
        }
        sender.answered.store(number + 1, Ordering::SeqCst);
    }
}
