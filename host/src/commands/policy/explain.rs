//! `nova policy explain`: the reasons for each post's position in a viewer's ranking, under one
//! or two policies of a running host.

use super::{print, text_of};
use crate::commands::remote::TargetArguments;
use crate::commands::{block_on, table};
use anyhow::anyhow;
use clap::Args;
use nova_model::artifact::PolicyRef;
use reqwest::Method;
use serde_json::Value;
use std::collections::HashMap;

/// Explains a viewer's ranking under one or two policies: each post's source, score and position
/// after every stage.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: nova policy explain --user 42 baseline@1.0.0 fresh-first@0.1.0 --limit 20"
)]
pub struct Explain {
    /// Viewer id.
    #[arg(long, value_name = "ID")]
    user: u64,
    /// name@version [default: the active policy]
    policy: Option<PolicyRef>,
    /// name@version of a second policy to compare with.
    compare: Option<PolicyRef>,
    /// Number of posts in the table; --json has all of them, with their features.
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    target: TargetArguments,
}

impl Explain {
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let remote = self.target.remote()?.ok_or_else(|| {
            anyhow!("this command needs a running host, which fetches the candidates; name it with --host (NOVA_HOST)")
        })?;
        let named = [("policy", &self.policy), ("compare", &self.compare)];
        let query: Vec<String> = named
            .iter()
            .filter_map(|(key, policy)| Some(format!("{key}={}", policy.as_ref()?)))
            .collect();
        let path = format!("/debug/user/{}/feed/explain?{}", self.user, query.join("&"));
        block_on(async {
            let answer = remote.call(Method::GET, &path, None).await?;
            let text = match &answer["compare"] {
                Value::Null => one(&answer, self.limit),
                other => two(&answer, other, self.limit),
            };
            print(json, &answer, text)
        })
    }
}

fn posts(ranking: &Value) -> impl Iterator<Item = &Value> {
    ranking["posts"].as_array().into_iter().flatten()
}

/// Formats a position. People see positions that start at 1.
fn place(position: &Value) -> String {
    position
        .as_u64()
        .map_or("–".into(), |at| (at + 1).to_string())
}

fn score(post: &Value) -> String {
    post["score"]
        .as_f64()
        .map_or("–".into(), |score| format!("{score:.4}"))
}

fn components(post: &Value) -> String {
    let parts = post["score_components"].as_object().into_iter().flatten();
    let parts: Vec<String> = parts
        .filter_map(|(name, value)| Some(format!("{name} {:.3}", value.as_f64()?)))
        .collect();
    parts.join(", ")
}

/// Returns the reason of the stage that decided: dedup for a post that it removed, else
/// saturation.
fn rule(post: &Value) -> String {
    match post["position"].as_u64() {
        None => text_of(&post["dedup"]),
        Some(_) => text_of(&post["saturation"]),
    }
}

/// Shows the position of each post after every stage.
fn one(ranking: &Value, limit: usize) -> String {
    let row = |post: &Value| {
        [
            place(&post["position"]),
            text_of(&post["post_id"]),
            text_of(&post["author_id"]),
            text_of(&post["source"]),
            place(&post["position_after_dedup"]),
            place(&post["position_by_score"]),
            score(post),
            components(post),
            rule(post),
        ]
    };
    let rows: Vec<[String; 9]> = posts(ranking).take(limit).map(row).collect();
    let header = [
        "shown",
        "post",
        "author",
        "source",
        "deduped",
        "scored",
        "score",
        "score parts",
        "reason",
    ];
    let all = posts(ranking).count();
    format!(
        "{}, user {}, {} of {all} candidates\n{}",
        text_of(&ranking["policy"]),
        ranking["user_id"],
        rows.len(),
        table::render(header, &rows)
    )
}

/// Shows both rankings in the order of the second.
fn two(first: &Value, second: &Value, limit: usize) -> String {
    let before: HashMap<u64, &Value> = posts(first)
        .filter_map(|post| Some((post["post_id"].as_u64()?, post)))
        .collect();
    let row = |post: &Value| {
        let other = post["post_id"]
            .as_u64()
            .and_then(|id| before.get(&id).copied());
        let other = other.unwrap_or(&Value::Null);
        [
            place(&post["position"]),
            place(&other["position"]),
            step(&other["position"], &post["position"]),
            text_of(&post["post_id"]),
            text_of(&post["author_id"]),
            text_of(&post["source"]),
            score(other),
            score(post),
            components(post),
            rule(other),
            rule(post),
        ]
    };
    let rows: Vec<[String; 11]> = posts(second).take(limit).map(row).collect();
    let header = [
        "shown",
        "was",
        "",
        "post",
        "author",
        "source",
        "score was",
        "score",
        "score parts",
        "reason before",
        "reason now",
    ];
    format!(
        "{} → {}, user {}, {} of {} candidates\n{}",
        text_of(&first["policy"]),
        text_of(&second["policy"]),
        first["user_id"],
        rows.len(),
        posts(second).count(),
        table::render(header, &rows)
    )
}

/// Returns the number of positions that a post moved up or down.
fn step(before: &Value, after: &Value) -> String {
    match (before.as_i64(), after.as_i64()) {
        (Some(before), Some(after)) if after < before => format!("↑{}", before - after),
        (Some(before), Some(after)) if after > before => format!("↓{}", after - before),
        (Some(_), Some(_)) => "=".to_owned(),
        (None, Some(_)) => "new".to_owned(),
        (Some(_), None) => "gone".to_owned(),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ranking(policy: &str, order: &[u64]) -> Value {
        let post = |(at, id): (usize, &u64)| {
            json!({"post_id": id, "author_id": 1, "source": "recent", "position": at, "position_after_dedup": at,
                   "position_by_score": at, "score": 0.5, "score_components": {"freshness": 0.5},
                   "dedup": "kept", "saturation": "in place"})
        };
        let posts: Vec<Value> = order.iter().enumerate().map(post).collect();
        json!({"policy": policy, "user_id": 7, "posts": posts})
    }

    #[test]
    fn a_comparison_shows_which_posts_rose_and_fell() {
        let text = two(
            &ranking("a@1.0.0", &[1, 2, 3]),
            &ranking("b@1.0.0", &[3, 1, 2]),
            3,
        );
        let cells: Vec<Vec<&str>> = text
            .lines()
            .skip(2)
            .map(|line| line.split_whitespace().take(4).collect())
            .collect();
        assert_eq!(
            cells,
            [
                ["1", "3", "↑2", "3"],
                ["2", "1", "↓1", "1"],
                ["3", "2", "↓1", "2"]
            ]
        );
        assert!(
            text.starts_with("a@1.0.0 → b@1.0.0, user 7, 3 of 3"),
            "{text}"
        );
    }

    #[test]
    fn a_removed_post_shows_the_reason_of_dedup() {
        let mut removed = ranking("a@1.0.0", &[1]);
        removed["posts"][0]["position"] = Value::Null;
        removed["posts"][0]["dedup"] = json!("seen");
        assert!(one(&removed, 5).trim_end().ends_with("seen"));
    }
}
