//! The scorer of the `timeline` recipe: newest posts first, regardless of all other features.

mod recency;

nova_policy_sdk::scorer! {
    explains { recency }
    batch: recency::by_rank
}
