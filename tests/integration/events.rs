//! Event ingestion: events that are refused, repeats, counters, and the effect on the next feed.

use crate::harness::{
    Community, Host, POSTS, event, eventually, manifest, post_ids, shipped_module,
};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

/// A viewer who follows no one and has no history. Ranks 200 candidates, far more than the
/// `min_results` of seen-dedup.
const STRANGER: u64 = 999_999;
const COUNTED_WITHIN: Duration = Duration::from_secs(5);
const READ_YOUR_WRITES_WITHIN: Duration = Duration::from_secs(2);

fn author_of(post: u64) -> u64 {
    (post - 1) % 30 + 1
}

fn with(mut event: Value, field: &str, value: Value) -> Value {
    event[field] = value;
    event
}

/// Waits until all events accepted earlier are counted. Events are counted in order, so it sends
/// one more and waits for that.
async fn settle(host: &Host, operator: &str) {
    let (post, sender) = (POSTS - 1, 555);
    let before = host.post_metrics(operator, post).await["shares"]
        .as_u64()
        .unwrap();
    let sentinel = event(post, author_of(post), "share", 0);
    let answer = host.send_events(sender, &[sentinel]).await.ok(202);
    assert_eq!(answer["deduped"], 0);
    eventually(COUNTED_WITHIN, "accepted events are counted", async || {
        host.post_metrics(operator, post).await["shares"] == before + 1
    })
    .await;
}

#[tokio::test]
async fn a_bad_event_is_named_and_its_whole_batch_is_refused() {
    let host = Host::with_community();
    let operator = host.admin_token("operator");
    let before = host.post_metrics(&operator, 1).await;
    let good = |seconds_ago: i64| event(1, 1, "view", seconds_ago);
    let bad = |field: &str, value: Value| with(good(50), field, value);
    let from_now = |seconds: i64| json!(event(1, 1, "view", -seconds)["event_time"]);
    let cases = [
        ("action", json!("stare")),
        ("action", json!("View")),
        ("action", Value::Null),
        ("action", json!(1)),
        ("dwell_ms", json!(-1)),
        ("dwell_ms", json!(3_600_001)),
        ("dwell_ms", json!("10")),
        ("dwell_ms", json!(1.5)),
        ("post_id", json!(0)),
        ("post_id", json!(-1)),
        ("post_id", json!(1_u64 << 53)),
        ("post_id", json!("1")),
        ("author_id", json!(0)),
        ("author_id", json!(1_u64 << 53)),
        ("app_ver", json!("7")),
        ("app_ver", json!("1.2")),
        ("app_ver", json!("v1.2.3")),
        ("app_ver", json!("")),
        ("device", json!("")),
        ("device", Value::Null),
        ("event_time", from_now(600)),
        ("event_time", from_now(-24 * 3_600 - 60)),
        ("event_time", json!("yesterday")),
        ("event_time", json!(1_700_000_000)),
        ("event_time", Value::Null),
        ("event_id", json!("17")),
        ("ranking_id", json!("17")),
        ("user_id", json!(8)),
        ("user_id", json!("7")),
    ];
    for (field, value) in cases {
        let batch = [good(1), bad(field, value.clone()), good(2)];
        let answer = host.send_events(7, &batch).await;
        assert_eq!(
            answer.problem(400),
            [format!("events[1].{field}")],
            "{field} = {value}"
        );
    }
    // The response names every invalid field at once.
    let batch = [
        bad("action", json!("stare")),
        good(1),
        with(bad("post_id", json!(0)), "device", json!("")),
        json!("not an object"),
    ];
    let mut fields = host.send_events(7, &batch).await.problem(400);
    fields.sort();
    let expected = [
        "events[0].action",
        "events[2].device",
        "events[2].post_id",
        "events[3]",
    ];
    assert_eq!(fields, expected);

    // Nothing of the refused batches was kept: no seen post, no claim on the keys of valid
    // events, no count.
    let cache = host
        .get(&operator, "/debug/user/7/feed/cache")
        .await
        .ok(200);
    assert_eq!(cache["seen_posts"], 0);
    let views = before["views"].as_u64().unwrap();
    let again = host.send_events(7, &[good(1)]).await.ok(202);
    assert_eq!(again, json!({"received": 1, "deduped": 0}));
    settle(&host, &operator).await;
    assert_eq!(host.post_metrics(&operator, 1).await["views"], views + 1);
}

