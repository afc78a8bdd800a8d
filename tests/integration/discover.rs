//! Trending posts, suggested users and the timeline. Each test recomputes the expected result
//! from the imported rows.

use crate::harness::{Community, Host, saturated};
use chrono::{DateTime, Duration, DurationRound, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};

const USERS: u64 = 40;
const POSTS: u64 = 60;

/// An action on a post, dated `hours_ago` whole hourly buckets before the current one.
#[derive(Clone, Copy)]
struct Deed {
    user: u64,
    post: u64,
    kind: &'static str,
    hours_ago: i64,
}

/// Rows from which a test can recompute every result. A deed's time is the first or the last
/// instant of its bucket.
struct World {
    this_hour: DateTime<Utc>,
    deeds: Vec<Deed>,
    follows: HashSet<(u64, u64)>,
}

/// Returns numbers that look random but are the same in every run.
fn scatter(n: u64) -> u64 {
    let n = (n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (n ^ (n >> 29)) % 1_000_003
}

fn author_of(post: u64) -> u64 {
    scatter(post + 7_000) % USERS + 1
}

impl World {
    fn new() -> Self {
        let deed = |post, kind, hours_ago, times| {
            (1..=times).map(move |user| Deed {
                user,
                post,
                kind,
                hours_ago,
            })
        };
        // Covers the edges of the windows, ties, and each kind with its weight.
        let edges = [
            deed(1, "like", 0, 2),
            deed(2, "like", 1, 2),
            deed(3, "like", 2, 5),
            deed(4, "comment", 24, 2),
            deed(5, "comment", 25, 3),
            deed(6, "share", 1, 1),
            deed(7, "like", 168, 2),
            deed(8, "like", 169, 9),
            deed(9, "view", 0, 3),
            deed(10, "impression", 1, 3),
            deed(11, "like", 0, 1),
            deed(11, "comment", 1, 1),
            deed(11, "share", 0, 1),
            deed(11, "view", 0, 4),
        ];
        let kinds = ["like", "comment", "share", "view"];
        let scattered = (0..400).map(|n| Deed {
            user: scatter(n) % USERS + 1,
            post: scatter(n + 1_000) % (POSTS - 11) + 12,
            kind: kinds[scatter(n + 2_000) as usize % kinds.len()],
            hours_ago: (scatter(n + 3_000) % 200) as i64,
        });
        // Engagement older than the 90-day window.
        let forgotten = deed(20, "like", 24 * 100, 8);
        Self {
            this_hour: Utc::now().duration_trunc(Duration::hours(1)).unwrap(),
            deeds: edges
                .into_iter()
                .flatten()
                .chain(scattered)
                .chain(forgotten)
                .collect(),
            follows: (0..160)
                .map(|n| {
                    (
                        scatter(n + 4_000) % USERS + 1,
                        scatter(n + 5_000) % USERS + 1,
                    )
                })
                .filter(|(follower, followed)| follower != followed)
                .collect(),
        }
    }

    fn time(&self, at: usize, hours_ago: i64) -> String {
        let bucket = self.this_hour - Duration::hours(hours_ago);
        let last_instant = hours_ago > 0 && at % 2 == 1;
        let offset = if last_instant {
            Duration::milliseconds(3_599_999)
        } else {
            Duration::zero()
        };
        (bucket + offset).to_rfc3339()
    }

    fn community(&self) -> Community {
        let long_ago = self.time(0, 24 * 120);
        let file = |header: &str, rows: Vec<String>| format!("{header}\n{}\n", rows.join("\n"));
        let of_kind = |kinds: &[&str]| {
            let deeds = self.deeds.iter().copied().enumerate();
            deeds
                .filter(|(_, deed)| kinds.contains(&deed.kind))
                .collect::<Vec<_>>()
        };
        let rows = |kind: &str| {
            let row = |(at, deed): &(usize, Deed)| {
                format!(
                    "{},{},{},{}",
                    at + 1,
                    deed.post,
                    deed.user,
                    self.time(*at, deed.hours_ago)
                )
            };
            of_kind(&[kind]).iter().map(row).collect::<Vec<_>>()
        };
        let users = (1..=USERS)
            .map(|user| format!("{user},{long_ago},name{user}"))
            .collect();
        let mut posts: Vec<String> = (1..=POSTS)
            .map(|post| {
                format!(
                    "{post},{},{}",
                    author_of(post),
                    self.time(0, 200 + POSTS as i64 - post as i64)
                )
            })
            .collect();
        // A post dated in the future: it already has a like, but it must not appear in any
        // trending list.
        posts.push(format!("{},1,{}", POSTS + 1, self.time(0, -3)));
        let mut likes = rows("like");
        likes.push(format!("9999,{},2,{}", POSTS + 1, self.time(0, 0)));
        let follows = self
            .follows
            .iter()
            .map(|(one, other)| format!("{one},{other},{long_ago}"));
        let events = of_kind(&["share", "view", "impression"]);
        let event = |(at, deed): &(usize, Deed)| {
            let (id, time) = (
                uuid::Uuid::from_u128(*at as u128 + 1),
                self.time(*at, deed.hours_ago),
            );
            format!(
                "{id},{time},{},{},{},{}",
                deed.user,
                deed.post,
                author_of(deed.post),
                deed.kind
            )
        };
        Community::of(&[
            ("users.csv", file("user_id,created_at,username", users)),
            ("posts.csv", file("post_id,author_id,created_at", posts)),
            (
                "likes.csv",
                file("like_id,post_id,user_id,created_at", likes),
            ),
            (
                "comments.csv",
                file("comment_id,post_id,user_id,created_at", rows("comment")),
            ),
            (
                "follows.csv",
                file("follower_id,following_id,created_at", follows.collect()),
            ),
            (
                "events.csv",
                file(
                    "event_id,event_time,user_id,post_id,author_id,action",
                    events.iter().map(event).collect(),
                ),
            ),
        ])
    }

    /// Returns post → (likes, comments, shares, views) in the buckets from `window_hours` before
    /// `now_hour` onwards.
    fn counts(&self, now_hour: DateTime<Utc>, window_hours: i64) -> BTreeMap<u64, [u64; 4]> {
        let mut counts: BTreeMap<u64, [u64; 4]> = BTreeMap::new();
        for deed in &self.deeds {
            let bucket = self.this_hour - Duration::hours(deed.hours_ago);
            if bucket < now_hour - Duration::hours(window_hours) {
                continue;
            }
            let kinds = ["like", "comment", "share", "view"];
            if let Some(kind) = kinds.iter().position(|kind| *kind == deed.kind) {
                counts.entry(deed.post).or_default()[kind] += 1;
            }
        }
        counts
    }
}

fn start(world: &World) -> Host {
    Host::setup()
        .community(world.community())
        .variable("NOVA_RATE_LIMIT", "off")
        .start()
}

#[tokio::test]
async fn trending_is_ordered_by_the_weighted_sum_over_whole_hours_and_then_by_higher_id() {
    let world = World::new();
    let host = start(&world);
    for (window, hours) in [("1h", 1), ("24h", 24), ("7d", 168)] {
        let get = async |query: &str| {
            let path = format!("/api/v1/feed/trending?{query}");
            host.send(host.request(Method::GET, &path)).await.ok(200)
        };
        let answer = get(&format!("window={window}")).await;
        assert_eq!(
            (&answer["window"], &answer["cache_hit"]),
            (&json!(window), &json!(false))
        );
        // The hour may change during the test; the response says in which hour it was computed.
        let posts = answer["posts"].as_array().unwrap();
        let window_start: DateTime<Utc> =
            posts[0]["window_start"].as_str().unwrap().parse().unwrap();
        let now_hour = window_start + Duration::hours(hours);
        let turned = now_hour - world.this_hour;
        assert!(
            turned == Duration::zero() || turned == Duration::hours(1),
            "{window_start}"
        );

        let mut expected: Vec<(u64, u64, [u64; 4])> = world
            .counts(now_hour, hours)
            .into_iter()
            .map(|(post, counts)| (counts[0] + 2 * counts[1] + 3 * counts[2], post, counts))
            .filter(|(engagement, ..)| *engagement > 0)
            .collect();
        expected.sort_unstable_by(|a, b| b.cmp(a));
        let expected: Vec<Value> = expected
            .into_iter()
            .map(|(engagement, post, [likes, comments, shares, views])| {
                json!({"post_id": post, "author_id": author_of(post), "engagement_count": engagement, "views": views,
                       "likes": likes, "comments": comments, "shares": shares, "window_start": posts[0]["window_start"]})
            })
            .collect();
        assert_eq!(posts, &expected, "{window}");
        assert_eq!(answer["count"], expected.len());

        let top = get(&format!("window={window}&limit=3")).await;
        assert_eq!(
            (&top["count"], &top["cache_hit"]),
            (&json!(3), &json!(true))
        );
        assert_eq!(top["posts"].as_array().unwrap(), &expected[..3]);
        if window == "1h" {
            assert_eq!(get("").await["posts"], answer["posts"], "1h is the default");
        }
    }
}

/// Expected suggestions (see docs/semantics.md, "Suggested users") as (user, score, followers),
/// best first.
fn suggestions(world: &World, viewer: u64) -> Vec<(u64, f64, u64)> {
    let follows = |one: u64, other: u64| world.follows.contains(&(one, other));
    let people: Vec<u64> = (1..=USERS)
        .filter(|&person| person != viewer)
        .filter(|&person| {
            (1..=USERS).any(|followee| follows(viewer, followee) && follows(person, followee))
        })
        .collect();
    let mut interactions: HashMap<u64, u64> = HashMap::new();
    for deed in &world.deeds {
        let counts = ["like", "comment", "view"].contains(&deed.kind) && deed.hours_ago < 24 * 89;
        if deed.user == viewer && counts {
            *interactions.entry(author_of(deed.post)).or_default() += 1;
        }
    }
    // The like of the future post counts as an interaction.
    if viewer == 2 {
        *interactions.entry(1).or_default() += 1;
    }
    let mut found: Vec<(u64, f64, u64)> = (1..=USERS)
        .filter(|&user| user != viewer && !follows(viewer, user))
        .map(|user| {
            let shared = people
                .iter()
                .filter(|&&person| follows(person, user))
                .count();
            let score = (shared as f64).ln_1p()
                + (interactions.get(&user).copied().unwrap_or(0) as f64).ln_1p();
            let followers = (1..=USERS).filter(|&one| follows(one, user)).count();
            (user, score, followers as u64)
        })
        .filter(|(_, score, _)| *score > 0.0)
        .collect();
    found.sort_by(|a, b| b.1.total_cmp(&a.1).then(b.2.cmp(&a.2)).then(a.0.cmp(&b.0)));
    found
}

#[tokio::test]
async fn suggested_users_follow_the_formula_and_exclude_the_viewer_and_followees() {
    let world = World::new();
    let host = start(&world);
    for viewer in 1..=8 {
        let token = host.viewer_token(viewer);
        let get = async |limit: &str| {
            let path = format!("/api/v1/discover/suggested-users{limit}");
            host.get(&token, &path).await.ok(200)
        };
        let answer = get("?limit=50").await;
        let expected = suggestions(&world, viewer);
        assert!(
            expected.len() > 5,
            "a viewer without suggestions proves nothing"
        );
        let users = answer["users"].as_array().unwrap();
        let ids = |users: &[Value]| {
            users
                .iter()
                .map(|user| user["user_id"].as_u64().unwrap())
                .collect::<Vec<_>>()
        };
        let expected_ids: Vec<u64> = expected.iter().map(|(user, ..)| *user).collect();
        assert_eq!(ids(users), expected_ids, "viewer {viewer}");
        for (user, (id, score, followers)) in users.iter().zip(&expected) {
            let given = user["affinity_score"].as_f64().unwrap();
            assert!(
                (given - score).abs() <= 1e-9,
                "user {id}: {given}, not {score}"
            );
            assert_eq!(user["follower_count"], *followers);
            assert_eq!(user["username"], format!("name{id}"));
            assert!(user["avatar_url"].is_string() && user["bio"].is_string());
        }
        let first = get("").await;
        assert_eq!(first["cache_hit"], true);
        let default = expected_ids.iter().copied().take(20).collect::<Vec<_>>();
        assert_eq!(ids(first["users"].as_array().unwrap()), default);
    }
    let nobody = host.viewer_token(999_999);
    let answer = host
        .get(&nobody, "/api/v1/discover/suggested-users")
        .await
        .ok(200);
    assert_eq!(answer["users"], json!([]));
}

#[tokio::test]
async fn the_timeline_is_newest_first_under_the_saturation_rules_and_has_no_scores() {
    let world = World::new();
    let host = start(&world);
    for viewer in [1, 2, 3, 999_999] {
        let token = host.viewer_token(viewer);
        let page = host.get(&token, "/api/v1/feed?algo=timeline").await.ok(200);
        assert_eq!(
            (&page["algo"], &page["served_by"]),
            (&json!("timeline"), &json!("timeline"))
        );
        assert_eq!(
            (&page["fallback"], &page["degraded"]),
            (&json!(false), &json!([]))
        );
        // Posts that the viewer saw in the last day are filtered out. Enough posts remain that
        // none of them is put back.
        let saw = |deed: &&Deed| deed.user == viewer && ["view", "impression"].contains(&deed.kind);
        let saw: Vec<Deed> = world.deeds.iter().filter(saw).copied().collect();
        assert!(
            saw.iter().all(|deed| !(23..=25).contains(&deed.hours_ago)),
            "near the edge the outcome depends on the minute: take another viewer"
        );
        let seen = |post: u64| {
            saw.iter()
                .any(|deed| deed.post == post && deed.hours_ago < 23)
        };
        // In this community a higher id is a newer post.
        let newest_first: Vec<(u64, u64)> = (1..=POSTS)
            .rev()
            .map(|post| (post, author_of(post)))
            .filter(|(post, author)| *author != viewer && !seen(*post))
            .collect();
        assert!(newest_first.len() >= 50);
        let posts = host.whole_feed(viewer, "timeline").await;
        let shown: Vec<u64> = posts
            .iter()
            .map(|post| post["post_id"].as_u64().unwrap())
            .collect();
        let expected = saturated(&newest_first);
        assert!(
            expected
                .iter()
                .zip(&newest_first)
                .any(|(one, (other, _))| one != other),
            "the rules had nothing to do"
        );
        assert_eq!(shown, expected, "viewer {viewer}");
        assert!(posts.iter().all(|post| post["score"].is_null()));
        // All posts are older than three days, so none of them comes from the followees source.
        assert!(posts.iter().all(|post| post["reason"] == "recent"));
    }
}
