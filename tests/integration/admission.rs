//! Uploads that a host refuses to publish. A refusal lists every reason at once and changes
//! nothing.

use crate::harness::{Answer, Host, guest, manifest, shipped_module};
use crate::recipes::{Operator, calm, text, with_params};
use reqwest::Method;

/// Uploads a policy that must be refused, asserts that nothing changed, and returns the reasons.
async fn refused(
    host: &Host,
    operator: &Operator<'_>,
    manifest: &str,
    modules: &[(&str, Vec<u8>)],
) -> Vec<String> {
    let before = (operator.published().await, operator.active().await);
    let answer = host.upload(&operator.token, manifest, modules).await;
    let after = (operator.published().await, operator.active().await);
    assert_eq!(before, after, "a refused upload changed something");
    reasons(answer)
}

fn reasons(answer: Answer) -> Vec<String> {
    assert_eq!(answer.status, 422, "{}", answer.body);
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    let errors = answer.body["errors"].as_array().unwrap();
    errors.iter().map(|error| text(&error["message"])).collect()
}

#[track_caller]
fn assert_says(reasons: &[String], expected: &[&[&str]]) {
    assert_eq!(reasons.len(), expected.len(), "{reasons:#?}");
    for words in expected {
        assert!(
            reasons
                .iter()
                .any(|reason| words.iter().all(|word| reason.contains(word))),
            "nothing in {reasons:#?} says {words:?}"
        );
    }
}

#[tokio::test]
async fn bytes_that_are_not_a_component_of_the_right_world_are_refused_with_the_reason() {
    let host = Host::setup().start();
    let operator = host.operator();
    let scorer = shipped_module("weighted_scorer.wasm");
    let cases: [(&str, Vec<u8>, &[&str]); 8] = [
        (
            "not WebAssembly",
            b"hello, ranking".to_vec(),
            &["not WebAssembly"],
        ),
        ("empty", Vec::new(), &["not WebAssembly"]),
        (
            "a core module's header",
            b"\0asm\x01\0\0\0".to_vec(),
            &["core module", "nova policy build"],
        ),
        (
            "a core module with a body",
            [b"\0asm\x01\0\0\0", &[0, 5, 4, b'n', b'o', b't', b'e'][..]].concat(),
            &["core module"],
        ),
        (
            "cut in half",
            scorer[..scorer.len() / 2].to_vec(),
            &["not a valid component"],
        ),
        ("cut in the header", scorer[..8].to_vec(), &["wrong world"]),
        (
            "an import",
            guest("imports_clock.wasm"),
            &["nova:host/clock", "imports nothing"],
        ),
        (
            "describe panics",
            guest("panic_in_describe.wasm"),
            &["describe"],
        ),
    ];
    for (case, bytes, words) in cases {
        let reasons = refused(
            &host,
            &operator,
            &manifest("bad", "1.0.0", "score", "x.wasm"),
            &[("x.wasm", bytes)],
        )
        .await;
        assert!(
            reasons[0].starts_with("score.module"),
            "{case}: {reasons:?}"
        );
        assert_says(&reasons, &[words]);
    }
    let as_dedup = manifest("bad", "1.0.0", "dedup", "x.wasm");
    let reasons = refused(&host, &operator, &as_dedup, &[("x.wasm", scorer)]).await;
    assert_says(&reasons, &[&["dedup", "score module"]]);
}

