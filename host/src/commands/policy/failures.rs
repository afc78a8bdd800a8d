//! `nova policy failures`: how a policy fails on a running host, for its author.

use super::{print, text_of};
use crate::commands::remote::TargetArguments;
use crate::commands::{block_on, table};
use anyhow::anyhow;
use clap::Args;
use nova_model::artifact::PolicyRef;
use reqwest::Method;
use serde_json::Value;

/// Shows how a policy fails on a host: counts by stage and kind, first and last time, and the text
/// of the latest failure.
#[derive(Debug, Args)]
#[command(after_help = "Example: nova policy failures fresh-first@0.1.0")]
pub struct Failures {
    /// name@version
    policy: PolicyRef,
    #[command(flatten)]
    target: TargetArguments,
}

impl Failures {
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let remote = self.target.remote()?.ok_or_else(|| {
            anyhow!("this command needs a running host, which counts the failures; name it with --host (NOVA_HOST)")
        })?;
        let PolicyRef { name, version } = &self.policy;
        let path = format!("/admin/v1/policies/{name}/{version}/failures");
        let report = block_on(remote.call(Method::GET, &path, None))?;
        print(json, &report, render(&report))
    }
}

fn render(report: &Value) -> String {
    let failures = report["failures"].as_array().into_iter().flatten();
    if failures.clone().next().is_none() {
        let policy = text_of(&report["policy"]);
        return format!("{policy} has not failed on this host since it started\n");
    }
    let row = |failure: &Value| {
        ["stage", "kind", "count", "first_at", "last_at"].map(|key| match &failure[key] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
    };
    let rows: Vec<[String; 5]> = failures.clone().map(row).collect();
    let mut text = table::render(["stage", "kind", "count", "first", "last"], &rows);
    for failure in failures {
        let (stage, kind) = (text_of(&failure["stage"]), text_of(&failure["kind"]));
        text.push_str(&format!("\n{stage}, {kind}:\n"));
        for line in text_of(&failure["text"]).lines() {
            text.push_str(&format!("  {line}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_failures_are_a_table_followed_by_their_texts() {
        let report = json!({"policy": "a@1.0.0", "failures": [
            {"stage": "score", "kind": "trap", "count": 5, "first_at": "t1", "last_at": "t2",
             "text": "wasm trap: unreachable\nat total"}]});
        let text = render(&report);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("score  trap  5"), "{text}");
        assert_eq!(
            &lines[3..],
            ["score, trap:", "  wasm trap: unreachable", "  at total"]
        );
        let none = render(&json!({"policy": "a@1.0.0", "failures": []}));
        assert_eq!(
            none,
            "a@1.0.0 has not failed on this host since it started\n"
        );
    }
}
