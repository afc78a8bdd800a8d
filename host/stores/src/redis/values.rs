//! Small shared values, each with the TTL that its writer chose.

use super::Redis;
use crate::ports::{StoreResult, ValueCache};
use async_trait::async_trait;
use std::time::Duration;

#[derive(Debug, Clone)]
pub struct RedisValues(Redis);

impl RedisValues {
    pub fn new(redis: Redis) -> Self {
        Self(redis)
    }
}

#[async_trait]
impl ValueCache for RedisValues {
    async fn get(&self, key: &str) -> StoreResult<Option<Vec<u8>>> {
        // MGET treats a key of another type as absent, whereas GET would return an error.
        let command = redis::cmd("MGET").arg(key).to_owned();
        let [value] = self.0.call("value_get", command).await?;
        Ok(value)
    }

    async fn put(&self, key: &str, value: Vec<u8>, ttl: Duration) -> StoreResult<()> {
        let Some(ttl_ms) = u64::try_from(ttl.as_millis()).ok().filter(|ms| *ms > 0) else {
            return self.remove(key).await;
        };
        let mut command = redis::cmd("SET");
        command.arg(key).arg(value).arg("PX").arg(ttl_ms);
        self.0.call("value_put", command).await
    }

    async fn remove(&self, key: &str) -> StoreResult<()> {
        let command = redis::cmd("UNLINK").arg(key).to_owned();
        self.0.call("value_remove", command).await
    }
}
