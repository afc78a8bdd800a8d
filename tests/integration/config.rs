//! Configuration: values that are refused at start, values that change while the host runs, and
//! flags.

use crate::harness::{Community, Host, eventually, post_ids, refusal_to_serve};
use serde_json::{Value, json};
use std::time::Duration;

const RELOADED_WITHIN: Duration = Duration::from_secs(15);
const URLS: [(&str, &str); 4] = [
    ("POSTGRES_URL", "postgres://localhost/nova"),
    ("CLICKHOUSE_URL", "http://localhost:8123"),
    ("KAFKA_BROKERS", "localhost:9092"),
    ("REDIS_URL", "redis://localhost"),
];

/// Asserts that the host refuses to start with this file and these variables, and returns the
/// one-line error.
fn refusal(text: &str, variables: &[(&str, &str)]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("nova.toml");
    std::fs::write(&file, text).unwrap();
    let data_dir = directory.path().join("data");
    let arguments = [
        "--data-dir",
        data_dir.to_str().unwrap(),
        "--config",
        file.to_str().unwrap(),
    ];
    refusal_to_serve(&arguments, variables)
}

#[test]
fn an_invalid_configuration_is_refused_in_one_line_that_names_the_key() {
    let files = [
        ("listn = \"127.0.0.1:1\"", "listn"),
        ("[ttl]\nsnapshots_s = 3", "snapshots_s"),
        ("[flags]\nuse_ch = true", "use_ch"),
        ("[ttl]\nsnapshot_s = \"soon\"", "snapshot_s"),
        ("[ttl]\nsnapshot_s = -1", "snapshot_s"),
        (
            "[limits]\nviewer_requests_per_minute = 0",
            "viewer_requests_per_minute",
        ),
        ("[feed]\npolicy_budget_ms = 0", "feed.policy_budget_ms: 0"),
        ("[feed]\nsource_timeout_ms = 60001", "10 … 60000 ms"),
        ("log_level = \"==\"", "log_level"),
        ("[ttl]\n\n[flags", "line 3"),
    ];
    for (text, key) in files {
        let line = refusal(text, &[]);
        assert!(line.contains(key), "{text}: {line}");
    }
    let line = refusal("", &[("NOVA_SNAPSHOT_TTL_S", "soon")]);
    assert!(line.contains("snapshot_s"), "{line}");
    let line = refusal("", &[("NOVA_POLICY_BUDGET_MS", "0")]);
    assert!(line.contains("feed.policy_budget_ms: 0"), "{line}");
    assert!(refusal("", &[("HTTP_PORT", "http")]).contains("HTTP_PORT"));
    // The error never repeats a secret.
    let line = refusal("", &[("NOVA_JWT_SECRET", "hunter2")]);
    assert!(
        line.contains("jwt_secret") && !line.contains("hunter2"),
        "{line}"
    );
    let missing = refusal_to_serve(&["--config", "/nowhere/nova.toml"], &[]);
    assert!(missing.contains("/nowhere/nova.toml"), "{missing}");
}

#[test]
fn some_store_urls_without_the_others_are_refused_with_the_missing_ones_named() {
    for given in 0..URLS.len() {
        let line = refusal("", &URLS[given..=given]);
        for (at, (name, _)) in URLS.iter().enumerate() {
            assert_eq!(line.contains(name), at != given, "{name}: {line}");
        }
    }
    let line = refusal("[stores]\nredis_url = \"redis://localhost\"", &URLS[..2]);
    assert!(
        line.contains("KAFKA_BROKERS") && !line.contains("REDIS_URL"),
        "{line}"
    );
}

/// Starts a host that watches this configuration file. Rate limits are in force unless the file
/// changes them.
fn following(text: &str) -> Host {
    Host::setup()
        .community(Community::small())
        .config(text)
        .start()
}

fn change(host: &Host, text: &str) {
    std::fs::write(&host.config_path, text).unwrap();
}

