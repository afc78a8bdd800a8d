//! Process-wide facilities of the layers above: the wall clock, metrics, durable files, secret keys
//! and their files, watched directories, and failpoints for tests.

pub mod bounded_file;
pub mod clock;
pub mod durable_file;
pub mod failpoint;
pub mod key_file;
pub mod metrics;
pub mod secret_key;
pub mod watch;
