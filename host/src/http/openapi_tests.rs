//! The description of the API in `docs/openapi.json` is the one that a host serves.

use super::routes;
use std::path::Path;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
/// Rewrites the file when it is set.
const UPDATE: &str = "NOVA_UPDATE_OPENAPI";
/// Lines of a difference that are shown.
const SHOWN_MAX: usize = 80;

#[test]
fn the_description_that_is_checked_in_is_the_one_that_a_host_serves() {
    let (_, served) = routes().split_for_parts();
    let served = format!("{}\n", served.to_pretty_json().unwrap());
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(FILE, &served).unwrap();
    }
    let stored = std::fs::read_to_string(Path::new(FILE)).unwrap_or_default();
    let difference = difference(&stored, &served);
    let shown = &difference[..difference.len().min(SHOWN_MAX)];
    assert!(
        difference.is_empty(),
        "docs/openapi.json differs from what the host serves in {} lines:\n{}\n\
         If the change is meant, update the file and commit it:\n  \
         {UPDATE}=1 cargo test -p nova --lib openapi",
        difference.len(),
        shown.join("\n"),
    );
}

/// Lists removed and added lines with their numbers, in order.
fn difference(old: &str, new: &str) -> Vec<String> {
    let [old, new] = [old, new].map(|text| text.lines().collect::<Vec<_>>());
    let (mut at, mut at_new, mut found) = (0, 0, Vec::new());
    loop {
        let same = old[at..].iter().zip(&new[at_new..]);
        let same = same.take_while(|(old, new)| old == new).count();
        (at, at_new) = (at + same, at_new + same);
        if at == old.len() && at_new == new.len() {
            return found;
        }
        let (removed, added) = until_equal(&old[at..], &new[at_new..]);
        found.extend(numbered('-', at, &old[at..at + removed]));
        found.extend(numbered('+', at_new, &new[at_new..at_new + added]));
        (at, at_new) = (at + removed, at_new + added);
    }
}

fn numbered(sign: char, from: usize, lines: &[&str]) -> Vec<String> {
    let lines = lines.iter().enumerate();
    lines
        .map(|(n, line)| format!("{:>6} {sign}{line}", from + n + 1))
        .collect()
}

/// Returns the numbers of lines before the next place at which three lines of both texts agree.
fn until_equal(old: &[&str], new: &[&str]) -> (usize, usize) {
    for skipped in 0..old.len() + new.len() {
        for removed in skipped.saturating_sub(new.len())..=skipped.min(old.len()) {
            let added = skipped - removed;
            if old[removed..]
                .iter()
                .take(3)
                .eq(new[added..].iter().take(3))
            {
                return (removed, added);
            }
        }
    }
    (old.len(), new.len())
}

#[test]
fn a_difference_lists_the_lines_that_were_removed_and_added() {
    let old = "a\nb\nc\nd\ne\nf";
    assert!(difference(old, old).is_empty());
    let new = "a\nx\nc\nd\ne\nf\ng";
    assert_eq!(
        difference(old, new),
        ["     2 -b", "     2 +x", "     7 +g"]
    );
    assert_eq!(difference("", "a"), ["     1 +a"]);
}