async fn two_rankings_differ(host: &Host) -> bool {
    let (one, two) = (host.feed(7).await, host.feed(7).await);
    one["ranking_id"] != two["ranking_id"]
}

#[tokio::test]
async fn ttls_limits_and_flags_change_while_the_host_runs() {
    let off = "[limits]\nrate_limit = \"off\"\n";
    let host = following(off);
    assert!(!two_rankings_differ(&host).await);

    change(&host, &format!("{off}[ttl]\nsnapshot_s = 0\n"));
    eventually(RELOADED_WITHIN, "snapshots are not reused", async || {
        two_rankings_differ(&host).await
    })
    .await;
    assert_eq!(
        host.feed(7).await["cache_hit"],
        true,
        "candidates still are"
    );

    change(&host, &format!("{off}[flags]\nuse_ch_ranking = false\n"));
    eventually(RELOADED_WITHIN, "the flag is in force", async || {
        host.feed(7).await["algo"] == "timeline"
    })
    .await;

    change(&host, "[limits]\nviewer_requests_per_minute = 2\n");
    let token = host.viewer_token(7);
    eventually(RELOADED_WITHIN, "the limit is in force", async || {
        host.get(&token, "/api/v1/feed").await.status == 429
    })
    .await;

    // Restore the first file, including the flag.
    change(&host, off);
    eventually(
        RELOADED_WITHIN,
        "the first file is in force again",
        async || {
            let answer = host.get(&token, "/api/v1/feed").await;
            answer.status == 200 && answer.body["algo"] == "ch"
        },
    )
    .await;
}

#[tokio::test]
async fn a_bad_file_is_refused_whole_and_the_old_configuration_stays() {
    let host = following("[limits]\nrate_limit = \"off\"\n");
    let refusals = || {
        host.log()
            .matches("is invalid; keeping the old one")
            .count()
    };
    let bad = [
        "[flags]\nuse_ch_ranking = false\n[ttl]\nsnapshots_s = 1\n",
        "[flags]\nuse_ch_ranking = false\nenable_caching = 3\n",
        "[flags\nuse_ch_ranking = false\n",
        "[flags]\nuse_ch_ranking = false\n[feed]\npolicy_budget_ms = 0\n",
        "[flags]\nuse_ch_ranking = false\n[failure_budget]\nmin_viewers = 51\n",
    ];
    for (so_far, text) in bad.into_iter().enumerate() {
        change(&host, text);
        eventually(RELOADED_WITHIN, "the file is refused", async || {
            refusals() > so_far
        })
        .await;
        // The valid half of the bad file is not in force either.
        let feed = host.feed(7).await;
        assert_eq!(feed["algo"], "ch", "{text}");
    }
    assert!(host.log().contains("snapshots_s"), "the log names it");
}

#[tokio::test]
async fn keys_that_need_a_restart_are_named_and_the_others_apply_at_once() {
    let host = following("cache_mb = 64\n[limits]\nrate_limit = \"off\"\n");
    change(
        &host,
        "cache_mb = 65\n[server]\ncors_origins = [\"https://app.example\"]\n[auth]\njwt_secret = \"a secret that must not reach any log\"\n[flags]\nuse_ch_ranking = false\n[limits]\nrate_limit = \"off\"\n",
    );
    eventually(RELOADED_WITHIN, "the flag is in force", async || {
        host.feed(7).await["algo"] == "timeline"
    })
    .await;
    eventually(RELOADED_WITHIN, "the log names them", async || {
        let log = host.log();
        let warning = log
            .lines()
            .find(|line| line.contains("need a restart"))
            .unwrap_or_default();
        ["cache_mb", "server.cors_origins", "auth.jwt_secret"]
            .iter()
            .all(|key| warning.contains(key))
    })
    .await;
    let log = host.log();
    assert!(
        !log.contains("must not reach"),
        "the log gives a secret away"
    );
    let warning = log
        .lines()
        .find(|line| line.contains("need a restart"))
        .unwrap();
    assert!(!warning.contains("use_ch_ranking"), "{warning}");
}

