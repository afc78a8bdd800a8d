//! The saturator of the `decay-diversity` recipe. It discounts each further post of an author
//! instead of forbidding it, so a much better post still wins and a slightly better one gives way.

mod discount;

nova_policy_sdk::saturator! {
    features { author_recent_impressions }
    parameters {
        /// What each post of its author further up leaves of a post's score.
        author_decay: 0.7 in 0.01..=1.0,
        /// What each impression of the author to this viewer in the last 24 hours leaves of it.
        impression_decay: 0.97 in 0.01..=1.0,
    }
    saturate: discount::saturate
}
