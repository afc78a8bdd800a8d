//! The `nova` command.

use clap::Parser;
use nova::commands::Cli;
use std::process::ExitCode;

/// Snapshots come and go by the thousand; the system's allocator would keep their pages.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nova: {error:#}");
            ExitCode::FAILURE
        }
    }
}