#[tokio::test]
async fn a_body_that_is_not_a_single_batch_is_refused() {
    let host = Host::setup()
        .community(Community::small())
        .variable("NOVA_RATE_LIMIT", "off")
        .variable("NOVA_BODY_BYTES_MAX", "100000")
        .start();
    let token = host.viewer_token(7);
    let good = event(1, 1, "view", 0);
    let send = |body: String| {
        let request = host
            .request(Method::POST, "/api/v1/events")
            .bearer_auth(&token);
        host.send(
            request
                .header("content-type", "application/json")
                .body(body),
        )
    };
    for size in [0, 101] {
        let events = vec![good.clone(); size];
        assert_eq!(
            host.send_events(7, &events).await.problem(400),
            ["events"],
            "{size}"
        );
    }
    let batch = json!({"events": [good]}).to_string();
    let bodies = [
        String::new(),
        "view".to_owned(),
        batch[..batch.len() - 1].to_owned(),
        format!("{batch} {batch}"),
        format!("{batch}x"),
        json!([good]).to_string(),
        json!({}).to_string(),
        json!({"events": good}).to_string(),
        json!({"events": null}).to_string(),
    ];
    for body in bodies {
        let answer = send(body.clone()).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(!answer.problem(400).is_empty(), "{body}");
    }
    let large = with(good.clone(), "device", json!("x".repeat(100_000)));
    host.send_events(7, &[large]).await.problem(413);
    // None of the refused bodies changed any state.
    assert_eq!(
        send(batch).await.ok(202),
        json!({"received": 1, "deduped": 0})
    );
}

#[tokio::test]
async fn values_equal_to_the_limits_are_accepted() {
    let host = Host::with_community();
    let good = event(1, 1, "view", 10);
    let id_max = json!((1_u64 << 53) - 1);
    let accepted = [
        with(good.clone(), "dwell_ms", json!(0)),
        with(event(2, 2, "dwell", 10), "dwell_ms", json!(3_600_000)),
        with(
            with(good.clone(), "post_id", id_max.clone()),
            "author_id",
            id_max,
        ),
        event(3, 3, "share", 24 * 3_600 - 60),
        event(4, 4, "comment", -4 * 60),
        with(event(5, 5, "like", 10), "user_id", json!(7)),
        with(
            event(6, 6, "impression", 10),
            "app_ver",
            json!("1.0.0-beta.1+build.5"),
        ),
        with(event(7, 7, "impression", 10), "dwell_ms", Value::Null),
    ];
    let answer = host.send_events(7, &accepted).await.ok(202);
    assert_eq!(answer, json!({"received": 8, "deduped": 0}));
    let hundred: Vec<Value> = (1..=100)
        .map(|post| event(post, author_of(post), "share", 5))
        .collect();
    let answer = host.send_events(7, &hundred).await.ok(202);
    assert_eq!(answer, json!({"received": 100, "deduped": 0}));
}

#[tokio::test]
async fn a_repeat_is_detected_by_its_key_or_its_event_id_and_counts_once() {
    let host = Host::with_community();
    let operator = host.admin_token("operator");
    let before = host.post_metrics(&operator, 1).await["shares"]
        .as_u64()
        .unwrap();
    let id = |n: u128| json!(uuid::Uuid::from_u128(n));
    let second = chrono::Utc::now().timestamp() - 100;
    let at = |milliseconds: i64| {
        json!(chrono::DateTime::from_timestamp_millis(second * 1_000 + milliseconds).unwrap())
    };
    let share = |milliseconds: i64, event_id: u128| {
        let event = with(event(1, 1, "share", 0), "event_time", at(milliseconds));
        with(event, "event_id", id(event_id))
    };
    let first = share(0, 1);
    let same_second = share(999, 2);
    let same_id = with(share(60_000, 1), "post_id", json!(2));
    let deduped = async |user: u64, events: &[Value]| {
        let answer = host.send_events(user, events).await.ok(202);
        assert_eq!(answer["received"], events.len());
        answer["deduped"].as_u64().unwrap()
    };
    assert_eq!(deduped(7, std::slice::from_ref(&first)).await, 0);
    assert_eq!(
        deduped(7, std::slice::from_ref(&first)).await,
        1,
        "sent again"
    );
    assert_eq!(
        deduped(7, &[same_second]).await,
        1,
        "same second, another id"
    );
    assert_eq!(deduped(7, &[same_id]).await, 1, "same id, another post");
    assert_eq!(
        deduped(8, std::slice::from_ref(&first)).await,
        0,
        "another user"
    );
    assert_eq!(deduped(7, &[share(5_000, 3)]).await, 0, "another second");
    assert_eq!(
        deduped(7, &[with(share(0, 4), "action", json!("like"))]).await,
        0,
        "another action"
    );
    assert_eq!(
        deduped(7, &[with(share(0, 5), "post_id", json!(2))]).await,
        0,
        "another post"
    );
    // Repeats and new events may be in one batch.
    let (new, twin) = (share(9_000, 6), share(9_500, 7));
    assert_eq!(
        deduped(7, &[new, twin, first.clone(), share(20_000, 8)]).await,
        2
    );

    // Post 1 has viewer 7's shares of seconds 0, 5, 9 and 20, and viewer 8's share.
    settle(&host, &operator).await;
    assert_eq!(host.post_metrics(&operator, 1).await["shares"], before + 5);
    assert_eq!(host.post_metrics(&operator, 2).await["shares"], 1);
}

