//! Newest first, whatever else is known of a post: the scorer of the `timeline` recipe.

mod recency;

nova_policy_sdk::scorer! {
    explains { recency }
    batch: recency::by_rank
}
