//! Users as cohorts and suggestions see them.

use crate::time::UnixMs;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewerAttributes {
    /// Empty if unknown.
    pub country: String,
    /// Empty if unknown.
    pub language: String,
    pub created_at_ms: UnixMs,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SuggestedUser {
    pub user_id: u64,
    pub username: String,
    pub avatar_url: String,
    pub bio: String,
    pub follower_count: u64,
    /// `log1p(shared) + log1p(interactions)`.
    pub affinity_score: f64,
}
