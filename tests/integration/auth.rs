//! Access control: tokens that are refused, and the routes that each role of the admin audience
//! may use.

use crate::harness::{Community, Host, Http2, nova, refusal_to_serve};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::Method;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const ALL: &[&str] = &["operator", "scientist", "experimenter"];

fn signing_key(host: &Host) -> Vec<u8> {
    let text = std::fs::read_to_string(host.data_dir.join("jwt.key")).unwrap();
    hex::decode(text.trim()).unwrap()
}

fn sign(algorithm: Algorithm, key: &[u8], claims: &Value) -> String {
    let key = EncodingKey::from_secret(key);
    jsonwebtoken::encode(&Header::new(algorithm), claims, &key).unwrap()
}

fn in_seconds(seconds: i64) -> i64 {
    chrono::Utc::now().timestamp() + seconds
}

/// Claims of a valid viewer token with one claim set or, if the value is null, removed.
fn claims_with(name: &str, value: Value) -> Value {
    let mut claims = json!({"iss": "nova", "aud": "nova", "sub": "7", "exp": in_seconds(600)});
    claims[name] = value;
    claims
        .as_object_mut()
        .unwrap()
        .retain(|_, value| !value.is_null());
    claims
}

async fn assert_unauthorized(host: &Host, path: &str, authorization: Option<&str>, why: &str) {
    let mut request = host.request(Method::GET, path);
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    let answer = host.send(request).await;
    assert_eq!(answer.status, 401, "{why}: {}", answer.body);
    assert_eq!(answer.headers["www-authenticate"], "Bearer", "{why}");
    assert!(answer.problem(401).is_empty(), "{why}");
}

#[tokio::test]
async fn only_a_valid_token_of_this_hosts_key_issuer_and_audience_is_accepted() {
    let host = Host::with_community();
    let key = {
        let _creates_the_key = host.viewer_token(7);
        signing_key(&host)
    };
    let hs256 = |claims: &Value| sign(Algorithm::HS256, &key, claims);

    // Tokens signed by this test are accepted as long as their claims are valid.
    for good in [
        claims_with("sub", json!("7")),
        claims_with("exp", json!(in_seconds(-3))), // within the leeway for clock differences
        claims_with("sub", json!("9007199254740991")),
    ] {
        host.get(&hs256(&good), "/api/v1/feed").await.ok(200);
    }

    let bad_claims = [
        ("expired beyond the leeway", "exp", json!(in_seconds(-20))),
        ("no exp", "exp", Value::Null),
        ("no iss", "iss", Value::Null),
        ("no sub", "sub", Value::Null),
        ("no aud", "aud", Value::Null),
        ("another issuer", "iss", json!("somebody")),
        ("the admin audience", "aud", json!("nova-admin")),
        ("an unknown audience", "aud", json!("other")),
        ("not valid yet", "nbf", json!(in_seconds(120))),
        ("sub is a name", "sub", json!("alice")),
        ("sub is empty", "sub", json!("")),
        ("sub is 0", "sub", json!("0")),
        ("sub is negative", "sub", json!("-7")),
        ("sub is beyond 2^53 - 1", "sub", json!("9007199254740992")),
    ];
    for (why, name, value) in bad_claims {
        let bearer = format!("Bearer {}", hs256(&claims_with(name, value)));
        assert_unauthorized(&host, "/api/v1/feed", Some(&bearer), why).await;
    }

    let good = claims_with("sub", json!("7"));
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let unsigned = encode(&json!({"alg": "none", "typ": "JWT"})) + "." + &encode(&good) + ".";
    let token = hs256(&good);
    let mut parts: Vec<&str> = token.split('.').collect();
    let other_viewer = encode(&claims_with("sub", json!("8")));
    parts[1] = &other_viewer;
    let swapped = parts.join(".");
    let bad_tokens = [
        ("alg none", unsigned),
        (
            "another key",
            sign(
                Algorithm::HS256,
                b"a key that nobody here knows about",
                &good,
            ),
        ),
        ("an empty key", sign(Algorithm::HS256, b"", &good)),
        (
            "another algorithm with the right key",
            sign(Algorithm::HS512, &key, &good),
        ),
        ("claims swapped under a good signature", swapped),
        ("no signature", token.rsplit_once('.').unwrap().0.to_owned()),
        ("not a token", "abc".to_owned()),
        ("nothing", String::new()),
    ];
    for (why, token) in bad_tokens {
        let bearer = format!("Bearer {token}");
        assert_unauthorized(&host, "/api/v1/feed", Some(&bearer), why).await;
    }
    assert_unauthorized(&host, "/api/v1/feed", None, "no header").await;
    let basic = format!("Basic {token}");
    assert_unauthorized(&host, "/api/v1/feed", Some(&basic), "another scheme").await;
}

