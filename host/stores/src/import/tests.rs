//! Tests of rows that load, rows that are refused, and repeated imports.

use super::*;
use crate::embedded::EmbeddedStore;
use crate::ports::{CandidateStore, EventSink};
use nova_model::event::{AcceptedEvent, Action};
use nova_model::post::Counters;
use nova_model::time::DAY_MS;
use std::collections::HashMap;
use uuid::Uuid;

const NOW_MS: u64 = 1_773_146_096_789; // 2026-03-10T12:34:56.789Z
const USERS_CSV: &str =
    "user_id,created_at,country\n1,2026-03-01T00:00:00Z,NL\n2,2026-03-01T00:00:00Z,\n";
const POSTS_CSV: &str = "post_id,author_id,created_at,view_count,kind\n\
    10,1,2026-03-02T10:30:00Z,7,answer\n11,2,2026-03-02T10:30:00+02:00,,question\n";
const LIKES_CSV: &str = "like_id,post_id,user_id,created_at\n\
    1,10,2,2026-03-02T00:00:00Z\n2,10,2,2026-03-02T00:00:00Z\n3,10,,2026-03-02T00:00:00Z\n";
const EVENTS_CSV: &str = "event_id,event_time,user_id,post_id,author_id,action,dwell_ms,device,app_ver\n\
    1,2026-03-10T12:00:00Z,2,10,1,view,1500,phone,1\n\
    9a4f4f43-98d7-4d7e-8d28-53e6ae1ea74d,2026-03-10T12:00:00Z,2,10,1,view,,,\n\
    2,2026-03-10T12:00:01Z,2,10,1,impression,,,\n";

struct Fixture {
    store: EmbeddedStore,
    csv: tempfile::TempDir,
    _data: tempfile::TempDir,
}

impl Fixture {
    async fn new(files: &[(&str, &str)]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let fixture = Self {
            store: EmbeddedStore::open(data.path()).await.unwrap(),
            csv: tempfile::tempdir().unwrap(),
            _data: data,
        };
        for (name, text) in files {
            fixture.put(name, text);
        }
        fixture
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.csv.path().join(name), text).unwrap();
    }

    async fn import(&self) -> Result<ImportSummary, ImportError> {
        let options = ImportOptions {
            shift_to_now: false,
            now_ms: NOW_MS,
        };
        import_dir(&self.store, self.csv.path(), &options, &mut |_| {}).await
    }

    async fn import_shifted(&self, dir: &Path, now_ms: u64) -> ImportSummary {
        let options = ImportOptions {
            shift_to_now: true,
            now_ms,
        };
        import_dir(&self.store, dir, &options, &mut |_| {})
            .await
            .unwrap()
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql)
            .fetch_one(self.store.reader())
            .await
            .unwrap()
    }

    async fn counters(&self) -> HashMap<u64, Counters> {
        self.store.counters(&[10, 11], NOW_MS).await.unwrap()
    }

    async fn refusal(&self) -> String {
        self.import().await.unwrap_err().to_string()
    }
}

#[tokio::test]
async fn history_counts_as_if_its_events_had_happened() {
    let comments = "comment_id,post_id,user_id,created_at\n1,10,2,2026-03-03T00:00:00Z\n";
    let f = Fixture::new(&[
        ("users.csv", USERS_CSV),
        ("posts.csv", POSTS_CSV),
        ("likes.csv", LIKES_CSV),
        ("comments.csv", comments),
        ("events.csv", EVENTS_CSV),
    ])
    .await;
    let summary = f.import().await.unwrap();
    let files: Vec<_> = summary
        .files
        .iter()
        .map(|file| (file.file, file.rows_new))
        .collect();
    let expected = [
        ("users.csv", 2),
        ("posts.csv", 2),
        ("comments.csv", 1),
        ("likes.csv", 3),
        ("events.csv", 3),
    ];
    assert_eq!(files, expected);
    let ten = Counters {
        views: 9,
        likes: 3,
        comments: 1,
        shares: 0,
        dwell_ms_sum: 1500,
        exposures: 8,
    };
    assert_eq!(f.counters().await, HashMap::from([(10, ten)]));
    // Two likes with a user, one comment, two views. The anonymous like counts for no viewer's
    // affinity.
    assert_eq!(
        f.store.affinities(2, NOW_MS).await.unwrap(),
        HashMap::from([(1, 5)])
    );
    let accepted = f.store.seen_since(2, NOW_MS - DAY_MS).await.unwrap();
    assert_eq!(accepted, [(10, 1_773_144_001_000)]);
}

