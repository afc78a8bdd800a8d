//! `nova import`: loads CSV files into the configured stores.

use super::{ConfigPath, DataDir, block_on, output, table};
use crate::config::Config;
use crate::wiring::embedded::open_store;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use nova_stores::import::{ImportOptions, ImportProgress, ImportSummary, StackTarget, import_dir};
use nova_stores::ports::ImportTarget;
use nova_support::clock::unix_ms;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Loads users.csv, posts.csv, follows.csv, comments.csv, likes.csv and events.csv, as far as
/// they exist.
///
/// A bad row is reported as FILE:LINE, and then nothing of its file is loaded. Importing the
/// same files again changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nova import ./community --shift-to-now")]
pub struct Import {
    /// Directory with the files.
    dir: PathBuf,
    /// Moves all times forward so that the newest time of all files is now.
    #[arg(long)]
    shift_to_now: bool,
    /// Prints the summary as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigPath,
    #[command(flatten)]
    data_dir: DataDir,
}

impl Import {
    pub fn run(self) -> anyhow::Result<()> {
        let config = self.config.load(&self.data_dir)?;
        let summary = block_on(load(&config, &self.dir, self.shift_to_now))?;
        if self.json {
            return output::line(serde_json::to_string(&summary)?);
        }
        print_summary(&summary)
    }
}

/// Imports a directory into the configured stores and shows a progress bar.
pub async fn load(
    config: &Config,
    dir: &Path,
    shift_to_now: bool,
) -> anyhow::Result<ImportSummary> {
    let target: Box<dyn ImportTarget> = match config.stores.stack() {
        None => Box::new(open_store(&config.data_dir).await?),
        Some(urls) => Box::new(StackTarget::connect(urls)?),
    };
    let bar = ProgressBar::new(0);
    let style = "{msg:14} {wide_bar} {bytes}/{total_bytes} {elapsed}";
    bar.set_style(ProgressStyle::with_template(style)?);
    let mut show = |progress: ImportProgress| {
        bar.set_message(progress.file);
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes_done);
    };
    let options = ImportOptions {
        shift_to_now,
        now_ms: unix_ms(),
    };
    let summary = import_dir(&*target, dir, &options, &mut show).await;
    bar.finish_and_clear();
    Ok(summary?)
}

fn print_summary(summary: &ImportSummary) -> anyhow::Result<()> {
    let rows: Vec<[String; 4]> = summary
        .files
        .iter()
        .map(|file| {
            let counts = [file.rows_read, file.rows_new, file.rows_already_there]
                .map(|rows| rows.to_string());
            let [read, new, known] = counts;
            [file.file.to_owned(), read, new, known]
        })
        .collect();
    output::text(table::render(
        ["file", "rows", "new", "already there"],
        &rows,
    ))?;
    if summary.offset_ms > 0 {
        let moved = Duration::from_millis(summary.offset_ms.unsigned_abs());
        let moved = HumanDuration(moved);
        output::line(format_args!("all times moved forward by {moved}"))?;
    }
    Ok(())
}
