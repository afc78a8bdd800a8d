//! Experiments: assignment of viewers to policies, its report in the feed response, and the
//! changes that each state allows.

use crate::harness::{Answer, Host, eventually, guest, manifest, post_ids, run};
use crate::recipes::{AMPLE, SOON, calm, label, patient_setup, text, with_params};
use futures::{StreamExt as _, stream};
use jsonwebtoken::{EncodingKey, Header};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::HashMap;

/// A second implementation of the published algorithm: FNV-1a over UTF-16 code units.
fn fnv1a32(text: &str) -> u32 {
    let step = |hash: u32, unit: u16| (hash ^ u32::from(unit)).wrapping_mul(16_777_619);
    text.encode_utf16().fold(2_166_136_261, step)
}

pub fn bucket(seed: &str, viewer: u64) -> f64 {
    let inner = fnv1a32(&format!("{seed}{viewer}"));
    f64::from(fnv1a32(&inner.to_string()) % 10_000) / 10_000.0
}

fn namespace_bucket(id: &str, viewer: u64) -> f64 {
    f64::from(fnv1a32(&format!("{viewer}__{id}")) % 1_000) / 1_000.0
}

/// A host with `patient@1.0.0` active, which is `baseline` with ample limits.
pub struct Lab {
    pub host: Host,
    /// Token of an experimenter.
    token: String,
    key: EncodingKey,
}

impl Lab {
    pub async fn open() -> Self {
        let lab = Self::of(patient_setup().start());
        let patient = manifest("patient", "1.0.0", "none", "") + AMPLE;
        let operator = lab.host.operator();
        operator.publish_and_activate(&patient, &[]).await;
        lab
    }

    pub fn of(host: Host) -> Self {
        let token = host.admin_token("experimenter");
        let key = std::fs::read_to_string(host.data_dir.join("jwt.key")).unwrap();
        let key = EncodingKey::from_secret(&hex::decode(key.trim()).unwrap());
        Self { host, token, key }
    }

    pub async fn put(&self, key: &str, spec: &Value) -> Answer {
        let path = format!("/admin/v1/experiments/{key}");
        self.host.put(&self.token, &path, spec).await
    }

    pub async fn show(&self, key: &str) -> Answer {
        let path = format!("/admin/v1/experiments/{key}");
        self.host.get(&self.token, &path).await
    }

    pub async fn step(&self, key: &str, step: &str) -> Answer {
        let path = format!("/admin/v1/experiments/{key}/{step}");
        let request = self.host.request(Method::POST, &path);
        self.host.send(request.bearer_auth(&self.token)).await
    }

    pub async fn run(&self, key: &str, spec: &Value) {
        let put = self.put(key, spec).await.ok(201);
        assert_eq!((&put["key"], &put["state"]), (&json!(key), &json!("draft")));
        assert_eq!(self.step(key, "start").await.ok(200)["state"], "running");
    }

    async fn cohort(&self, key: &str, rule: &Value) -> Answer {
        let path = format!("/admin/v1/cohorts/{key}");
        self.host.put(&self.token, &path, rule).await
    }

    /// Requests a feed with a token signed here, because a thousand runs of `nova token` would
    /// take longer than the test itself.
    pub async fn feed(&self, viewer: u64) -> Value {
        let exp = chrono::Utc::now().timestamp() + 600;
        let claims = json!({"iss": "nova", "aud": "nova", "sub": viewer.to_string(), "exp": exp});
        let token = jsonwebtoken::encode(&Header::default(), &claims, &self.key).unwrap();
        self.host.get(&token, "/api/v1/feed").await.ok(200)
    }

    /// Returns `experiment/variation`, or `none`.
    async fn assigned(&self, viewer: u64) -> String {
        match &self.feed(viewer).await["experiment"] {
            Value::Null => "none".to_owned(),
            of => format!("{}/{}", text(&of["key"]), text(&of["variation"])),
        }
    }

    async fn assert_assigned(&self, expected: &[(u64, &str)], why: &str) {
        for (viewer, expected) in expected {
            assert_eq!(
                self.assigned(*viewer).await,
                *expected,
                "viewer {viewer}, {why}"
            );
        }
    }
}

/// An experiment over all viewers with two variations, `control` and `fresh`, of weight 0.5
/// each.
pub fn halves(seed: &str) -> Value {
    json!({"seed": seed, "variations": [
        {"key": "control", "weight": 0.5, "policy": "patient@1.0.0"},
        {"key": "fresh", "weight": 0.5, "policy": "patient@1.0.0", "params": {"score": {"w_freshness": 0.6}}}]})
}