#[tokio::test]
async fn importing_the_same_directory_again_changes_nothing_even_after_expiry() {
    let f = Fixture::new(&[
        ("users.csv", USERS_CSV),
        ("posts.csv", POSTS_CSV),
        ("likes.csv", LIKES_CSV),
        ("events.csv", EVENTS_CSV),
        (
            "follows.csv",
            "follower_id,following_id,created_at\n1,2,2026-03-02T00:00:00Z\n",
        ),
    ])
    .await;
    f.import().await.unwrap();
    let before = f.counters().await;
    let again = f.import().await.unwrap();
    assert!(
        again
            .files
            .iter()
            .all(|file| file.rows_new == 0 && file.rows_already_there > 0)
    );
    assert_eq!(f.counters().await, before);
    let later = NOW_MS + 40 * DAY_MS;
    assert_eq!(f.store.expire(later).await.unwrap().events, 3);
    assert!(
        f.import()
            .await
            .unwrap()
            .files
            .iter()
            .all(|file| file.rows_new == 0)
    );
    assert_eq!(f.counters().await, before);
}

#[tokio::test]
async fn shifting_puts_the_newest_time_at_now_and_remembers_the_offset() {
    let f = Fixture::new(&[("users.csv", USERS_CSV), ("posts.csv", POSTS_CSV)]).await;
    let now_ms = NOW_MS + 1000 * DAY_MS;
    let first = f.import_shifted(f.csv.path(), now_ms).await;
    assert_eq!(
        f.count("SELECT max(created_at_ms) FROM posts").await,
        i64::try_from(now_ms).unwrap()
    );
    assert_eq!(f.store.recent(1, now_ms, 10).await.unwrap().len(), 1);

    let elsewhere = tempfile::tempdir().unwrap();
    for (name, text) in [("users.csv", USERS_CSV), ("posts.csv", POSTS_CSV)] {
        std::fs::write(elsewhere.path().join(name), text).unwrap();
    }
    let again = f.import_shifted(elsewhere.path(), now_ms + DAY_MS).await;
    assert_eq!(again.offset_ms, first.offset_ms);
    assert!(again.files.iter().all(|file| file.rows_new == 0));
}

#[tokio::test]
async fn an_import_that_stopped_before_loading_anything_remembers_no_offset() {
    let f = Fixture::new(&[("users.csv", "user_id,created_at\n0,2026-03-01T00:00:00Z\n")]).await;
    let options = ImportOptions {
        shift_to_now: true,
        now_ms: NOW_MS,
    };
    import_dir(&f.store, f.csv.path(), &options, &mut |_| {})
        .await
        .unwrap_err();
    assert_eq!(f.count("SELECT count(*) FROM import_offsets").await, 0);
}

#[tokio::test]
async fn a_bad_row_is_named_with_file_and_line_and_its_file_is_not_loaded() {
    let f = Fixture::new(&[("users.csv", USERS_CSV), ("posts.csv", POSTS_CSV)]).await;
    f.put("likes.csv", "like_id,post_id,user_id,created_at\n1,10,2,2026-03-02T00:00:00Z\n2,10,x,2026-03-02T00:00:00Z\n");
    let text = f.refusal().await;
    assert!(
        text.starts_with("likes.csv:3: user_id: \"x\" is not an id"),
        "{text}"
    );
    assert!(
        text.ends_with("(nothing of likes.csv was loaded; loaded before it: users.csv, posts.csv)"),
        "{text}"
    );
    assert_eq!(f.count("SELECT count(*) FROM likes").await, 0);
    assert_eq!(f.count("SELECT count(*) FROM posts").await, 2);
    assert_eq!(f.counters().await[&10].likes, 0);
    f.put("likes.csv", LIKES_CSV);
    assert_eq!(f.import().await.unwrap().files[2].rows_new, 3);
}

