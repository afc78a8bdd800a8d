//! Exposures: the record that a ranking was served.

use crate::time::UnixMs;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The record that a ranking was served. There is one for each ranking, regardless of the
/// number of pages served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exposure {
    pub ranking_id: uuid::Uuid,
    pub request_id: String,
    pub user_id: u64,
    pub served_at_ms: UnixMs,
    pub served_by: String,
    /// `name@version`, or `native`.
    pub policy: String,
    pub effective_digest: String,
    pub experiment: Option<String>,
    pub variation: Option<String>,
    /// (post id, reason) in the order shown.
    pub posts: Vec<(u64, Cow<'static, str>)>,
    /// Empty if no part was missing.
    pub degraded: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct VariationCount {
    pub variation: String,
    pub exposures: u64,
    pub viewers: u64,
}
