//! The saturator of the `baseline` recipe. It keeps posts of one author apart: few at the top, and
//! never close together. It defers posts and drops none.

mod greedy;
mod ranks;

nova_policy_sdk::saturator! {
    parameters {
        /// How many positions count as the top. A fraction is cut off, here and below.
        top_k: 5 in 0..=1000,
        /// Posts of one author among the top, at most.
        max_in_top: 1 in 1..=1000,
        /// Posts of one author at positions i and j have |i - j| of at least this; 1 allows
        /// neighbours.
        min_distance: 3 in 1..=100,
    }
    reasons {
        Stayed = "at the position of its rank",
        MovedUp = "moved up, because better posts had to wait",
        Deferred = "deferred, because posts of its author stand too close above it or fill the top",
        DistanceRelaxed = "closer to its author's last post than min_distance, because nothing else fitted",
        TopRelaxed = "beyond max_in_top of its author, because nothing else fitted",
    }
    saturate: greedy::saturate,
    explain: greedy::reasons
}
