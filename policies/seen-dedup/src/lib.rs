//! One copy of each post, and none that the viewer saw in the last 24 hours while enough others
//! remain: the deduper of the `baseline` recipe.

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