#[tokio::test]
async fn a_manifest_with_a_mistake_is_refused_with_the_name_of_the_wrong_key() {
    let host = Host::setup().start();
    let operator = host.operator();
    let shipped = |edit: fn(String) -> String| edit(manifest("bad", "1.0.0", "none", ""));
    let unknown_digest = format!("sha256:{}", "ab".repeat(32));
    let cases: [(String, &[&str]); 14] = [
        (
            with_params(&shipped(|m| m), "score", "{ w_freshnes = 0.3 }"),
            &[
                "score.params.w_freshnes",
                "unknown parameter",
                "w_freshness",
            ],
        ),
        (
            with_params(&shipped(|m| m), "score", "{ w_freshness = 1e300 }"),
            &["score.params.w_freshness"],
        ),
        (
            with_params(&shipped(|m| m), "score", "{ w_freshness = nan }"),
            &["score.params.w_freshness"],
        ),
        (
            with_params(&shipped(|m| m), "score", "{ w_freshness = \"high\" }"),
            &["w_freshness"],
        ),
        (
            manifest("bad", "1.0.0", "score", "absent.wasm"),
            &["score.module", "absent.wasm"],
        ),
        (
            manifest("bad", "1.0.0", "score", "builtin:no-such-thing"),
            &["score.module", "no-such-thing", "weighted-scorer"],
        ),
        (
            manifest("bad", "1.0.0", "score", &unknown_digest),
            &["score.module", "abababab"],
        ),
        (
            manifest("bad", "1.0.0", "score", "../../etc/passwd.wasm"),
            &["../../etc/passwd.wasm"],
        ),
        (shipped(|m| format!("colour = \"red\"\n{m}")), &["colour"]),
        (shipped(|m| format!("follow = true\n{m}")), &["follow"]),
        (
            shipped(|m| m + "[limits]\ndeadline_ms = 0\n"),
            &["limits.deadline_ms"],
        ),
        (
            shipped(|m| m + "[limits]\nmemory_mb = 100000\n"),
            &["limits.memory_mb"],
        ),
        (shipped(|m| m.replace("1.0.0", "one")), &["version"]),
        (
            shipped(|m| m.replace("\"bad\"", "\"Bad Name\"")),
            &["Bad Name"],
        ),
    ];
    for (text, words) in cases {
        let reasons = refused(&host, &operator, &text, &[]).await;
        assert_says(&reasons, &[words]);
    }
    // Values up to and including the documented bounds are accepted.
    for (at, weight) in ["0", "0.0", "1.0"].into_iter().enumerate() {
        let edge = manifest("edge", &format!("1.{at}.0"), "none", "");
        operator
            .publish(
                &with_params(&edge, "score", &format!("{{ w_freshness = {weight} }}")),
                &[],
            )
            .await;
    }
}

#[tokio::test]
async fn several_mistakes_are_all_reported_at_once() {
    let host = Host::setup().start();
    let operator = host.operator();
    let text = "name = \"bad\"\nversion = \"1.0.0\"\n\
        [dedup]\nmodule = \"absent.wasm\"\n\
        [score]\nmodule = \"builtin:weighted-scorer\"\nparams = { w_freshness = 1e300, w_speed = 1.0 }\n\
        [saturation]\nmodule = \"x.wasm\"\n\
        [limits]\ndeadline_ms = 0\nmemory_mb = 0\n";
    let reasons = refused(
        &host,
        &operator,
        text,
        &[("x.wasm", shipped_module("seen_dedup.wasm"))],
    )
    .await;
    assert_says(
        &reasons,
        &[
            &["dedup.module", "absent.wasm"],
            &["score.params.w_freshness"],
            &["score.params.w_speed"],
            &["saturation", "dedup module"],
            &["limits.deadline_ms"],
            &["limits.memory_mb"],
        ],
    );
}

#[tokio::test]
async fn a_module_that_fails_its_trial_run_is_refused_with_a_code_and_its_stage() {
    let host = Host::setup().start();
    let operator = host.operator();
    let file = "misbehaves_as_told.wasm";
    let manifest = manifest("rude", "1.0.0", "score", file);
    for (how, code) in [
        (1, "trap"),
        (5, "contract_nonfinite"),
        (6, "not_repeatable"),
    ] {
        let told = with_params(&manifest, "score", &format!("{{ how = {how} }}"));
        let answer = host
            .upload(&operator.token, &told, &[(file, guest(file))])
            .await;
        let errors = answer.ok(422)["errors"].clone();
        let found = errors
            .as_array()
            .unwrap()
            .iter()
            .find(|error| error["code"] == code)
            .unwrap_or_else(|| panic!("{how}: {errors}"));
        assert_eq!(found["stage"], "score");
    }
    assert!(
        !operator
            .published()
            .await
            .contains(&"rude@1.0.0".to_owned())
    );
}

#[tokio::test]
async fn a_published_version_never_changes_and_publishing_it_again_is_a_no_op() {
    let host = Host::setup().start();
    let operator = host.operator();
    let first = operator.publish(&calm("mine", "1.0.0"), &[]).await;
    assert_eq!(first["state"], "published");
    let again = operator.publish(&calm("mine", "1.0.0"), &[]).await;
    assert_eq!(again, first);

    let other = calm("mine", "1.0.0").replace("decay_per_hour = 0.0", "decay_per_hour = 0.5");
    let reasons = refused(&host, &operator, &other, &[]).await;
    assert_says(&reasons, &[&["mine@1.0.0", "never changes"]]);
    let other = manifest("baseline", "1.0.0", "score", "x.wasm");
    let upside_down = guest("upside_down.wasm");
    let reasons = refused(&host, &operator, &other, &[("x.wasm", upside_down)]).await;
    assert_says(&reasons, &[&["baseline@1.0.0", "never changes"]]);
}