#[tokio::test]
async fn a_token_is_accepted_only_by_the_routes_of_its_audience() {
    let host = Host::with_community();
    let (viewer, operator) = (host.viewer_token(7), host.admin_token("operator"));
    let mut claims = claims_with("roles", json!(["operator"]));
    let viewer_with_role = sign(Algorithm::HS256, &signing_key(&host), &claims);
    claims["aud"] = json!("nova-admin");
    claims["exp"] = json!(in_seconds(-20));
    let expired_operator = sign(Algorithm::HS256, &signing_key(&host), &claims);

    let clients = ["/api/v1/feed", "/api/v1/discover/suggested-users"];
    let admins = [
        "/admin/v1/policies",
        "/debug/system/state",
        "/debug/post/1/metrics",
        "/api/v1/feed/metrics",
    ];
    for path in clients {
        host.get(&viewer, path).await.ok(200);
        let bearer = format!("Bearer {operator}");
        assert_unauthorized(&host, path, Some(&bearer), "admin token for viewers").await;
    }
    for path in admins {
        host.get(&operator, path).await.ok(200);
        assert_unauthorized(&host, path, None, "no token").await;
        let cases = [
            (&viewer, "viewer token for admins"),
            (&viewer_with_role, "a role in a viewer's token"),
            (&expired_operator, "expired operator"),
        ];
        for (token, why) in cases {
            assert_unauthorized(&host, path, Some(&format!("Bearer {token}")), why).await;
        }
    }
    let events = host
        .request(Method::POST, "/api/v1/events")
        .json(&json!({"events": []}));
    host.send(events).await.problem(401);
    host.post(&operator, "/api/v1/events", &json!({"events": []}))
        .await
        .problem(401);
}

