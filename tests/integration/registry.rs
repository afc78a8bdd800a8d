//! The registry over HTTP: preconditions of changes, pages of the list, and what many uploads
//! leave behind.

use crate::harness::{Answer, Community, Host, manifest};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Bodies with which each route that changes something gets as far as its precondition.
fn body_of(path: &str) -> Value {
    match path.rsplit('/').next().unwrap() {
        "canary" => json!({"percent": 5.0}),
        "quarantine" | "lift" | "rollback" => json!({"reason": "a test"}),
        "{name}" => json!({"enabled": false}),
        "{key}" if path.contains("cohorts") => json!({"ids": [7]}),
        "{key}" => {
            json!({"variations": [{"key": "a", "weight": 1.0, "policy": "baseline@1.0.0"}]})
        }
        _ => json!({}),
    }
}

/// Returns a route with names in the place of its parameters.
fn named(path: &str) -> String {
    let policies = path.replace("/policies/{name}/{version}", "/policies/timeline/1.0.0");
    let flags = policies.replace("{name}", "enable_caching");
    flags.replace("{key}", "k")
}

async fn change(host: &Host, token: &str, method: &str, path: &str, if_match: &str) -> Answer {
    let method: Method = method.to_uppercase().parse().unwrap();
    let request = host.request(method, &named(path)).bearer_auth(token);
    let request = request.header("If-Match", if_match);
    if path == "/admin/v1/policies" {
        let text = manifest("other", "1.0.0", "score", "builtin:weighted-scorer");
        let form = reqwest::multipart::Form::new().text("manifest", text);
        return host.send(request.multipart(form)).await;
    }
    host.send(request.json(&body_of(path))).await
}

#[tokio::test]
async fn every_route_that_changes_the_registry_answers_412_at_another_revision() {
    let host = Host::with_community();
    let operator = host.admin_token("operator");
    let cohort = "/admin/v1/cohorts/c";
    let rule = json!({"ids": [1]});
    host.put(&operator, cohort, &rule).await.ok(201);
    let read = host.get(&operator, cohort).await;
    let tag = read.headers["etag"].to_str().unwrap().to_owned();
    let revision: i64 = tag.trim_matches('"').parse().unwrap();
    let openapi = host.get("", "/openapi.json").await.ok(200);
    let mut tried = 0;
    for (path, methods) in openapi["paths"].as_object().unwrap() {
        let writes = methods.as_object().unwrap().keys();
        let is_admin = path.starts_with("/admin/v1/");
        for method in writes.filter(|method| is_admin && *method != "get") {
            let what = format!("{method} {path}");
            let answer = change(&host, &operator, method, path, "\"999999\"").await;
            assert_eq!(answer.headers["etag"], tag, "{what}");
            assert_eq!(answer.body["revision"], revision, "{what}");
            assert_eq!(answer.body["type"], "precondition-failed", "{what}");
            answer.problem(412);
            for malformed in [
                "\"x\"",
                "\"1\", \"2\"",
                "W/\"1\"",
                "1",
                "+1",
                "\"+1\"",
                "\"1",
                "\"\"",
            ] {
                let answer = change(&host, &operator, method, path, malformed).await;
                assert_eq!(answer.problem(400), ["If-Match"], "{what}");
            }
            tried += 1;
        }
    }
    assert!(tried >= 13, "{tried} routes");
    let again = host.get(&operator, cohort).await;
    assert_eq!(again.headers["etag"], tag, "nothing was changed");
    let put = |if_match: String| {
        let request = host.request(Method::PUT, cohort).bearer_auth(&operator);
        host.send(request.header("If-Match", if_match).json(&rule))
    };
    put(tag.clone()).await.ok(200);
    put(tag).await.problem(412);
    put("*".to_owned()).await.ok(200);
    // These answers change while the registry does not.
    for path in [
        "/admin/v1/policies/timeline/1.0.0/failures",
        "/admin/v1/audit",
    ] {
        let answer = host.get(&operator, path).await;
        assert!(!answer.headers.contains_key("etag"), "{path}");
    }
}

#[tokio::test]
async fn many_versions_are_listed_in_pages_and_leave_no_series_in_the_metrics() {
    let host = Host::setup().community(Community::small()).start();
    let operator = host.admin_token("operator");
    for n in 0..40 {
        let version = format!("1.0.{n}");
        let text = manifest("many", &version, "score", "builtin:weighted-scorer");
        host.upload(&operator, &text, &[]).await.ok(201);
    }
    let mut seen = BTreeSet::new();
    let (mut path, mut pages) = ("/admin/v1/policies?limit=16".to_owned(), 0);
    loop {
        let page = host.get(&operator, &path).await.ok(200);
        let policies = page["policies"].as_array().unwrap();
        assert!(policies.len() <= 16);
        for policy in policies {
            assert!(seen.insert(format!("{}@{}", policy["name"], policy["version"])));
        }
        pages += 1;
        let Some(next) = page["next"].as_str() else {
            break;
        };
        path = format!("/admin/v1/policies?limit=16&cursor={next}");
    }
    assert_eq!((seen.len(), pages), (43, 3));
    let whole = host.get(&operator, "/admin/v1/policies").await.ok(200);
    assert_eq!(whole["policies"].as_array().unwrap().len(), 43);
    assert_eq!(whole.get("next"), None);
    for cursor in ["x", "MQ"] {
        let path = format!("/admin/v1/policies?cursor={cursor}");
        let answer = host.get(&operator, &path).await;
        assert_eq!(answer.problem(400), ["cursor"]);
    }
    let metrics = || async {
        let request = host.request(Method::GET, "/metrics");
        host.send(request).await.body.as_str().unwrap().to_owned()
    };
    host.feed(7).await;
    assert!(!metrics().await.contains("many@"));
    let canary = "/admin/v1/policies/many/1.0.3/canary";
    let percent = |percent: f64| json!({ "percent": percent });
    host.post(&operator, canary, &percent(100.0)).await.ok(200);
    host.feed(8).await;
    assert!(metrics().await.contains("many@1.0.3"));
    host.post(&operator, canary, &percent(0.0)).await.ok(200);
    let text = metrics().await;
    assert!(!text.contains("many@"), "{text}");
    assert!(text.len() < 2 << 20);
}

#[tokio::test]
async fn a_quota_refuses_an_upload_and_a_clean_up_keeps_what_is_used() {
    let host = Host::setup().config("[policy]\nversions_max = 5\n").start();
    let operator = host.admin_token("operator");
    let upload = async |version: &str| {
        let text = manifest("many", version, "score", "builtin:weighted-scorer");
        host.upload(&operator, &text, &[]).await
    };
    upload("1.0.0-dev.1").await.ok(201);
    upload("1.0.0-dev.2").await.ok(201);
    let refused = upload("1.0.0").await;
    assert!(refused.body.to_string().contains("policy.versions_max"));
    refused.problem(422);
    let shadow = "/admin/v1/policies/many/1.0.0-dev.2/shadow";
    host.post(&operator, shadow, &json!({})).await.ok(200);
    let prune = "/admin/v1/policies/prune";
    let dry = json!({"dry_run": true});
    let unused = host.post(&operator, prune, &dry).await.ok(200);
    assert_eq!(unused["policies"], json!(["many@1.0.0-dev.1"]));
    let removed = host.post(&operator, prune, &json!({})).await.ok(200);
    assert_eq!(removed["policies"], unused["policies"]);
    let none = host.post(&operator, prune, &json!({})).await.ok(200);
    assert_eq!(none["policies"], json!([]));
    upload("1.0.0").await.ok(201);
}
