//! `nova bucket`: prints the bucket of a unit.

use super::output;
use nova_model::experiments::assignment::bucket;

/// Prints the bucket of a unit, 0.0000 … 0.9999, or `null` for an unknown hash version.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nova bucket --seed recency-1 --unit 42")]
pub struct Bucket {
    /// Seed of the experiment, or its key if it has no seed.
    #[arg(long)]
    seed: String,
    /// Viewer id.
    #[arg(long)]
    unit: String,
    /// Hash version of the experiment, 1 or 2.
    #[arg(long, default_value_t = 2)]
    hash_version: u32,
    /// Prints a JSON object.
    #[arg(long)]
    json: bool,
}

impl Bucket {
    pub fn run(self) -> anyhow::Result<()> {
        let bucket = bucket(&self.seed, &self.unit, self.hash_version);
        if self.json {
            return output::line(serde_json::json!({ "bucket": bucket }));
        }
        let text = bucket.map(|bucket| format!("{bucket:.4}"));
        output::line(text.as_deref().unwrap_or("null"))
    }
}
