//! The counts of one UTC day that the daily metrics are computed from.

/// The raw counts behind the daily metrics, overall and per effective digest.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DailyCounts {
    pub overall: DigestCounts,
    /// Counts by effective digest; an event belongs to the ranking that its `ranking_id` names.
    pub by_digest: Vec<(String, DigestCounts)>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct DigestCounts {
    pub impressions: u64,
    pub views: u64,
    /// Impressions of posts whose `reason` in the viewer's ranking was not `followees`.
    /// `recommended_views` counts views in the same way.
    pub recommended_impressions: u64,
    pub recommended_views: u64,
    pub dwell_p50_ms: Option<f64>,
    pub dwell_p95_ms: Option<f64>,
    pub posts_served: u64,
    /// Posts that appeared twice in one ranking.
    pub posts_repeated: u64,
    pub rankings: u64,
    pub rankings_whole: u64,
}