async fn set_flag(host: &Host, name: &str, enabled: bool) {
    let operator = host.admin_token("operator");
    let path = format!("/admin/v1/flags/{name}");
    let answer = host
        .put(&operator, &path, &json!({"enabled": enabled}))
        .await
        .ok(200);
    assert_eq!(answer, json!({"name": name, "enabled": enabled}));
    assert_eq!(host.get(&operator, &path).await.ok(200), answer);
}

#[tokio::test]
async fn without_use_ch_ranking_the_timeline_is_served_and_reported() {
    let host = Host::with_community();
    assert_eq!(host.feed(7).await["algo"], "ch");
    set_flag(&host, "use_ch_ranking", false).await;
    let feed = host.feed(7).await;
    assert_eq!(
        (&feed["algo"], &feed["served_by"]),
        (&json!("timeline"), &json!("timeline"))
    );
    assert_eq!(feed["degraded"], json!([]));
    assert!(
        feed["posts"]
            .as_array()
            .unwrap()
            .iter()
            .all(|post| post["score"].is_null())
    );
    assert_eq!(post_ids(&feed).len(), 50);
    set_flag(&host, "use_ch_ranking", true).await;
    assert_eq!(host.feed(7).await["algo"], "ch");
}

#[tokio::test]
async fn without_caching_every_first_page_is_ranked_again_and_cursors_work() {
    let host = Host::with_community();
    host.feed(7).await;
    set_flag(&host, "enable_caching", false).await;
    let mut rankings: Vec<Value> = Vec::new();
    for algo in ["ch", "ch", "timeline", "timeline"] {
        let token = host.viewer_token(7);
        let path = format!("/api/v1/feed?limit=20&algo={algo}");
        let first = host.get(&token, &path).await.ok(200);
        assert_eq!(first["cache_hit"], false);
        assert!(!rankings.contains(&first["ranking_id"]));
        rankings.push(first["ranking_id"].clone());
        let next = format!("{path}&cursor={}", first["cursor"].as_str().unwrap());
        let second = host.get(&token, &next).await.ok(200);
        assert_eq!(second["ranking_id"], first["ranking_id"]);
        let (one, two) = (post_ids(&first), post_ids(&second));
        assert_eq!(two.len(), 20);
        assert!(one.iter().all(|post| !two.contains(post)));
    }
}

#[tokio::test]
async fn a_flag_set_by_an_operator_survives_a_restart_and_overrides_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let start = || {
        Host::setup()
            .data_dir(directory.path())
            .config("[flags]\nuse_ch_ranking = true\n")
            .start()
    };
    Community::small().import(directory.path(), &[]);
    let mut host = start();
    set_flag(&host, "use_ch_ranking", false).await;
    host.kill();
    let host = start();
    assert_eq!(host.feed(7).await["algo"], "timeline");
    let operator = host.admin_token("operator");
    let flag = host
        .get(&operator, "/admin/v1/flags/use_ch_ranking")
        .await
        .ok(200);
    assert_eq!(flag["enabled"], false);
    let audit = host
        .get(&operator, "/admin/v1/audit")
        .await
        .ok(200)
        .to_string();
    assert!(audit.contains("use_ch_ranking"), "{audit}");

    host.get(&operator, "/admin/v1/flags/nothing")
        .await
        .problem(404);
    host.put(
        &operator,
        "/admin/v1/flags/nothing",
        &json!({"enabled": true}),
    )
    .await
    .problem(404);
    for body in [
        json!({}),
        json!({"enabled": "yes"}),
        json!({"enabled": true, "more": 1}),
        json!(true),
    ] {
        let refused = host
            .put(&operator, "/admin/v1/flags/enable_caching", &body)
            .await;
        assert!(!refused.problem(400).is_empty(), "{body}");
    }
}
