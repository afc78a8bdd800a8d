//! `nova policy status`: calls, failures and latency of the serving policies on a running host.

use super::{print, text_of};
use crate::commands::audit::set_aside_lines;
use crate::commands::remote::{Remote, TargetArguments};
use crate::commands::{block_on, output, table};
use anyhow::anyhow;
use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

/// Shows the share of calls, outcomes, failures, latency and remaining error budget of every
/// serving policy.
#[derive(Debug, Args)]
#[command(after_help = "Example: nova policy status --watch")]
pub struct Status {
    /// Prints the status again every two seconds, until interrupted.
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    target: TargetArguments,
}

const WATCH_INTERVAL: Duration = Duration::from_secs(2);

impl Status {
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let remote = self.target.remote()?.ok_or_else(|| {
            anyhow!("this command needs a running host, which counts the calls; name it with --host (NOVA_HOST)")
        })?;
        block_on(async {
            loop {
                match ask(&remote).await {
                    Ok(status) => print(json, &status, render(&status))?,
                    // With --watch, a failed request is only reported, because the host may be
                    // restarting.
                    Err(error) if self.watch => output::note(format_args!("nova: {error:#}")),
                    Err(error) => return Err(error),
                }
                if !self.watch {
                    return Ok(());
                }
                tokio::time::sleep(WATCH_INTERVAL).await;
            }
        })
    }
}

