//! Two pages side by side, with a line from each post's served position to its new one.

use super::escaped;
use crate::replay::report::{PageMove, PagePost};
use nova_model::time::rfc3339;

/// Row height in pixels, the same as in the style sheet.
const ROW_PX: usize = 20;
const GAP_PX: usize = 120;

pub fn render(moves: &[PageMove]) -> String {
    if moves.is_empty() {
        return "<p>No page moved.</p>".to_owned();
    }
    moves.iter().enumerate().map(page_move).collect()
}

fn page_move((at, moved): (usize, &PageMove)) -> String {
    let open = if at == 0 { " open" } else { "" };
    let tau = moved
        .kendall_tau
        .map_or_else(|| "–".to_owned(), |tau| format!("{tau:.2}"));
    format!(
        "<details{open}><summary>user {}, {}, served by {}: {:.0} % of the posts in common, τ {tau} (record {}, ranking {})</summary>\n<div class=\"page\">{}{}{}</div></details>\n",
        moved.user_id,
        rfc3339(moved.now_ms),
        escaped(&moved.served_by_policy),
        moved.overlap * 100.0,
        moved.record,
        moved.ranking_id,
        column(&moved.before, moved.after.len(), "gone", "then at"),
        lines(moved),
        column(&moved.after, moved.before.len(), "new", "was at"),
    )
}

/// Renders one page. Posts that are missing from the other page, which has `other_len` posts, are
/// marked.
fn column(posts: &[PagePost], other_len: usize, mark: &str, elsewhere: &str) -> String {
    let row = |(position, post): (usize, &PagePost)| {
        let (class, note) = match post.other_position {
            Some(other) if other < other_len => ("", String::new()),
            Some(other) => (mark, format!("{elsewhere} {}", other + 1)),
            None => (mark, "removed by dedup".to_owned()),
        };
        format!(
            "<li class=\"{class}\"><span>{}</span><span>post {}</span><span>author {}</span><span>{:.4}</span><span>{}</span><span>{note}</span></li>",
            position + 1,
            post.post_id,
            post.author_id,
            post.score,
            post.reason,
        )
    };
    let rows: String = posts.iter().enumerate().map(row).collect();
    format!("<ol>{rows}</ol>")
}

fn lines(moved: &PageMove) -> String {
    let rows = moved.before.len().max(moved.after.len());
    let middle = |position: usize| position * ROW_PX + ROW_PX / 2;
    let line = |(position, post): (usize, &PagePost)| {
        let to = post.other_position.filter(|to| *to < moved.after.len())?;
        let class = match to.cmp(&position) {
            std::cmp::Ordering::Less => "up",
            std::cmp::Ordering::Equal => "same",
            std::cmp::Ordering::Greater => "down",
        };
        Some(format!(
            "<line class=\"{class}\" x1=\"4\" y1=\"{}\" x2=\"{}\" y2=\"{}\" marker-end=\"url(#tip)\"/>",
            middle(position),
            GAP_PX - 8,
            middle(to),
        ))
    };
    let lines: String = moved.before.iter().enumerate().filter_map(line).collect();
    format!(
        "<svg width=\"{GAP_PX}\" height=\"{}\"><defs><marker id=\"tip\" viewBox=\"0 0 6 6\" refX=\"5\" refY=\"3\" markerWidth=\"6\" markerHeight=\"6\" orient=\"auto\"><path d=\"M0 0L6 3L0 6z\" fill=\"#555\"/></marker></defs>{lines}</svg>",
        rows * ROW_PX
    )
}
