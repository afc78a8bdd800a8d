//! Process-wide facilities of the layers above: the wall clock, metrics, durable files, key files,
//! watched directories, and failpoints for tests.

pub mod clock;
pub mod durable_file;
pub mod failpoint;
pub mod key_file;
pub mod metrics;
pub mod watch;
