use crate::experiments::assignment::bucket;

/// Prints a unit's bucket, 0.0000 … 0.9999, or `null` for an unknown hash version.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nova bucket --seed recency-1 --unit 42")]
pub struct Bucket {
    /// The experiment's seed (its key, where it has none)
    #[arg(long)]
    seed: String,
    /// The viewer id
    #[arg(long)]
    unit: String,
    #[arg(long, default_value_t = 2)]
    hash_version: u32,
    /// As a JSON object
    #[arg(long)]
    json: bool,
}

impl Bucket {
    pub fn run(self) -> anyhow::Result<()> {
        let bucket = bucket(&self.seed, &self.unit, self.hash_version);
        if self.json {
            println!("{}", serde_json::json!({ "bucket": bucket }));
        } else {
            println!(
                "{}",
                bucket.map_or_else(|| "null".to_owned(), |bucket| format!("{bucket:.4}"))
            );
        }
        Ok(())
    }
}
