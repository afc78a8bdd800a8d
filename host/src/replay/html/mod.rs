//! The report as one HTML page for people. Plots are inline SVG, and the page loads nothing from
//! elsewhere.

mod pages;
mod plot;

use super::report::{CheckReport, PolicyReport, Report};
use nova_policy::compare::{AuthorsSummary, Distribution, Samples};
use plot::{Axis, Series, histogram};

const STYLE: &str = include_str!("style.css");

/// Renders the whole page.
pub fn render(report: &Report) -> String {
    let policies: String = report.policies.iter().map(policy).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Replay of {records} requests</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>Replay of {records} requests</h1>\n{check}{policies}</body></html>\n",
        records = report.records.read,
        check = check(report, &report.check),
    )
}

/// Escapes text for HTML, because labels come from file names and manifests.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

fn check(report: &Report, check: &CheckReport) -> String {
    let (class, verdict) = match (check.mismatched, check.checked) {
        (0, 0) => (
            "",
            "No record could be checked against what was served.".to_owned(),
        ),
        (0, n) => (
            "good",
            format!("{n} of {n} rankings match what was served, bit for bit."),
        ),
        (bad, n) => (
            "bad",
            format!("{bad} of {n} rankings differ from what was served."),
        ),
    };
    let mismatches: String = check
        .mismatches
        .iter()
        .map(|m| {
            format!(
                "<li>record {}, ranking {}, {}: {}</li>",
                m.record,
                m.ranking_id,
                escaped(&m.policy),
                escaped(&m.difference)
            )
        })
        .collect();
    let left_out: String = report
        .records
        .skipped
        .iter()
        .map(|(reason, n)| format!("<li>{n} skipped: {}</li>", escaped(reason)))
        .chain(check.unavailable.iter().map(|(policy, n)| {
            format!(
                "<li>{n} not checked: {} cannot run here</li>",
                escaped(policy)
            )
        }))
        .collect();
    format!(
        "<p class=\"{class}\">{verdict}</p>\n<ul>{mismatches}{left_out}</ul>\n<p>{:.0} requests/s on {} threads, {:.1} s in all. As served: {}.</p>\n",
        report.requests_per_second,
        report.threads,
        report.elapsed_s,
        cost(check.latency_us, check.fuel),
    )
}

fn cost(latency_us: Option<Distribution>, fuel: Option<Distribution>) -> String {
    let Some(time) = latency_us else {
        return "not run".to_owned();
    };
    let fuel = fuel.map_or_else(String::new, |fuel| {
        format!(", fuel p50 {:.0}, most {:.0}", fuel.p50, fuel.max)
    });
    format!(
        "p50 {:.0} µs, p99 {:.0} µs{fuel} a ranking",
        time.p50, time.p99
    )
}

fn policy(policy: &PolicyReport) -> String {
    let failures: u64 = policy.failures.values().sum();
    let kinds: String = policy
        .failures
        .iter()
        .map(|(kind, n)| format!(" {kind} {n}"))
        .collect();
    let samples = &policy.samples;
    let comparisons = &samples.comparisons;
    let plots = [
        one_plot("Posts the pages share", &comparisons.overlap, Axis::share()),
        one_plot(
            "Kendall's τ of the whole rankings",
            &comparisons.kendall_tau,
            Axis::between(-1.0, 1.0),
        ),
        one_plot(
            "Time of a ranking, µs (to its p99)",
            &samples.latency_us,
            Axis::between(0.0, policy.latency_us.map_or(1.0, |d| d.p99)),
        ),
        two_plots(
            "Share of the page's first author",
            &comparisons.max_share_before,
            &comparisons.max_share_after,
            Axis::share(),
        ),
    ]
    .concat();
    format!(
        "<section>\n<h2>{name}</h2>\n<p class=\"digest\">{digest}</p>\n<p>{runs} rankings, <b class=\"{class}\">{failures} failed</b>{kinds}; {late} took longer than the policy's deadline. {latency}.</p>\n{table}\n<div class=\"plots\">{plots}</div>\n{authors}\n<h3>Pages that moved most</h3>\n{pages}</section>\n",
        name = escaped(&policy.policy),
        digest = policy.effective_digest,
        runs = policy.runs,
        class = if failures == 0 { "good" } else { "bad" },
        late = policy.over_deadline,
        latency = cost(policy.latency_us, policy.fuel),
        table = measures(policy),
        authors = authors(&policy.comparison.authors),
        pages = pages::render(&policy.most_moved),
    )
}

fn one_plot(title: &str, samples: &Samples, axis: Axis) -> String {
    histogram(
        title,
        axis,
        &[Series {
            name: "after",
            values: samples.values(),
        }],
    )
}

fn two_plots(title: &str, before: &Samples, after: &Samples, axis: Axis) -> String {
    histogram(
        title,
        axis,
        &[
            Series {
                name: "before",
                values: before.values(),
            },
            Series {
                name: "after",
                values: after.values(),
            },
        ],
    )
}

fn measures(policy: &PolicyReport) -> String {
    let c = &policy.comparison;
    let rows = [
        ("share of posts in common", c.overlap, 3),
        ("Kendall's τ", c.kendall_tau, 3),
        ("posts that enter the page", c.entered, 1),
        ("posts that leave it", c.left, 1),
        ("posts that move within it", c.moved, 1),
    ];
    distributions(&rows)
}

fn authors(authors: &AuthorsSummary) -> String {
    let rows = [
        ("authors on a page, before", authors.distinct_before, 1),
        ("authors on a page, after", authors.distinct_after, 1),
        (
            "share of its first author, before",
            authors.max_share_before,
            3,
        ),
        (
            "share of its first author, after",
            authors.max_share_after,
            3,
        ),
        ("Herfindahl index, before", authors.herfindahl_before, 4),
        ("Herfindahl index, after", authors.herfindahl_after, 4),
    ];
    format!("<h3>Authors</h3>\n{}", distributions(&rows))
}

fn distributions(rows: &[(&str, Option<Distribution>, usize)]) -> String {
    let cells = |d: Distribution, digits: usize| -> String {
        [d.mean, d.min, d.p05, d.p50, d.p95, d.max]
            .iter()
            .map(|value| format!("<td>{value:.digits$}</td>"))
            .collect()
    };
    let rows: String = rows
        .iter()
        .filter_map(|(name, d, digits)| {
            Some(format!("<tr><th>{name}</th>{}</tr>", cells((*d)?, *digits)))
        })
        .collect();
    format!(
        "<table><tr><th></th><th>mean</th><th>min</th><th>p05</th><th>p50</th><th>p95</th><th>max</th></tr>{rows}</table>"
    )
}
