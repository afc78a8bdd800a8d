//! The start of a host that serves twenty policies, each with its own scorer module: time until
//! it is ready, with and without compiled modules in the cache.

use crate::generator::fetch;
use crate::host::Host;
use crate::machine;
use std::time::{Duration, Instant};

const POLICIES: usize = 20;
const RUNS: usize = 5;
const READY_WITHIN: Duration = Duration::from_secs(120);

pub async fn restart() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let data_dir = directory.path().join("data");
    println!(
        "machine: {}; {POLICIES} policies in an experiment, each with a scorer of its own",
        machine()
    );
    let host = Host::start_in(&data_dir)?;
    host.await_ready(READY_WITHIN).await?;
    host.run_policies_of_their_own(POLICIES).await?;
    drop(host);
    for run in 0..RUNS {
        for compiled_before in [true, false] {
            if !compiled_before {
                std::fs::remove_dir_all(data_dir.join("compiled"))?;
            }
            let asked = Instant::now();
            let host = Host::start_in(&data_dir)?;
            host.await_ready(READY_WITHIN).await?;
            let ready_ms = asked.elapsed().as_secs_f64() * 1_000.0;
            let token = host.viewer_token(7)?;
            let request = host.request("GET", "/api/v1/feed?limit=1", &token, "");
            let feed: serde_json::Value =
                serde_json::from_slice(&fetch(host.address(), &request).await?)?;
            println!(
                "run {run}, {}: ready after {ready_ms:.0} ms, then served by {}",
                if compiled_before {
                    "compiled before"
                } else {
                    "cache removed"
                },
                feed["policy"]["name"]
            );
        }
    }
    Ok(())
}