#[tokio::test]
async fn every_kind_of_bad_value_is_refused_on_its_line() {
    let good = "1,2026-03-10T12:00:00Z,2,10,1,view,5,p,1";
    for (row, reason) in [
        ("2,2026-03-10T12:00:00Z,0,10,1,view,5,p,1", "user_id: \"0\""),
        (
            "2,2026-03-10T12:00:00Z,9007199254740992,10,1,view,5,p,1",
            "user_id: \"9007199254740992\"",
        ),
        (
            "2,2026-03-10T12:00:00Z,-2,10,1,view,5,p,1",
            "user_id: \"-2\"",
        ),
        (
            "2,2026-03-10T12:00:00Z,2,10,0,view,5,p,1",
            "author_id: \"0\"",
        ),
        (
            "2,2026-03-10,2,10,1,view,5,p,1",
            "event_time: \"2026-03-10\"",
        ),
        ("2,1969-12-31T23:59:59Z,2,10,1,view,5,p,1", "event_time: "),
        (
            "2,2026-03-10T12:00:00Z,2,10,1,click,5,p,1",
            "action: \"click\"",
        ),
        (
            "2,2026-03-10T12:00:00Z,2,10,1,view,3600001,p,1",
            "dwell_ms: \"3600001\"",
        ),
        (
            "2,2026-03-10T12:00:00Z,2,10,1,view,-1,p,1",
            "dwell_ms: \"-1\"",
        ),
        (
            "2,2026-03-10T12:00:00Z,2,10,1,view,5,p",
            "8 fields where the header has 9",
        ),
        (
            "2,2026-03-10T12:00:00Z,2,99,1,view,5,p,1",
            "post_id: post 99 is neither",
        ),
        (
            "2,2026-03-10T12:00:00Z,99,10,1,view,5,p,1",
            "user_id: user 99 is neither",
        ),
        (
            "x,2026-03-10T12:00:00Z,2,10,1,view,5,p,1",
            "event_id: \"x\"",
        ),
        (
            "1,2026-03-10T12:00:00Z,2,11,1,view,5,p,1",
            "the same event_id is on line 2",
        ),
    ] {
        let header = EVENTS_CSV.lines().next().unwrap();
        for end in ["\n", "\r\n"] {
            let text = [header, good, row, good]
                .map(|line| format!("{line}{end}"))
                .concat();
            let f = Fixture::new(&[("users.csv", USERS_CSV), ("posts.csv", POSTS_CSV)]).await;
            f.put("events.csv", &text);
            let refusal = f.refusal().await;
            assert!(
                refusal.starts_with(&format!("events.csv:3: {reason}")),
                "{end:?} {refusal}"
            );
            assert_eq!(f.count("SELECT count(*) FROM events").await, 0);
        }
    }
}

#[tokio::test]
async fn the_first_of_several_bad_rows_is_reported_for_every_kind_of_error() {
    let f = Fixture::new(&[("users.csv", USERS_CSV), ("posts.csv", POSTS_CSV)]).await;
    let likes = "like_id,post_id,user_id,created_at\n1,10,2,2026-03-02T00:00:00Z\n\n\
        2,99,2,2026-03-02T00:00:00Z\n3,10,77,2026-03-02T00:00:00Z\n4,10,2,never\n";
    f.put("likes.csv", likes);
    let text = f.refusal().await;
    assert!(
        text.starts_with("likes.csv:4: post_id: post 99 is neither"),
        "{text}"
    );
}