/// Fetches the serving policies, and the other policies that are in shadow or in quarantine.
async fn ask(remote: &Remote) -> anyhow::Result<Value> {
    let list = remote.call(Method::GET, "/admin/v1/policies", None).await?;
    let mut others: Vec<Value> = items(&list["policies"])
        .filter(|p| ["shadow", "quarantined"].contains(&p["state"].as_str().unwrap_or_default()))
        .cloned()
        .collect();
    for other in others.iter_mut().filter(|other| other["state"] == "shadow") {
        let (name, version) = (text_of(&other["name"]), text_of(&other["version"]));
        let path = format!("/admin/v1/policies/{name}/{version}/shadow");
        other["shadow"] = remote.call(Method::GET, &path, None).await?;
    }
    let set_aside = &list["set_aside_changes"];
    Ok(json!({ "serving": list["serving"], "others": others, "set_aside_changes": set_aside }))
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn render(status: &Value) -> String {
    let rows: Vec<[String; 10]> = items(&status["serving"]["policies"]).map(row).collect();
    let header = [
        "policy", "state", "share", "calls", "ok", "failures", "p50 ms", "p99 ms", "left", "MiB",
    ];
    let mut text = table::render(header, &rows);
    for other in items(&status["others"]) {
        let (name, version) = (text_of(&other["name"]), text_of(&other["version"]));
        let state = text_of(&other["state"]);
        text.push_str(&format!("{name}@{version}  {state}"));
        if let Some(reason) = other["quarantine"]["reason"].as_str() {
            text.push_str(&format!(": {reason}"));
        }
        text.push_str(&shadow_line(&other["shadow"]));
        text.push('\n');
    }
    items(&status["serving"]["out_of_service"])
        .filter(|out| out["host"].is_string())
        .for_each(|out| text.push_str(&withdrawn_line(out)));
    let set_aside = status["set_aside_changes"].as_array();
    text.push_str(&set_aside_lines(
        set_aside.map(Vec::as_slice).unwrap_or_default(),
    ));
    let window_s = &status["serving"]["window_s"];
    text.push_str(&format!(
        "calls of the last {window_s} s; left: further failures until the policy is taken out of service; MiB: memory of its instances\n"
    ));
    let memory = &status["serving"]["memory"];
    if memory.is_object() {
        text.push_str(&format!(
            "memory of all instances: {} of {} MiB, {} of them idle\n",
            mib(&memory["used_bytes"]),
            mib(&memory["budget_bytes"]),
            mib(&memory["idle_bytes"])
        ));
    }
    text
}

/// Formats bytes as MiB. A host of an older version does not report them.
pub(super) fn mib(bytes: &Value) -> String {
    bytes.as_f64().map_or("–".to_owned(), |bytes| {
        format!("{:.1}", bytes / 1_048_576.0)
    })
}

/// Formats what one host took out of its own service. Quarantines, which hold on every host, are
/// lines of their policies.
fn withdrawn_line(out: &Value) -> String {
    let here = match out["is_this_host"].as_bool() {
        Some(true) => " (this host)",
        _ => "",
    };
    format!(
        "{}  out of service on host {}{here} since {}: {}\n",
        text_of(&out["policy"]),
        text_of(&out["host"]),
        text_of(&out["since"]),
        text_of(&out["reason"]),
    )
}

/// Formats the comparison of a shadow policy with what is served.
fn shadow_line(report: &Value) -> String {
    if report.is_null() {
        return String::new();
    }
    let number = |value: &Value, digits: usize| {
        value
            .as_f64()
            .map_or("–".to_owned(), |number| format!("{number:.digits$}"))
    };
    let comparison = &report["comparison"];
    let count = |key: &str| report[key].as_u64().unwrap_or(0);
    let failed = count("runs").saturating_sub(count("ok"));
    let stopped = match report["stopped"]["reason"].as_str() {
        Some(reason) => format!("; no longer run: {reason}"),
        None => String::new(),
    };
    format!(
        ": {} runs, {failed} failed, {} dropped, p99 {} ms; {} of the page in common, {} posts entered, {} left, τ {}, first author's share {} → {} (medians){stopped}",
        report["runs"],
        report["dropped"],
        number(&report["p99_ms"], 2),
        number(&comparison["overlap"]["p50"], 2),
        number(&comparison["entered"]["p50"], 0),
        number(&comparison["left"]["p50"], 0),
        number(&comparison["kendall_tau"]["p50"], 2),
        number(&comparison["authors"]["max_share_before"]["p50"], 2),
        number(&comparison["authors"]["max_share_after"]["p50"], 2),
    )
}

fn row(policy: &Value) -> [String; 10] {
    let state = match (policy["percent"].as_f64(), policy["variation"].as_str()) {
        (Some(percent), _) => format!("canary {percent} %"),
        (None, Some(variation)) => variation.to_owned(),
        (None, None) => text_of(&policy["role"]),
    };
    let share = policy["share"].as_f64().unwrap_or_default();
    let failures = policy["failures"].as_object().into_iter().flatten();
    let failures: Vec<String> = failures
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect();
    let ms = |value: &Value| value.as_f64().map_or("–".into(), |ms| format!("{ms:.2}"));
    [
        text_of(&policy["policy"]),
        state,
        format!("{:.1} %", share * 100.0),
        policy["calls"].to_string(),
        policy["ok"].to_string(),
        if failures.is_empty() {
            "–".to_owned()
        } else {
            failures.join(", ")
        },
        ms(&policy["p50_ms"]),
        ms(&policy["p99_ms"]),
        policy["failures_left"].to_string(),
        mib(&policy["memory_bytes"]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_share_failures_and_remaining_failures() {
        let status = json!({
            "serving": {"window_s": 30, "policies": [
                {"policy": "a@1.0.0", "role": "canary", "percent": 5.0, "variation": null, "share": 0.05, "calls": 40, "ok": 38,
                 "failures": {"trap": 2}, "p50_ms": 0.31, "p99_ms": 1.2, "failures_left": 3, "memory_bytes": 3_145_728}],
                 "out_of_service": [
                    {"policy": "b@2.0.0", "host": null, "reason": "5 of 5"},
                    {"policy": "c@3.0.0", "host": "h1", "is_this_host": true, "since": "2026-01-01T00:00:00Z", "reason": "6 of 6"}],
                "memory": {"budget_bytes": 268_435_456, "used_bytes": 3_145_728, "idle_bytes": 1_048_576}},
            "others": [{"name": "b", "version": "2.0.0", "state": "quarantined", "quarantine": {"reason": "5 of 5"}}],
        });
        let text = render(&status);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("a@1.0.0  canary 5 %  5.0 %"), "{text}");
        assert!(lines[1].contains("trap 2"), "{text}");
        assert!(lines[1].ends_with("3.0"), "{text}");
        assert!(
            text.contains("3.0 of 256.0 MiB, 1.0 of them idle"),
            "{text}"
        );
        assert_eq!(lines[2], "b@2.0.0  quarantined: 5 of 5");
        assert_eq!(
            lines[3],
            "c@3.0.0  out of service on host h1 (this host) since 2026-01-01T00:00:00Z: 6 of 6"
        );
    }
}
