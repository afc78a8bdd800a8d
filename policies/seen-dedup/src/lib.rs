//! The deduper of the `baseline` recipe. It keeps one copy of each post and removes posts that the
//! viewer saw in the last 24 hours, as long as enough others remain.

mod repeats;

nova_policy_sdk::deduper! {
    features { seen }
    parameters {
        /// Seen posts come back, newest first, until this many posts remain. A fraction is cut off.
        min_results: 50 in 1..=10000,
    }
    reasons {
        Fresh = "not seen in the last 24 hours",
        Returned = "seen, but too few others remain",
        Seen = "seen in the last 24 hours",
        Copy = "another copy of a post that stands before it",
    }
    dedup: repeats::keep,
    explain: repeats::reasons
}