/// An experiment with the single variation `all`, so that every viewer in it gets the same
/// policy.
pub fn whole(changes: Value) -> Value {
    let mut spec =
        json!({"variations": [{"key": "all", "weight": 1.0, "policy": "patient@1.0.0"}]});
    for (name, value) in changes.as_object().unwrap() {
        spec[name] = value.clone();
    }
    spec
}

#[test]
fn nova_bucket_prints_the_published_vectors() {
    let vectors = [
        ("seed", "a", "2", "0.0505"),
        ("seed", "b", "2", "0.2696"),
        ("foo", "ab", "2", "0.2575"),
        ("89123klj", "8952klfjas09ujkasdf", "2", "0.1240"),
        ("", "josé", "2", "0.1315"),
        ("", "😀", "2", "0.4971"),
        ("", "a", "1", "0.2200"),
        ("abc", "def", "99", "null"),
    ];
    for (seed, unit, version, expected) in vectors {
        let said = run(&[
            "bucket",
            "--seed",
            seed,
            "--unit",
            unit,
            "--hash-version",
            version,
        ]);
        assert_eq!(String::from_utf8(said.stdout).unwrap().trim(), expected);
    }
    let said = run(&["bucket", "--seed", "seed", "--unit", "a", "--json"]);
    assert_eq!(
        serde_json::from_slice::<Value>(&said.stdout).unwrap()["bucket"],
        0.0505
    );
}