#[tokio::test]
async fn a_digest_depends_on_behaviour_and_not_on_the_names_of_policy_and_module() {
    let host = Host::setup().start();
    let operator = host.operator();
    let bytes = shipped_module("weighted_scorer.wasm");
    let digest_of = |answer: serde_json::Value| text(&answer["digest"]);
    let list = operator.get("/admin/v1/policies").await;
    let baseline = list["policies"]
        .as_array()
        .unwrap()
        .iter()
        .find(|policy| policy["name"] == "baseline")
        .unwrap();
    let expected = text(&baseline["digest"]);
    let module = text(&baseline["stages"]["score"]["module"]);

    let by_file = manifest("by-file", "1.0.0", "score", "weighted.wasm");
    let by_file = operator
        .publish(&by_file, &[("weighted.wasm", bytes)])
        .await;
    assert_eq!(digest_of(by_file), expected);
    let by_digest = manifest("by-digest", "2.3.4", "score", &format!("sha256:{module}"));
    assert_eq!(digest_of(operator.publish(&by_digest, &[]).await), expected);
    // Writing out a parameter's default value does not change the digest.
    let explicit = with_params(
        &manifest("explicit", "1.0.0", "none", ""),
        "score",
        "{ w_freshness = 0.3 }",
    );
    assert_eq!(digest_of(operator.publish(&explicit, &[]).await), expected);
    let changed = with_params(
        &manifest("changed", "1.0.0", "none", ""),
        "score",
        "{ w_freshness = 0.35 }",
    );
    assert_ne!(digest_of(operator.publish(&changed, &[]).await), expected);
}

#[tokio::test]
async fn a_malformed_upload_is_a_bad_request() {
    let host = Host::setup().start();
    let operator = host.operator();
    let post = |content_type: &str, body: &'static str| {
        host.send(
            host.request(Method::POST, "/admin/v1/policies")
                .bearer_auth(&operator.token)
                .header("content-type", content_type)
                .body(body),
        )
    };
    let form = "multipart/form-data; boundary=x";
    for (content_type, body) in [
        ("application/json", "{}"),
        ("multipart/form-data", "--x--"),
        (form, ""),
        (form, "no boundary at all"),
        (
            form,
            "--x\r\nContent-Disposition: form-data; name=\"manifest\"\r\n\r\ncut off",
        ),
    ] {
        let fields = post(content_type, body).await.problem(400);
        assert!(!fields.is_empty(), "{content_type}, {body}");
    }
    let no_manifest = "--x\r\nContent-Disposition: form-data; name=\"a\"; filename=\"a.wasm\"\r\n\r\nbytes\r\n--x--\r\n";
    assert_eq!(post(form, no_manifest).await.problem(400), ["manifest"]);
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused_without_being_held_in_memory() {
    const BODY_BYTES: usize = 100_000_000;
    let host = Host::setup().start();
    let operator = host.operator();
    host.feed(1).await;
    let before = host.peak_memory_bytes();
    let chunk = bytes::Bytes::from(vec![0_u8; 1_000_000]);
    let chunks = (0..BODY_BYTES / chunk.len()).map(move |_| Ok::<_, std::io::Error>(chunk.clone()));
    let answer = host
        .request(Method::POST, "/admin/v1/policies")
        .bearer_auth(&operator.token)
        .header("content-type", "multipart/form-data; boundary=x")
        .body(reqwest::Body::wrap_stream(futures::stream::iter(chunks)))
        .send()
        .await;
    // After reading as much as the limit allows, the host responds and closes the connection.
    // The network decides if the client still sees that response while it is sending.
    if let Ok(answer) = answer {
        assert_eq!(answer.status(), 413);
    }
    let grown = host.peak_memory_bytes() - before;
    assert!(grown < BODY_BYTES, "memory grew by {grown} bytes");
    assert_eq!(host.feed(2).await["served_by"], "policy");
}