#[tokio::test]
async fn a_missing_required_column_is_an_error_of_line_1_and_a_missing_optional_one_is_empty() {
    let f = Fixture::new(&[(
        "users.csv",
        "\u{feff}user_id,created_at\n1,2026-03-01T00:00:00Z\n",
    )])
    .await;
    f.import().await.unwrap();
    f.put("posts.csv", "post_id,created_at\n1,2026-03-01T00:00:00Z\n");
    let text = f.refusal().await;
    assert!(
        text.starts_with("posts.csv:1: the header has no column author_id"),
        "{text}"
    );
}

#[tokio::test]
async fn a_quoted_field_with_line_breaks_does_not_shift_line_numbers() {
    let users = "user_id,created_at,bio\n1,2026-03-01T00:00:00Z,\"one\ntwo\nthree\"\n0,2026-03-01T00:00:00Z,x\n";
    let f = Fixture::new(&[("users.csv", users)]).await;
    let text = f.refusal().await;
    assert!(text.starts_with("users.csv:5: user_id"), "{text}");
}

#[tokio::test]
async fn a_repeated_id_is_one_row_if_equal_and_a_bad_row_if_different() {
    let equal = "user_id,created_at\n1,2026-03-01T00:00:00Z\n1,2026-03-01T00:00:00Z\n";
    let f = Fixture::new(&[("users.csv", equal)]).await;
    let users = f.import().await.unwrap().files[0];
    assert_eq!(
        (users.rows_read, users.rows_new, users.rows_already_there),
        (2, 1, 1)
    );
    f.put(
        "users.csv",
        "user_id,created_at\n1,2026-03-01T00:00:00Z\n1,2026-03-01T00:00:01Z\n",
    );
    let text = f.refusal().await;
    assert!(
        text.starts_with("users.csv:3: user 1 is on line 2 as well"),
        "{text}"
    );
}

#[tokio::test]
async fn a_known_id_with_other_references_is_a_bad_row() {
    let f = Fixture::new(&[("users.csv", USERS_CSV), ("posts.csv", POSTS_CSV)]).await;
    f.import().await.unwrap();
    f.put(
        "posts.csv",
        "post_id,author_id,created_at\n10,2,2026-03-02T10:30:00Z\n",
    );
    let text = f.refusal().await;
    assert!(
        text.starts_with("posts.csv:2: post 10 is already in the store, by user 1"),
        "{text}"
    );
}

#[tokio::test]
async fn references_may_point_to_rows_of_an_earlier_import() {
    let f = Fixture::new(&[("users.csv", USERS_CSV), ("posts.csv", POSTS_CSV)]).await;
    f.import().await.unwrap();
    std::fs::remove_file(f.csv.path().join("users.csv")).unwrap();
    std::fs::remove_file(f.csv.path().join("posts.csv")).unwrap();
    f.put("likes.csv", LIKES_CSV);
    assert_eq!(f.import().await.unwrap().files[0].rows_new, 3);
}

#[tokio::test]
async fn imported_events_are_identified_by_their_id_and_sent_ones_by_their_idempotency_key() {
    let f = Fixture::new(&[
        ("users.csv", USERS_CSV),
        (
            "posts.csv",
            "post_id,author_id,created_at\n10,1,2026-03-02T10:30:00Z\n",
        ),
        ("events.csv", EVENTS_CSV),
    ])
    .await;
    // This event has the same user, post, action and second as two imported rows, and the id of
    // one of them.
    let sent = AcceptedEvent {
        event_id: Uuid::try_parse("9a4f4f43-98d7-4d7e-8d28-53e6ae1ea74d").unwrap(),
        event_time_ms: 1_773_144_000_000,
        accepted_ms: NOW_MS,
        user_id: 2,
        post_id: 10,
        author_id: 1,
        action: Action::View,
        dwell_ms: None,
        device: String::new(),
        app_ver: String::new(),
        ranking_id: None,
    };
    f.store.write(std::slice::from_ref(&sent), 1).await.unwrap();
    f.import().await.unwrap();
    assert_eq!(f.counters().await[&10].views, 2);
    let other_id = AcceptedEvent {
        event_id: Uuid::new_v4(),
        ..sent
    };
    assert_eq!(f.store.write(&[other_id], 2).await.unwrap(), 0);
    assert_eq!(f.counters().await[&10].views, 2);
}

