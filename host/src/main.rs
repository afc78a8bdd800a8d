//! The `nova` command.

use clap::Parser;
use nova::commands::{Cli, output};
use std::process::ExitCode;

/// jemalloc suits this load: many short-lived buffers on many threads.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::fail(&error),
    }
}