/// The permission table of docs/semantics.md, "Roles": each route with the roles that may use
/// it.
fn permissions() -> Vec<(Method, &'static str, &'static [&'static str])> {
    let (get, put, post) = (Method::GET, Method::PUT, Method::POST);
    let publishers: &[&str] = &["operator", "scientist"];
    let experimenters: &[&str] = &["operator", "experimenter"];
    let operators: &[&str] = &["operator"];
    vec![
        (get.clone(), "/admin/v1/policies", ALL),
        (get.clone(), "/admin/v1/audit", ALL),
        (get.clone(), "/admin/v1/cohorts/all", ALL),
        (get.clone(), "/admin/v1/experiments/none", ALL),
        (get.clone(), "/admin/v1/experiments/none/results", ALL),
        (get.clone(), "/debug/user/7/feed/explain", ALL),
        (get.clone(), "/api/v1/feed/metrics", ALL),
        (get.clone(), "/debug/post/1/metrics", ALL),
        (post.clone(), "/admin/v1/policies", publishers),
        (
            post.clone(),
            "/admin/v1/policies/baseline/1.0.0/activate",
            operators,
        ),
        (post.clone(), "/admin/v1/rollback", operators),
        (put.clone(), "/admin/v1/flags/enable_caching", operators),
        (get.clone(), "/debug/system/state", operators),
        (get, "/debug/user/7/feed/cache", operators),
        (put.clone(), "/admin/v1/cohorts/mine", experimenters),
        (put, "/admin/v1/experiments/mine", experimenters),
        (
            post.clone(),
            "/admin/v1/experiments/none/start",
            experimenters,
        ),
        (
            post.clone(),
            "/admin/v1/experiments/none/pause",
            experimenters,
        ),
        (post, "/admin/v1/experiments/none/stop", experimenters),
    ]
}

#[tokio::test]
async fn each_role_has_exactly_the_permissions_of_the_role_table() {
    let host = Host::with_community();
    let mut wizard = claims_with("roles", json!(["wizard", 5]));
    wizard["aud"] = json!("nova-admin");
    let _creates_the_key = host.viewer_token(1);
    let no_role = host.token(&["--user", "1", "--audience", "admin"]);
    let tokens = [
        ("operator", host.admin_token("operator")),
        ("scientist", host.admin_token("scientist")),
        ("experimenter", host.admin_token("experimenter")),
        ("no role", no_role),
        (
            "an unknown role",
            sign(Algorithm::HS256, &signing_key(&host), &wizard),
        ),
    ];
    for (method, path, may) in permissions() {
        for (role, token) in &tokens {
            // The body is invalid for every route, so an authorized request gets a 400, 404 or
            // 422.
            let mut request = host.request(method.clone(), path).bearer_auth(token);
            if method != Method::GET {
                request = request.json(&json!({"nonsense": true}));
            }
            let answer = host.send(request).await;
            if may.contains(role) {
                assert!(
                    ![401, 403].contains(&answer.status) && answer.status < 500,
                    "{role}: {method} {path}: {}",
                    answer.body
                );
            } else {
                assert_eq!(
                    answer.status, 403,
                    "{role}: {method} {path}: {}",
                    answer.body
                );
                answer.problem(403);
            }
        }
    }
    // A token with two roles has the permissions of both.
    let both = host.token(&[
        "--user",
        "1",
        "--audience",
        "admin",
        "--role",
        "scientist",
        "--role",
        "experimenter",
    ]);
    host.put(&both, "/admin/v1/cohorts/mine", &json!({"all": true}))
        .await
        .ok(201);
    let upload = host.post(&both, "/admin/v1/policies", &json!({})).await;
    assert_eq!(upload.status, 400, "{}", upload.body);
    host.post(&both, "/admin/v1/rollback", &json!({"reason": "no"}))
        .await
        .problem(403);
}

#[tokio::test]
async fn open_routes_need_no_token_and_health_routes_are_never_rate_limited() {
    let host = Host::setup()
        .community(Community::small())
        .variable("NOVA_ADDRESS_REQUESTS_PER_MINUTE", "1")
        .start();
    let trending = "/api/v1/feed/trending";
    host.send(host.request(Method::GET, trending)).await.ok(200);
    host.send(host.request(Method::GET, trending))
        .await
        .problem(429);
    for path in ["/openapi.json", "/docs/"] {
        host.send(host.request(Method::GET, path)).await.ok(200);
    }
    for path in ["/health", "/livez", "/readyz", "/metrics"] {
        for _ in 0..10 {
            host.send(host.request(Method::GET, path)).await.ok(200);
        }
    }
    let health = host.send(host.request(Method::GET, "/health")).await.body;
    assert_eq!(health["status"], "up", "{health}");
    let components = health["components"].as_object().unwrap();
    assert!(!components.is_empty());
    assert!(
        components
            .values()
            .all(|component| component["state"] == "up")
    );
}

/// Runs a command that needs the signing key of this directory, and returns its refusal.
fn refusal_of_token(data_dir: &Path) -> String {
    let output = nova()
        .args(["token", "--user", "1", "--data-dir"])
        .arg(data_dir)
        .output()
        .unwrap();
    assert!(!output.status.success() && output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn no_host_and_no_command_uses_a_key_file_that_it_cannot_trust() {
    const GOOD: &str = "a83bbac143de39c0900ae9d820ac7a7cc2f4eafff1fa8c52fab800f21f52d894\n";
    let zeros = "00".repeat(32);
    let cases = [
        ("jwt.key", "", 0o600, "is empty"),
        ("jwt.key", "\n", 0o600, "is empty"),
        ("jwt.key", &zeros, 0o600, "different bytes"),
        ("jwt.key", &GOOD[..32], 0o600, "has 16 bytes"),
        ("jwt.key", "not a key", 0o600, "is damaged"),
        ("jwt.key", GOOD, 0o644, "run: chmod 600"),
        ("jwt.key", GOOD, 0o640, "run: chmod 600"),
        ("compiled.key", "", 0o600, "is empty"),
        ("compiled.key", GOOD, 0o604, "run: chmod 600"),
    ];
    for (file, content, mode, reason) in cases {
        let data_dir = tempfile::tempdir().unwrap();
        let path = data_dir.path().join(file);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let mut refusals = vec![refusal_to_serve(
            &["--data-dir", data_dir.path().to_str().unwrap()],
            &[],
        )];
        if file == "jwt.key" {
            refusals.push(refusal_of_token(data_dir.path()));
        }
        for refusal in refusals {
            assert!(
                refusal.contains(path.to_str().unwrap()) && refusal.contains(reason),
                "{file} {mode:o} {content:?}: {refusal}"
            );
            assert!(!refusal.contains(GOOD.trim()), "{refusal}");
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
    }
}

#[test]
fn an_empty_variable_does_not_switch_a_protection_off() {
    for name in ["NOVA_JWT_SECRET", "NOVA_POLICY_TRUSTED_KEYS"] {
        let data_dir = tempfile::tempdir().unwrap();
        let arguments = ["--data-dir", data_dir.path().to_str().unwrap()];
        let refusal = refusal_to_serve(&arguments, &[(name, "")]);
        assert!(refusal.contains(name), "{refusal}");
    }
}

/// Signs claims with this host's key and a header with one parameter more.
fn sign_with_header(host: &Host, name: &str, value: &Value, claims: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let mut header = json!({"alg": "HS256", "typ": "JWT"});
    header[name] = value.clone();
    let signed = format!("{}.{}", encode(&header), encode(claims));
    let key = EncodingKey::from_secret(&signing_key(host));
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{signed}.{signature}")
}

#[tokio::test]
async fn tokens_in_the_forms_of_identity_providers_are_accepted() {
    let host = Host::with_community();
    let _creates_the_key = host.viewer_token(7);
    let key = signing_key(&host);
    let hs256 = |claims: &Value| sign(Algorithm::HS256, &key, claims);
    let mut many_claims = claims_with("sub", json!(7));
    many_claims["aud"] = json!(["account", "nova"]);
    many_claims["exp"] = json!(in_seconds(600) as f64 + 0.5);
    for (name, value) in [("groups", json!(["a", "b"])), ("roles", json!("reader"))] {
        many_claims[name] = value;
    }
    let with_key_id = sign_with_header(&host, "kid", &json!("1"), &claims_with("sub", json!(7)));
    for token in [
        hs256(&claims_with("sub", json!(7))),
        hs256(&many_claims),
        with_key_id,
    ] {
        host.get(&token, "/api/v1/feed").await.ok(200);
    }
    let admin = |roles: Value, sub: Value| {
        let mut claims = claims_with("roles", roles);
        claims["aud"] = json!("nova-admin");
        claims["sub"] = sub;
        hs256(&claims)
    };
    for (roles, status) in [
        (json!("operator"), 200),
        (json!(["operator"]), 200),
        (json!("experimenter"), 403),
        (json!(null), 403),
        (json!([]), 403),
    ] {
        let token = admin(roles.clone(), json!("ada@example.org"));
        let answer = host.get(&token, "/debug/system/state").await;
        assert_eq!(answer.status, status, "{roles}: {}", answer.body);
    }
    // A number is written into the audit log as its digits.
    let operator = admin(json!("operator"), json!(u64::MAX));
    let flag = "/admin/v1/flags/enable_caching";
    host.put(&operator, flag, &json!({"enabled": true}))
        .await
        .ok(200);
    let audit = host.get(&operator, "/admin/v1/audit?limit=1").await.ok(200);
    assert_eq!(audit["entries"][0]["actor"], u64::MAX.to_string());
}

#[tokio::test]
async fn a_refusal_names_the_claim_and_repeats_no_part_of_the_token() {
    let host = Host::with_community();
    let _creates_the_key = host.viewer_token(7);
    let key = signing_key(&host);
    let cases = [
        ("exp", json!(in_seconds(-20)), "exp"),
        ("exp", json!("tomorrow"), "exp"),
        ("exp", Value::Null, "exp"),
        ("iss", json!("somebody"), "iss"),
        ("iss", json!(5), "iss"),
        ("aud", json!("nova-admin"), "aud"),
        ("aud", json!({"x": 1}), "aud"),
        ("nbf", json!(in_seconds(120)), "nbf"),
        ("nbf", json!("soon"), "nbf"),
        ("sub", Value::Null, "sub"),
        ("sub", json!("a-name-that-is-private"), "sub"),
        ("sub", json!(7.5), "sub"),
        ("sub", json!([7]), "sub"),
    ];
    for (name, value, claim) in cases {
        let token = sign(Algorithm::HS256, &key, &claims_with(name, value.clone()));
        let answer = host.get(&token, "/api/v1/feed").await;
        let detail = answer.body["detail"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert!(
            detail.contains(&format!("`{claim}`")),
            "{name} {value}: {}",
            answer.body
        );
        assert!(
            !answer.body.to_string().contains("private"),
            "{}",
            answer.body
        );
        answer.problem(401);
    }
    let admin = |name: &str, value: Value| {
        let mut claims = claims_with(name, value);
        claims["aud"] = json!("nova-admin");
        claims
    };
    for (name, value) in [
        ("roles", json!(5)),
        ("roles", json!({"operator": true})),
        ("sub", json!("a\u{0}b")),
        ("sub", json!("x".repeat(300))),
        ("sub", json!("")),
    ] {
        let token = sign(Algorithm::HS256, &key, &admin(name, value));
        let answer = host.get(&token, "/admin/v1/policies").await;
        let detail = answer.body["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(&format!("`{name}`")), "{}", answer.body);
        answer.problem(401);
    }
    // RFC 7515, section 4.1.11.
    for crit in [json!(["b64"]), json!(["x"]), json!([]), json!("exp")] {
        let token = sign_with_header(&host, "crit", &crit, &claims_with("sub", json!("7")));
        let answer = host.get(&token, "/api/v1/feed").await;
        assert_eq!(answer.status, 401, "{crit}: {}", answer.body);
    }
}

#[tokio::test]
async fn tokens_of_16_kib_are_read_over_both_versions_of_http() {
    let host = Host::with_community();
    let _creates_the_key = host.viewer_token(7);
    let token_of = |bytes: usize| {
        let mut filler = bytes;
        loop {
            let mut claims = claims_with("sub", json!("7"));
            claims["groups"] = json!("x".repeat(filler));
            let token = sign(Algorithm::HS256, &signing_key(&host), &claims);
            if token.len() <= bytes {
                return token;
            }
            filler -= 1;
        }
    };
    let largest = token_of(16 * 1_024);
    assert!(largest.len() > 16_000);
    host.get(&largest, "/api/v1/feed").await.ok(200);
    let mut http2 = Http2::connect(host.address()).await;
    assert_eq!(http2.get("/api/v1/feed", &largest).await, 200);

    let too_long = format!("{largest}{}", "x".repeat(600));
    let answer = host.get(&too_long, "/api/v1/feed").await;
    let detail = answer.body["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("too long"), "{}", answer.body);
    answer.problem(401);
    assert_eq!(http2.get("/api/v1/feed", &too_long).await, 401);
}