#[tokio::test]
async fn progress_ends_with_all_bytes_of_a_file() {
    let f = Fixture::new(&[("users.csv", USERS_CSV)]).await;
    let mut last = None;
    let options = ImportOptions {
        shift_to_now: false,
        now_ms: NOW_MS,
    };
    import_dir(&f.store, f.csv.path(), &options, &mut |progress| {
        last = Some(progress)
    })
    .await
    .unwrap();
    let bytes = USERS_CSV.len() as u64;
    let expected = ImportProgress {
        file: "users.csv",
        rows_done: 2,
        bytes_done: bytes,
        bytes_total: bytes,
    };
    assert_eq!(last, Some(expected));
}

const FOLLOWS_CSV: &str = "follower_id,following_id,created_at\n\
    1,2,2026-03-02T00:00:00Z\n2,1,2026-03-02T00:00:00Z\n";
const COMMENTS_CSV: &str = "comment_id,post_id,user_id,created_at\n\
    1,10,2,2026-03-03T00:00:00Z\n2,10,2,2026-03-03T00:00:00Z\n";
const ALL: [(&str, &str, &str); 6] = [
    ("users.csv", USERS_CSV, "SELECT count(*) FROM users"),
    ("posts.csv", POSTS_CSV, "SELECT count(*) FROM posts"),
    ("follows.csv", FOLLOWS_CSV, "SELECT count(*) FROM follows"),
    (
        "comments.csv",
        COMMENTS_CSV,
        "SELECT count(*) FROM comments",
    ),
    ("likes.csv", LIKES_CSV, "SELECT count(*) FROM likes"),
    (
        "events.csv",
        EVENTS_CSV,
        "SELECT count(*) FROM imported_events",
    ),
];

/// Asserts that `file` is refused with this text in its place, on this line, and that none of its
/// rows is loaded, with and without moved times.
async fn assert_nothing_loaded(file: &str, text: &[u8], line: u64, reason: &str) {
    for shift_to_now in [false, true] {
        let f = Fixture::new(&[]).await;
        for (name, usual, _) in ALL {
            f.put(name, usual);
        }
        std::fs::write(f.csv.path().join(file), text).unwrap();
        let options = ImportOptions {
            shift_to_now,
            now_ms: NOW_MS,
        };
        let imported = import_dir(&f.store, f.csv.path(), &options, &mut |_| {}).await;
        let refusal = imported.expect_err(file).to_string();
        assert!(
            refusal.starts_with(&format!("{file}:{line}: ")) && refusal.contains(reason),
            "{}: {refusal}",
            String::from_utf8_lossy(text)
        );
        let (.., count) = ALL.into_iter().find(|(name, ..)| *name == file).unwrap();
        assert_eq!(f.count(count).await, 0, "{refusal}");
    }
}

/// Returns the file with the field of one row and column changed. Row 0 is the header.
fn with_field(text: &str, row: usize, column: usize, change: impl Fn(&str) -> String) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut fields: Vec<String> = lines[row].split(',').map(str::to_owned).collect();
    fields[column] = change(&fields[column]);
    lines[row] = fields.join(",");
    lines.join("\n") + "\n"
}

#[tokio::test]
async fn a_wrong_quote_in_any_row_and_column_of_any_file_is_refused_on_its_line() {
    for (file, text, _) in ALL {
        let columns = text.lines().next().unwrap().split(',').count();
        for (row, line) in [(0, 1), (1, 2), (2, 3)] {
            for column in 0..columns {
                let open = with_field(text, row, column, |field| format!("\"{field}"));
                let reason = "a quote is opened and never closed";
                assert_nothing_loaded(file, open.as_bytes(), line, reason).await;
            }
            let last = columns - 1;
            let after = with_field(text, row, last, |field| format!("\"{field}\"x"));
            let reason = "text follows a closing quote";
            assert_nothing_loaded(file, after.as_bytes(), line, reason).await;
        }
    }
}

