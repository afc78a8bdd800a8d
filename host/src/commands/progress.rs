//! Progress of long work on standard error: a spinner on a terminal, lines in a log.

use super::output;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::time::Duration;

/// Runs `work` and shows the steps that it reports.
pub fn shown<T>(subject: &str, work: impl FnOnce(&(dyn Fn(&str) + Sync)) -> T) -> T {
    if !std::io::stderr().is_terminal() {
        return work(&|step| output::note(format_args!("{subject}: {step}")));
    }
    let bar = ProgressBar::new_spinner();
    // If the template is invalid, the default style stays, which only lacks the time.
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    let result = work(&|step| bar.set_message(format!("{subject}: {step}")));
    bar.finish_and_clear();
    result
}
