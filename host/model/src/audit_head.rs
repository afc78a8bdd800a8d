//! The place where the audit log ends.

use crate::artifact::Digest;
use serde::{Deserialize, Serialize};

/// The newest entry of the audit log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditHead {
    /// The registry's revision, which is the id of the newest entry.
    pub revision: i64,
    /// The hash of that entry. Null if the log is empty, if the entry is older than the hash
    /// chain, or if it was removed.
    #[schema(value_type = Option<String>)]
    pub hash: Option<Digest>,
}