#[tokio::test]
async fn each_action_increments_its_own_counters() {
    let host = Host::with_community();
    let operator = host.admin_token("operator");
    let (post, author) = (POSTS, author_of(POSTS));
    let before = host.post_metrics(&operator, post).await;
    let dwell = |event: Value, ms: u64| with(event, "dwell_ms", json!(ms));
    let batch = [
        dwell(event(post, author, "view", 1), 1_000),
        event(post, author, "view", 2),
        event(post, author, "view", 3),
        dwell(event(post, author, "impression", 1), 20),
        event(post, author, "impression", 2),
        dwell(event(post, author, "dwell", 1), 300),
        event(post, author, "like", 1),
        event(post, author, "comment", 1),
        dwell(event(post, author, "share", 1), 4),
        // Events on another post of the same author change only the affinity and the author's
        // impressions.
        event(post - 30, author, "like", 1),
        event(post - 30, author, "impression", 1),
    ];
    host.send_events(STRANGER, &batch).await.ok(202);
    settle(&host, &operator).await;
    let after = host.post_metrics(&operator, post).await;
    let risen =
        |counter: &str| after[counter].as_u64().unwrap() - before[counter].as_u64().unwrap();
    assert_eq!(
        [
            "views",
            "exposures",
            "likes",
            "comments",
            "shares",
            "dwell_ms_sum"
        ]
        .map(risen),
        [3, 2, 1, 1, 1, 1_324]
    );

    // This viewer's likes, comments and views on this author's posts: 2 + 1 + 3.
    let features = async |viewer: u64, policy: &str| {
        let path = format!("/debug/user/{viewer}/feed/explain?policy={policy}");
        let explained = host.get(&operator, &path).await.ok(200);
        let posts = explained["posts"].as_array().unwrap();
        let found = posts.iter().find(|one| one["post_id"] == post);
        found.map(|one| one["features"].clone())
    };
    let of_viewer = features(STRANGER, "baseline@1.0.0").await.unwrap();
    assert_eq!(of_viewer["affinity"], 6.0);
    assert_eq!(of_viewer["likes"], after["likes"].as_f64().unwrap());
    assert_eq!(of_viewer["exposures"], after["exposures"].as_f64().unwrap());
    assert_eq!(of_viewer["seen"], 1.0);
    let of_another = features(STRANGER + 1, "baseline@1.0.0").await.unwrap();
    assert_eq!(
        (&of_another["affinity"], &of_another["seen"]),
        (&json!(0.0), &json!(0.0))
    );

    // The bundled policies do not read the author's impressions. A policy that reads them gets
    // three.
    let recipe = manifest(
        "impressions",
        "1.0.0",
        "saturation",
        "decay_saturation.wasm",
    );
    let module = [(
        "decay_saturation.wasm",
        shipped_module("decay_saturation.wasm"),
    )];
    host.upload(&operator, &recipe, &module).await.ok(201);
    let of_viewer = features(STRANGER, "impressions@1.0.0").await.unwrap();
    assert_eq!(of_viewer["author_recent_impressions"], 3.0);
    let of_another = features(STRANGER + 1, "impressions@1.0.0").await.unwrap();
    assert_eq!(of_another["author_recent_impressions"], 0.0);
}