#[tokio::test]
async fn what_is_no_text_or_no_table_is_refused_in_every_file() {
    for (file, text, _) in ALL {
        let with_bytes = |bytes: &[u8]| {
            let at = text.find('\n').unwrap() + 1;
            [&text.as_bytes()[..at], bytes, &text.as_bytes()[at..]].concat()
        };
        assert_nothing_loaded(file, &with_bytes(b"\xff"), 2, "not UTF-8").await;
        assert_nothing_loaded(file, &with_bytes(b"\0"), 2, "NUL").await;
        assert_nothing_loaded(file, &with_bytes(b"1\n"), 2, "1 fields where").await;
        assert_nothing_loaded(file, b"", 1, "the header has no column").await;
        let utf16: Vec<u8> = "\u{feff}"
            .encode_utf16()
            .chain(text.encode_utf16())
            .flat_map(u16::to_le_bytes)
            .collect();
        assert_nothing_loaded(file, &utf16, 1, "not UTF-8").await;
        let old_mac = text.replace('\n', "\r");
        assert_nothing_loaded(file, old_mac.as_bytes(), 1, "the lines end with").await;
        let (header, rows) = text.split_once('\n').unwrap();
        let first = header.split(',').next().unwrap();
        let twice = format!("{header},{first}\n{rows}");
        assert_nothing_loaded(file, twice.as_bytes(), 1, "more than once").await;
        let long = "x".repeat(3 << 20);
        let long = with_field(text, 2, 1, |field| format!("{field}{long}"));
        assert_nothing_loaded(file, long.as_bytes(), 3, "longer than 1 MiB").await;
    }
}

#[tokio::test]
async fn a_byte_order_mark_crlf_quotes_and_a_missing_last_line_break_change_nothing() {
    let f = Fixture::new(&[]).await;
    for (name, text, _) in ALL {
        f.put(name, text);
    }
    f.import().await.unwrap();
    for (name, text, _) in ALL {
        let quoted = text.lines().map(|line| {
            let fields: Vec<String> = line
                .split(',')
                .map(|field| format!("\"{field}\""))
                .collect();
            fields.join(",")
        });
        let lines: Vec<String> = quoted.collect();
        f.put(name, &format!("\u{feff}{}", lines.join("\r\n")));
    }
    let again = f.import().await.unwrap();
    assert!(
        again
            .files
            .iter()
            .all(|file| file.rows_read > 1 && file.rows_new == 0)
    );
}

#[tokio::test]
async fn a_number_or_time_that_a_store_cannot_hold_is_refused_in_every_file() {
    for (file, text, _) in ALL {
        for (column, name) in text.lines().next().unwrap().split(',').enumerate() {
            let wrong: &[&str] = match name {
                "event_id" => &["0", "9007199254740992", "1e3", "+1"],
                name if name.ends_with("_id") => &[
                    "0",
                    "-1",
                    "9007199254740992",
                    "18446744073709551617",
                    "1.0",
                    "1e3",
                    "+1",
                    " 1",
                    "NaN",
                    "١",
                ],
                "view_count" => &["-1", "9007199254740992", "1.5", "NaN"],
                "dwell_ms" => &["-1", "3600001", "1.5"],
                "created_at" | "event_time" => &[
                    "",
                    "0",
                    "1969-12-31T23:59:59Z",
                    "2100-01-01T00:00:00Z",
                    "9999-12-31T23:59:59Z",
                    "2026-02-30T00:00:00Z",
                    "2026-03-01",
                ],
                "action" => &["", "View"],
                _ => &[],
            };
            for value in wrong {
                let text = with_field(text, 1, column, |_| (*value).to_owned());
                assert_nothing_loaded(file, text.as_bytes(), 2, name).await;
            }
        }
    }
}

#[tokio::test]
async fn a_directory_with_none_of_the_files_is_an_error() {
    let f = Fixture::new(&[]).await;
    assert!(f.refusal().await.contains("none of users.csv"));
}