#[tokio::test]
async fn a_thousand_viewers_are_split_by_bucket_and_each_gets_the_policy_of_its_variation() {
    let lab = Lab::open().await;
    let published = |name: &str, params: &str| {
        with_params(&manifest(name, "1.0.0", "none", ""), "score", params) + AMPLE
    };
    let operator = lab.host.operator();
    let same = async |name: &str, params: &str| {
        let answer = operator.publish(&published(name, params), &[]).await;
        text(&answer["digest"])
    };
    let digests = HashMap::from([
        ("control", same("same-as-control", "{}").await),
        (
            "fresh",
            same("same-as-fresh", "{ w_freshness = 0.6 }").await,
        ),
    ]);
    lab.run("recency", &halves("recency-1")).await;
    let feeds: Vec<(u64, Value)> = stream::iter(1..=1_000)
        .map(async |viewer| (viewer, lab.feed(viewer).await))
        .buffer_unordered(8)
        .collect()
        .await;
    let mut viewers = HashMap::<&str, u64>::new();
    for (viewer, feed) in &feeds {
        let expected = if bucket("recency-1", *viewer) < 0.5 {
            "control"
        } else {
            "fresh"
        };
        *viewers.entry(expected).or_default() += 1;
        assert_eq!(
            feed["experiment"],
            json!({"key": "recency", "variation": expected}),
            "viewer {viewer}"
        );
        assert_eq!(
            (&feed["served_by"], &feed["degraded"]),
            (&json!("policy"), &json!([]))
        );
        assert_eq!(label(&feed["policy"]), "patient@1.0.0");
        assert_eq!(
            feed["policy"]["digest"], digests[expected],
            "viewer {viewer}"
        );
    }
    for viewer in (1..=1_000).step_by(100) {
        let said = run(&[
            "bucket",
            "--seed",
            "recency-1",
            "--unit",
            &viewer.to_string(),
        ]);
        let said: f64 = String::from_utf8(said.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert_eq!(said, bucket("recency-1", viewer));
    }
    // A repeated request gets the same ranking and adds no exposure.
    for viewer in 1..=20 {
        lab.feed(viewer).await;
    }
    let expected = json!(["control", "fresh"].map(|key| json!({
        "variation": key, "viewers": viewers[key], "exposures": viewers[key]})));
    eventually(SOON, "every exposure is counted", || async {
        let path = "/admin/v1/experiments/recency/results";
        lab.host.get(&lab.token, path).await.ok(200)["variations"] == expected
    })
    .await;
}

#[tokio::test]
async fn starting_pausing_and_stopping_apply_at_once_even_for_viewers_with_a_cached_ranking() {
    let lab = Lab::open().await;
    // Viewers of both halves. Each has a cached ranking of the active policy, which is also the
    // control.
    let viewers: Vec<(u64, &str)> = (1..=8)
        .map(|viewer| {
            (
                viewer,
                if bucket("s", viewer) < 0.5 {
                    "e/control"
                } else {
                    "e/fresh"
                },
            )
        })
        .collect();
    assert!(
        viewers
            .iter()
            .any(|(_, variation)| *variation != viewers[0].1)
    );
    let nobody: Vec<(u64, &str)> = viewers
        .iter()
        .map(|(viewer, _)| (*viewer, "none"))
        .collect();
    lab.assert_assigned(&nobody, "before").await;
    lab.put("e", &halves("s")).await.ok(201);
    lab.assert_assigned(&nobody, "a draft").await;
    for _ in 0..2 {
        assert_eq!(lab.step("e", "start").await.ok(200)["state"], "running");
        lab.assert_assigned(&viewers, "running").await;
        assert_eq!(lab.step("e", "pause").await.ok(200)["state"], "paused");
        lab.assert_assigned(&nobody, "paused").await;
    }
    lab.step("e", "start").await.ok(200);
    lab.assert_assigned(&viewers, "running again").await;
    assert_eq!(lab.step("e", "stop").await.ok(200)["state"], "stopped");
    lab.assert_assigned(&nobody, "stopped").await;
    for (viewer, _) in viewers {
        let feed = lab.feed(viewer).await;
        assert_eq!(
            (label(&feed["policy"]), &feed["served_by"]),
            ("patient@1.0.0".into(), &json!("policy"))
        );
    }
    lab.step("e", "start").await.problem(409);
    lab.step("e", "pause").await.problem(409);
    lab.put("e", &halves("s")).await.problem(409);
    assert_eq!(lab.step("e", "stop").await.ok(200)["state"], "stopped");
}

#[tokio::test]
async fn a_cohort_contains_the_viewers_that_match_its_rule() {
    let lab = Lab::open().await;
    // User u of the community is u days old and from DE; 999,999 is not in the users table.
    let cases = [
        (json!({"ids": [3, 4]}), vec![3, 4], vec![5, 999_999]),
        (
            json!({"attribute": "country", "in": ["AT", "DE"]}),
            vec![5],
            vec![999_999],
        ),
        (
            json!({"attribute": "country", "in": ["FR"]}),
            vec![],
            vec![5, 999_999],
        ),
        (
            json!({"attribute": "language", "in": ["en"]}),
            vec![5],
            vec![999_999],
        ),
        (
            json!({"attribute": "account_age_days", "lt": 30.0}),
            vec![10],
            vec![45, 999_999],
        ),
        (
            json!({"attribute": "account_age_days", "gte": 30.0}),
            vec![45],
            vec![10, 999_999],
        ),
        (
            json!({"attribute": "account_age_days", "gte": 20.0, "lt": 40.0}),
            vec![30],
            vec![10, 45],
        ),
        (
            json!({"and": [{"attribute": "country", "in": ["DE"]}, {"not": {"ids": [5]}}]}),
            vec![6],
            vec![5, 999_999],
        ),
        (
            json!({"or": [{"ids": [999_999]}, {"attribute": "account_age_days", "lt": 3.0}]}),
            vec![999_999, 2],
            vec![40],
        ),
        (
            json!({"not": {"attribute": "country", "in": ["DE"]}}),
            vec![999_999],
            vec![5],
        ),
        (json!({"all": true}), vec![5, 999_999], vec![]),
    ];
    for (at, (rule, inside, outside)) in cases.into_iter().enumerate() {
        let key = format!("c{at}");
        let put = lab.cohort(&key, &rule).await.ok(201);
        assert_eq!((&put["key"], &put["rule"]), (&json!(key), &rule));
        lab.run(&key, &whole(json!({"cohort": key}))).await;
        let (taken, why) = (format!("{key}/all"), rule.to_string());
        for viewer in inside {
            lab.assert_assigned(&[(viewer, &taken)], &why).await;
        }
        for viewer in outside {
            lab.assert_assigned(&[(viewer, "none")], &why).await;
        }
        lab.step(&key, "stop").await.ok(200);
    }
    // If a cohort changes, the experiments that use it follow.
    lab.cohort("c0", &json!({"ids": [9]})).await.ok(200);
    lab.run("again", &whole(json!({"cohort": "c0"}))).await;
    lab.assert_assigned(&[(9, "again/all"), (3, "none")], "changed")
        .await;
    let shown = lab
        .host
        .get(&lab.token, "/admin/v1/cohorts/c0")
        .await
        .ok(200);
    assert_eq!(shown["rule"], json!({"ids": [9]}));
    let everybody = lab
        .host
        .get(&lab.token, "/admin/v1/cohorts/all")
        .await
        .ok(200);
    assert_eq!(everybody["rule"], json!({"all": true}));
    lab.host
        .get(&lab.token, "/admin/v1/cohorts/nobody")
        .await
        .problem(404);
}

#[tokio::test]
async fn an_invalid_cohort_rule_is_refused() {
    let lab = Lab::open().await;
    for rule in [
        json!({}),
        json!({"ids": "7"}),
        json!({"ids": [7], "all": true}),
        json!({"attribute": "shoe_size", "lt": 30.0}),
        json!({"attribute": "country", "lt": 30.0}),
        json!({"attribute": "account_age_days"}),
        json!({"not": [{"all": true}]}),
        json!({"and": [[true]]}),
        json!([true]),
    ] {
        assert_eq!(
            lab.cohort("bad", &rule).await.problem(400),
            ["rule"],
            "{rule}"
        );
    }
    lab.host
        .get(&lab.token, "/admin/v1/cohorts/bad")
        .await
        .problem(404);
    lab.cohort("all", &json!({"ids": [7]})).await.problem(409);
}

#[tokio::test]
async fn coverage_takes_a_share_of_each_variation_and_raising_it_reassigns_no_viewer() {
    let lab = Lab::open().await;
    let with_coverage = |coverage: f64| {
        let mut spec = halves("grow");
        spec["coverage"] = coverage.into();
        spec
    };
    let expected = |coverage: f64, viewer: u64| {
        let n = bucket("grow", viewer);
        match n {
            _ if n < coverage * 0.5 => "e/control",
            _ if (0.5..0.5 + coverage * 0.5).contains(&n) => "e/fresh",
            _ => "none",
        }
    };
    let viewers = 1..=40;
    lab.run("e", &with_coverage(0.2)).await;
    for coverage in [0.2, 0.6, 1.0] {
        lab.put("e", &with_coverage(coverage)).await.ok(200);
        let expected: Vec<(u64, &str)> = viewers
            .clone()
            .map(|viewer| (viewer, expected(coverage, viewer)))
            .collect();
        lab.assert_assigned(&expected, &format!("coverage {coverage}"))
            .await;
    }
    // While the experiment is running or paused, nothing else may change.
    let mut heavier = with_coverage(1.0);
    heavier["variations"][0]["weight"] = 0.4.into();
    heavier["variations"][1]["weight"] = 0.6.into();
    let mut reseeded = with_coverage(1.0);
    reseeded["seed"] = "other".into();
    for _ in 0..2 {
        for spec in [&heavier, &reseeded, &with_coverage(0.9)] {
            lab.put("e", spec).await.problem(409);
        }
        assert_eq!(lab.show("e").await.ok(200)["coverage"], 1.0);
        lab.step("e", "pause").await.ok(200);
    }
}

#[tokio::test]
async fn a_viewer_is_in_one_experiment_chosen_by_override_priority_key_and_namespace() {
    let lab = Lab::open().await;
    lab.cohort("ten", &json!({"ids": (1..=10).collect::<Vec<u64>>()}))
        .await
        .ok(201);
    lab.run("b", &whole(json!({"cohort": "ten"}))).await;
    lab.run("a", &whole(json!({"cohort": "ten"}))).await;
    lab.assert_assigned(&[(1, "a/all"), (11, "none")], "equal priority goes by key")
        .await;
    lab.run("z", &whole(json!({"priority": 5, "cohort": "ten"})))
        .await;
    lab.assert_assigned(&[(1, "z/all"), (11, "none")], "the higher priority")
        .await;
    // An override beats the cohort, coverage and priority.
    let forced = json!({"priority": -5, "cohort": "ten", "coverage": 0.0, "overrides": {"1": "all", "11": "all"}});
    lab.run("f", &whole(forced)).await;
    lab.assert_assigned(
        &[(1, "f/all"), (11, "f/all"), (2, "z/all"), (12, "none")],
        "forced",
    )
    .await;
    for key in ["a", "b", "z", "f"] {
        lab.step(key, "stop").await.ok(200);
    }
    // Two experiments that split a namespace together take every viewer.
    lab.run(
        "low",
        &whole(json!({"namespace": {"id": "ns", "range": [0.0, 0.5]}})),
    )
    .await;
    lab.run(
        "high",
        &whole(json!({"namespace": {"id": "ns", "range": [0.5, 1.0]}})),
    )
    .await;
    for viewer in 1..=30 {
        let expected = if namespace_bucket("ns", viewer) < 0.5 {
            "low/all"
        } else {
            "high/all"
        };
        lab.assert_assigned(&[(viewer, expected)], "a namespace")
            .await;
    }
}

#[tokio::test]
async fn an_experiment_with_mistakes_is_refused_with_the_names_of_the_wrong_fields() {
    let lab = Lab::open().await;
    let cases = [
        ("/variations/1/weight", json!(0.4), "variations"),
        (
            "/variations/1/policy",
            json!("nobody@1.0.0"),
            "variations[1].policy",
        ),
        (
            "/variations/1/policy",
            json!("patient@9.0.0"),
            "variations[1].policy",
        ),
        ("/variations/1/key", json!("control"), "variations[1].key"),
        (
            "/variations/1/params",
            json!({"score": {"w_speed": 1.0}}),
            "variations[1].params",
        ),
        (
            "/variations/1/params",
            json!({"score": {"w_freshness": 1e300}}),
            "variations[1].params",
        ),
        ("/hash_version", json!(3), "hash_version"),
        ("/coverage", json!(1.5), "coverage"),
        ("/cohort", json!("nobody"), "cohort"),
        (
            "/namespace",
            json!({"id": "ns", "range": [0.5, 0.5]}),
            "namespace.range",
        ),
        ("/overrides", json!({"7": "stale"}), "overrides.7"),
        (
            "/overrides",
            json!({"somebody": "fresh"}),
            "overrides.somebody",
        ),
        ("/variations", json!([]), "variations"),
        ("/colour", json!("red"), "colour"),
        (
            "/variations/1/policy",
            json!("patient"),
            "variations[1].policy",
        ),
    ];
    for (pointer, value, field) in cases {
        let mut spec = halves("s");
        match spec.pointer_mut(pointer) {
            Some(place) => *place = value.clone(),
            None => spec[&pointer[1..]] = value.clone(),
        }
        let fields = lab.put("bad", &spec).await.problem(400);
        assert!(
            fields.iter().any(|named| named == field),
            "{pointer} {value}: {fields:?}"
        );
        lab.show("bad").await.problem(404);
    }
    let mut several = halves("s");
    several["hash_version"] = 3.into();
    several["cohort"] = "nobody".into();
    several["variations"][0]["policy"] = "nobody@1.0.0".into();
    let fields = lab.put("bad", &several).await.problem(400);
    assert_eq!(fields, ["hash_version", "cohort", "variations[0].policy"]);
    assert_eq!(
        lab.put("no%20spaces", &halves("s")).await.problem(400),
        ["key"]
    );
    for step in ["start", "pause", "stop"] {
        lab.step("unknown", step).await.problem(404);
    }
    lab.show("unknown").await.problem(404);
    lab.show("unknown/results").await.problem(404);
}

#[tokio::test]
async fn viewers_of_a_failing_variation_get_the_active_policy_and_still_count_for_the_variation() {
    let lab = Lab::open().await;
    let operator = lab.host.operator();
    operator
        .publish_and_activate(&calm("calm", "1.0.0"), &[])
        .await;
    let broken = manifest("broken", "1.0.0", "score", "trap.wasm") + AMPLE;
    operator
        .publish(&broken, &[("trap.wasm", guest("trap.wasm"))])
        .await;
    let expected = post_ids(&lab.feed(7).await);
    let mut spec = whole(json!({}));
    spec["variations"][0]["policy"] = "broken@1.0.0".into();
    lab.run("e", &spec).await;
    for _ in 0..2 {
        let feed = lab.feed(7).await;
        assert_eq!(feed["experiment"], json!({"key": "e", "variation": "all"}));
        assert_eq!(
            (&feed["served_by"], &feed["degraded"]),
            (&json!("last_good"), &json!(["policy"]))
        );
        assert_eq!(
            (label(&feed["policy"]), post_ids(&feed)),
            ("calm@1.0.0".into(), expected.clone())
        );
    }
    lab.step("e", "stop").await.ok(200);
    let feed = lab.feed(7).await;
    assert_eq!(
        (&feed["served_by"], &feed["experiment"]),
        (&json!("policy"), &Value::Null)
    );
    assert_eq!(post_ids(&feed), expected);
}

#[tokio::test]
async fn experiments_and_cohorts_survive_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let start = || Lab::of(patient_setup().data_dir(directory.path()).start());
    let mut lab = start();
    let patient = manifest("patient", "1.0.0", "none", "") + AMPLE;
    lab.host
        .operator()
        .publish_and_activate(&patient, &[])
        .await;
    lab.cohort("few", &json!({"ids": [7]})).await.ok(201);
    lab.run("running", &whole(json!({"cohort": "few"}))).await;
    lab.put("draft", &halves("s")).await.ok(201);
    let before = (
        lab.show("running").await.ok(200),
        lab.show("draft").await.ok(200),
    );
    lab.host.kill();

    let lab = start();
    assert_eq!(
        (
            lab.show("running").await.ok(200),
            lab.show("draft").await.ok(200)
        ),
        before
    );
    lab.assert_assigned(&[(7, "running/all"), (8, "none")], "after a kill")
        .await;
}
