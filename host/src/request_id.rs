//! The id of the request being answered, for its answer and its logs.

use std::sync::Arc;

tokio::task_local! {
    /// Id of the request that this task answers. It also appears in the logs.
    pub static REQUEST_ID: Arc<str>;
}

/// Returns the id of the current request. Empty outside of a request.
pub fn request_id() -> Arc<str> {
    REQUEST_ID
        .try_with(Arc::clone)
        .unwrap_or_else(|_| Arc::from(""))
}
