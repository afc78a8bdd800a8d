//! Explained rankings: an explanation shows exactly what was served, also if the order between
//! two stages matters.

use crate::harness::{guest, nova, post_ids};
use crate::recipes::{AMPLE, calm, patient_setup};
use serde_json::{Value, json};

fn posts(ranking: &Value) -> &Vec<Value> {
    ranking["posts"].as_array().unwrap()
}

#[tokio::test]
async fn a_score_that_depends_on_the_order_from_dedup_is_explained_as_it_was_served() {
    let host = patient_setup().start();
    let operator = host.operator();
    let text = format!(
        "name = \"ordered\"\nversion = \"1.0.0\"\n[dedup]\nmodule = \"dedup_reversed.wasm\"\n[score]\nmodule = \"scores_by_place.wasm\"\n[saturation]\nmodule = \"builtin:author-saturation\"\n{AMPLE}"
    );
    let files = ["dedup_reversed.wasm", "scores_by_place.wasm"].map(|file| (file, guest(file)));
    operator.publish_and_activate(&text, &files).await;
    let served = post_ids(&host.feed(7).await);
    let explained = operator.get("/debug/user/7/feed/explain").await;
    let mut shown = post_ids(&explained);
    shown.truncate(50);
    assert_eq!(shown, served);
    for post in posts(&explained) {
        assert_eq!(post["score"], post["score_components"]["place"], "{post}");
        assert_eq!(
            post["score"].as_f64(),
            post["position_after_dedup"].as_f64(),
            "{post}"
        );
    }
}

#[tokio::test]
async fn two_policies_are_explained_over_the_same_candidates_at_the_same_moment() {
    let host = patient_setup().start();
    let operator = host.operator();
    operator.publish(&calm("calm", "1.0.0"), &[]).await;
    let path = "/debug/user/7/feed/explain?policy=calm@1.0.0&compare=timeline@1.0.0";
    let both = operator.get(path).await;
    let other = &both["compare"];
    assert_eq!(
        (&both["policy"], &other["policy"]),
        (&json!("calm@1.0.0"), &json!("timeline@1.0.0"))
    );
    let sorted = |ranking: &Value| {
        let mut ids = post_ids(ranking);
        ids.sort_unstable();
        ids
    };
    assert_eq!(sorted(&both), sorted(other));
    assert_ne!(post_ids(&both), post_ids(other));
    assert!(posts(other).iter().all(|post| post["source"].is_string()));
    let alone = operator
        .get("/debug/user/7/feed/explain?policy=calm@1.0.0")
        .await;
    assert_eq!(
        (post_ids(&alone), &alone["compare"]),
        (post_ids(&both), &json!(null))
    );
    host.get(
        &operator.token,
        "/debug/user/7/feed/explain?compare=nobody@1.0.0",
    )
    .await
    .problem(404);

    let told = |arguments: &[&str]| {
        let output = nova()
            .args(["policy", "explain", "--user", "7", "--limit", "5"])
            .args(arguments)
            .args(["--host", &host.url, "--token", &operator.token])
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let text = told(&["calm@1.0.0", "timeline@1.0.0"]);
    assert!(
        text.starts_with("calm@1.0.0 → timeline@1.0.0, user 7"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 2 + 5, "{text}");
    let text = told(&[]);
    assert!(
        text.contains("freshness") && text.contains("baseline@1.0.0"),
        "{text}"
    );
    let all: Value = serde_json::from_str(&told(&["--json"])).unwrap();
    assert!(posts(&all)[0]["features"].is_object());
}
