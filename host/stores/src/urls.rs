//! Addresses of the servers.

/// URLs of the real stack, all of them set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StackUrls<'a> {
    pub postgres: &'a str,
    pub clickhouse: &'a str,
    pub kafka: &'a str,
    pub redis: &'a str,
}