#[tokio::test]
async fn seen_posts_leave_the_next_feed_and_stay_in_the_ranking_that_a_cursor_pins() {
    let host = Host::with_community();
    let token = host.viewer_token(STRANGER);
    let first = host.get(&token, "/api/v1/feed?limit=20").await.ok(200);
    assert_eq!(first["total_count"], 200);
    let next_page = format!(
        "/api/v1/feed?limit=20&cursor={}",
        first["cursor"].as_str().unwrap()
    );
    let second = host.get(&token, &next_page).await.ok(200);

    let mut last = first.clone();
    // The first post is seen by an impression, a post of the second page by a view.
    let shown = [
        (post_ids(&first)[0], "impression"),
        (post_ids(&second)[5], "view"),
    ];
    for (left, (post, action)) in [199, 198].into_iter().zip(shown) {
        host.send_events(STRANGER, &[event(post, author_of(post), action, 0)])
            .await
            .ok(202);
        let next = host.get(&token, "/api/v1/feed?limit=100").await.ok(200);
        assert_ne!(
            next["ranking_id"], last["ranking_id"],
            "{action}: the snapshot was reused"
        );
        assert_eq!(
            next["cache_hit"], true,
            "{action}: the candidates are still good"
        );
        assert_eq!(next["total_count"], left, "{action}");
        let ids: Vec<Value> = host.whole_feed(STRANGER, "ch").await;
        assert!(
            ids.iter().all(|one| one["post_id"] != post),
            "{action}: {post} is shown again"
        );
        last = next;
    }
    // Events that add no newly seen post leave the ranking unchanged.
    let again = [
        event(shown[0].0, author_of(shown[0].0), "impression", 30),
        event(3, 3, "dwell", 0),
    ];
    host.send_events(STRANGER, &again).await.ok(202);
    let same = host.get(&token, "/api/v1/feed?limit=100").await.ok(200);
    assert_eq!(same["ranking_id"], last["ranking_id"]);

    let pinned = host.get(&token, &next_page).await.ok(200);
    assert_eq!(pinned["ranking_id"], first["ranking_id"]);
    assert_eq!(pinned["posts"], second["posts"]);
    assert_eq!(pinned["cursor"], second["cursor"]);
    // Another viewer has seen none of these posts.
    assert_eq!(host.feed(STRANGER + 1).await["total_count"], 200);
}

#[tokio::test]
async fn a_viewer_who_has_seen_nearly_everything_still_gets_min_results_posts_newest_first() {
    let host = Host::with_community();
    let all: Vec<u64> = host
        .whole_feed(STRANGER, "ch")
        .await
        .iter()
        .map(|post| post["post_id"].as_u64().unwrap())
        .collect();
    let unseen = 30;
    for posts in all[unseen..].chunks(100) {
        let batch: Vec<Value> = posts
            .iter()
            .map(|&post| event(post, author_of(post), "view", 0))
            .collect();
        host.send_events(STRANGER, &batch).await.ok(202);
    }
    let mut kept: Vec<u64> = host
        .whole_feed(STRANGER, "ch")
        .await
        .iter()
        .map(|post| post["post_id"].as_u64().unwrap())
        .collect();
    // In this community a higher id is a newer post.
    let mut seen = all[unseen..].to_vec();
    seen.sort_unstable_by(|a, b| b.cmp(a));
    let mut expected = all[..unseen].to_vec();
    expected.extend(&seen[..50 - unseen]);
    expected.sort_unstable();
    kept.sort_unstable();
    assert_eq!(kept, expected);
}

#[tokio::test]
async fn the_next_feed_counts_the_viewers_own_like_comment_and_share() {
    let host = Host::with_community();
    let operator = host.admin_token("operator");
    let token = host.viewer_token(STRANGER);
    for (action, counter) in [
        ("like", "likes"),
        ("comment", "comments"),
        ("share", "shares"),
    ] {
        let feed = host.feed(STRANGER).await;
        let liked = &feed["posts"][3];
        let (post, author) = (
            liked["post_id"].as_u64().unwrap(),
            liked["author_id"].as_u64().unwrap(),
        );
        let (before, metrics) = (
            liked[counter].as_u64().unwrap(),
            host.post_metrics(&operator, post).await,
        );
        assert_eq!(metrics[counter], before);

        host.send_events(STRANGER, &[event(post, author, action, 0)])
            .await
            .ok(202);
        let next = host.get(&token, "/api/v1/feed?limit=100").await.ok(200);
        assert_eq!(
            next["cache_hit"], false,
            "{action}: the candidates were reused"
        );
        assert_ne!(next["ranking_id"], feed["ranking_id"]);
        eventually(READ_YOUR_WRITES_WITHIN, "the feed counts it", async || {
            let posts = host.whole_feed(STRANGER, "ch").await;
            let found = posts.iter().find(|one| one["post_id"] == post);
            found.is_some_and(|one| one[counter] == before + 1)
        })
        .await;
        assert_eq!(
            host.post_metrics(&operator, post).await[counter],
            before + 1
        );
    }
}

#[tokio::test]
async fn events_that_cannot_be_stored_get_a_503_and_feeds_are_still_served() {
    let host = Host::setup()
        .community(Community::small())
        .variable("NOVA_SPOOL_BYTES_MAX", "0")
        .start();
    let shown = post_ids(&host.feed(STRANGER).await)[0];
    let answer = host
        .send_events(STRANGER, &[event(shown, author_of(shown), "view", 0)])
        .await;
    assert!(answer.headers.contains_key("retry-after"));
    answer.problem(503);
    // Events that were not accepted mark no post as seen.
    assert_eq!(post_ids(&host.feed(STRANGER).await)[0], shown);
    let operator = host.admin_token("operator");
    let cache = format!("/debug/user/{STRANGER}/feed/cache");
    assert_eq!(host.get(&operator, &cache).await.ok(200)["seen_posts"], 0);
}
