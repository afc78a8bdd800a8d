//! HTTP requests that are invalid, too many or too slow, and the headers that every response
//! carries.

use crate::harness::{Answer, Community, Host, Http2, event, post_ids, refusal_to_serve};
use reqwest::Method;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Limit for reads, far beyond any timeout configured here. A client that is never disconnected
/// fails the test; a slow machine does not.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_query_parameter_out_of_range_is_refused_with_its_name() {
    let host = Host::with_community();
    let token = host.viewer_token(7);
    let refused = [
        ("/api/v1/feed?limit=0", "limit"),
        ("/api/v1/feed?limit=101", "limit"),
        ("/api/v1/feed?limit=-1", "limit"),
        ("/api/v1/feed?limit=many", "limit"),
        ("/api/v1/feed?limit=", "limit"),
        ("/api/v1/feed?limit=1.5", "limit"),
        ("/api/v1/feed?limit=18446744073709551617", "limit"),
        ("/api/v1/feed?algo=best", "algo"),
        ("/api/v1/feed?algo=", "algo"),
        ("/api/v1/feed/trending?window=2h", "window"),
        ("/api/v1/feed/trending?window=", "window"),
        ("/api/v1/feed/trending?limit=0", "limit"),
        ("/api/v1/feed/trending?limit=201", "limit"),
        ("/api/v1/discover/suggested-users?limit=0", "limit"),
        ("/api/v1/discover/suggested-users?limit=51", "limit"),
    ];
    for (path, field) in refused {
        let answer = host.get(&token, path).await;
        assert_eq!(answer.problem(400), [field], "{path}");
    }
    let accepted = [
        "/api/v1/feed?limit=1",
        "/api/v1/feed?limit=100",
        "/api/v1/feed?algo=ch",
        "/api/v1/feed?algo=timeline",
        "/api/v1/feed/trending?window=7d&limit=200",
        "/api/v1/discover/suggested-users?limit=50",
    ];
    for path in accepted {
        host.get(&token, path).await.ok(200);
    }
    let operator = host.admin_token("operator");
    for id in ["0", "-1", "x", "9007199254740992"] {
        for path in [
            format!("/debug/post/{id}/metrics"),
            format!("/debug/user/{id}/feed/cache"),
            format!("/debug/user/{id}/feed/explain"),
        ] {
            assert!(
                !host.get(&operator, &path).await.problem(400).is_empty(),
                "{path}"
            );
        }
    }
    host.get(&operator, "/debug/post/9007199254740991/metrics")
        .await
        .problem(404);
}

#[tokio::test]
async fn a_cursor_serves_only_the_viewer_it_was_issued_to() {
    let host = Host::with_community();
    let (owner, stranger) = (host.viewer_token(7), host.viewer_token(8));
    let page = host.get(&owner, "/api/v1/feed?limit=10").await.ok(200);
    let cursor = page["cursor"].as_str().unwrap();
    let next = |cursor: &str| format!("/api/v1/feed?limit=10&cursor={cursor}");
    let second = host.get(&owner, &next(cursor)).await.ok(200);
    assert_eq!(post_ids(&second).len(), 10);

    assert_eq!(
        host.get(&stranger, &next(cursor)).await.problem(400),
        ["cursor"]
    );
    for at in [0, cursor.len() / 2, cursor.len() - 1] {
        let mut tampered = cursor.to_owned();
        let other = if &cursor[at..=at] == "A" { "B" } else { "A" };
        tampered.replace_range(at..=at, other);
        assert_eq!(
            host.get(&owner, &next(&tampered)).await.problem(400),
            ["cursor"]
        );
    }
    let longer = format!("{cursor}AAAA");
    for wrong in [
        &cursor[..cursor.len() - 4],
        &cursor[4..],
        &longer,
        "x",
        "%00%ff",
        "null",
    ] {
        assert_eq!(
            host.get(&owner, &next(wrong)).await.problem(400),
            ["cursor"],
            "{wrong}"
        );
    }
    let elsewhere = Host::with_community();
    let foreign = elsewhere
        .get(&elsewhere.viewer_token(7), &next(""))
        .await
        .ok(200);
    let foreign = foreign["cursor"].as_str().unwrap();
    assert_eq!(
        host.get(&owner, &next(foreign)).await.problem(400),
        ["cursor"]
    );
}

#[tokio::test]
async fn a_cursor_whose_ranking_is_gone_has_expired() {
    let directory = tempfile::tempdir().unwrap();
    let start = || Host::setup().data_dir(directory.path());
    let mut host = start().community(Community::small()).start();
    let token = host.viewer_token(7);
    let page = host.get(&token, "/api/v1/feed?limit=10").await.ok(200);
    let next = format!("/api/v1/feed?cursor={}", page["cursor"].as_str().unwrap());
    host.get(&token, &next).await.ok(200);
    // The cursor key outlives the process, but the embedded snapshots do not. The cursor is
    // authentic, but its snapshot no longer exists.
    host.kill();
    let host = start().start();
    let expired = host.get(&token, &next).await;
    assert_eq!(expired.body["type"], "cursor-expired");
    expired.problem(410);
    host.get(&token, "/api/v1/feed").await.ok(200);
}

#[tokio::test]
async fn unknown_routes_and_wrong_methods_return_problem_responses() {
    let host = Host::with_community();
    let unknown = [
        (Method::GET, "/nothing"),
        (Method::POST, "/api/v1/nothing"),
        (Method::GET, "/admin/v1/nothing"),
        (Method::GET, "/docs/nothing"),
        (Method::GET, "/api/v1/feed/"),
    ];
    for (method, path) in unknown {
        let answer = host.send(host.request(method, path)).await;
        assert_eq!(answer.status, 404, "{path}");
        answer.problem(404);
    }
    let wrong = [
        (Method::POST, "/api/v1/feed"),
        (Method::GET, "/api/v1/events"),
        (Method::DELETE, "/admin/v1/flags/enable_caching"),
        (Method::PUT, "/health"),
        (Method::POST, "/openapi.json"),
    ];
    for (method, path) in wrong {
        let answer = host.send(host.request(method, path)).await;
        assert_eq!(answer.status, 405, "{path}");
        assert!(answer.headers.contains_key("allow"), "{path}");
        answer.problem(405);
    }
}

#[tokio::test]
async fn every_response_carries_the_callers_request_id_or_a_new_one() {
    let host = Host::with_community();
    let token = host.viewer_token(7);
    let ask = async |path: &str, id: &str| -> Answer {
        let request = host.request(Method::GET, path).bearer_auth(&token);
        host.send(request.header("x-request-id", id)).await
    };
    for path in ["/api/v1/feed", "/api/v1/feed?limit=0", "/nothing"] {
        let answer = ask(path, "call-17_a").await;
        assert_eq!(answer.headers["x-request-id"], "call-17_a", "{path}");
        assert_eq!(answer.body["request_id"], "call-17_a", "{path}");
    }
    // A request id that could break a log line is replaced, not echoed.
    for unfit in ["with space", "<script>", &"x".repeat(65), ""] {
        let answer = ask("/api/v1/feed", unfit).await;
        let given = answer.headers["x-request-id"].to_str().unwrap().to_owned();
        assert_ne!(given, unfit);
        assert!(!given.is_empty());
        assert_eq!(answer.body["request_id"], given.as_str());
    }
    let (one, two) = (
        host.get(&token, "/api/v1/feed").await.ok(200),
        host.get(&token, "/api/v1/feed").await.ok(200),
    );
    assert_ne!(one["request_id"], two["request_id"]);
}

#[track_caller]
fn assert_limited(answer: Answer) {
    let retry_after_s: u64 = answer.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=60).contains(&retry_after_s), "{retry_after_s}");
    answer.problem(429);
}

#[tokio::test]
async fn viewers_event_batches_and_addresses_have_separate_rate_limits() {
    let host = Host::setup()
        .community(Community::small())
        .variable("NOVA_VIEWER_REQUESTS_PER_MINUTE", "3")
        .variable("NOVA_VIEWER_EVENT_BATCHES_PER_MINUTE", "2")
        .variable("NOVA_ADDRESS_REQUESTS_PER_MINUTE", "4")
        .start();
    let token = host.viewer_token(7);
    // Feeds and suggestions share one rate limit, and invalid requests count too.
    host.get(&token, "/api/v1/feed").await.ok(200);
    host.get(&token, "/api/v1/discover/suggested-users")
        .await
        .ok(200);
    host.get(&token, "/api/v1/feed?limit=0").await.problem(400);
    assert_limited(host.get(&token, "/api/v1/feed").await);
    assert_limited(host.get(&token, "/api/v1/discover/suggested-users").await);
    // Another viewer is not affected by that limit.
    host.feed(8).await;

    for seconds_ago in 0..2 {
        let batch = [event(1, 1, "view", seconds_ago)];
        host.send_events(7, &batch).await.ok(202);
    }
    assert_limited(host.send_events(7, &[event(1, 1, "view", 9)]).await);
    host.send_events(8, &[event(1, 1, "view", 0)]).await.ok(202);

    let trending = || host.request(Method::GET, "/api/v1/feed/trending");
    for _ in 0..4 {
        host.send(trending()).await.ok(200);
    }
    assert_limited(host.send(trending()).await);
    // Admin requests do not count against the rate limit of the address.
    host.get(&host.admin_token("operator"), "/admin/v1/policies")
        .await
        .ok(200);
}

#[tokio::test]
async fn browsers_may_call_from_configured_origins_only() {
    let preflight = async |host: &Host, origin: &str| {
        let request = host.request(Method::OPTIONS, "/api/v1/feed");
        let request = request
            .header("origin", origin)
            .header("access-control-request-method", "GET")
            .header("access-control-request-headers", "authorization");
        host.send(request).await
    };
    let host = Host::setup()
        .variable(
            "NOVA_CORS_ORIGINS",
            "https://app.example, https://b.example",
        )
        .start();
    for origin in ["https://app.example", "https://b.example"] {
        let answer = preflight(&host, origin).await;
        assert!((200..300).contains(&answer.status));
        assert_eq!(answer.headers["access-control-allow-origin"], origin);
        let allowed = |header: &str| {
            let text = answer.headers[header].to_str().unwrap();
            let names = text.split(',').map(|name| name.trim().to_ascii_lowercase());
            names.collect::<BTreeSet<_>>()
        };
        let methods = ["delete", "get", "options", "post", "put"].map(str::to_owned);
        assert_eq!(
            allowed("access-control-allow-methods"),
            BTreeSet::from(methods)
        );
        assert!(allowed("access-control-allow-headers").contains("authorization"));
        // The calling page must also be able to read a refusal.
        let request = host
            .request(Method::GET, "/api/v1/feed")
            .header("origin", origin);
        let refused = host.send(request).await;
        assert_eq!(refused.headers["access-control-allow-origin"], origin);
        refused.problem(401);
    }
    for origin in ["https://evil.example", "http://app.example", "null"] {
        let answer = preflight(&host, origin).await;
        assert!(
            !answer.headers.contains_key("access-control-allow-origin"),
            "{origin}"
        );
    }
    let closed = Host::setup().start();
    let answer = preflight(&closed, "https://app.example").await;
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn origins_are_accepted_in_every_spelling_and_pages_may_send_and_read_what_they_need() {
    let host = Host::setup()
        .community(Community::small())
        .variable("NOVA_CORS_ORIGINS", "HTTPS://App.Example:443/")
        .variable("NOVA_ADDRESS_REQUESTS_PER_MINUTE", "1")
        .start();
    let origin = "https://app.example";
    let preflight = host
        .request(Method::OPTIONS, "/api/v1/feed")
        .header("origin", origin)
        .header("access-control-request-method", "GET")
        .header(
            "access-control-request-headers",
            "authorization,traceparent,x-own",
        );
    let answer = host.send(preflight).await;
    assert_eq!(answer.headers["access-control-allow-origin"], origin);
    let allowed = answer.headers["access-control-allow-headers"]
        .to_str()
        .unwrap();
    for name in ["authorization", "traceparent", "x-own"] {
        assert!(allowed.contains(name), "{allowed}");
    }
    let methods = answer.headers["access-control-allow-methods"]
        .to_str()
        .unwrap();
    for method in ["GET", "POST", "PUT", "DELETE"] {
        assert!(methods.contains(method), "{methods}");
    }
    let trending = || {
        host.request(Method::GET, "/api/v1/feed/trending")
            .header("origin", origin)
    };
    host.send(trending()).await;
    let limited = host.send(trending()).await;
    assert!(limited.headers.contains_key("retry-after"));
    let exposed = limited.headers["access-control-expose-headers"]
        .to_str()
        .unwrap();
    for name in ["retry-after", "x-request-id", "etag"] {
        assert!(exposed.to_ascii_lowercase().contains(name), "{exposed}");
    }
    limited.problem(429);
}

#[tokio::test]
async fn a_star_allows_every_origin_and_no_other_pattern_starts_a_host() {
    let host = Host::setup().variable("NOVA_CORS_ORIGINS", "*").start();
    for origin in ["https://any.example", "http://localhost:3000"] {
        let request = host.request(Method::GET, "/livez").header("origin", origin);
        let answer = host.send(request).await;
        assert_eq!(answer.headers["access-control-allow-origin"], "*");
        assert!(
            !answer
                .headers
                .contains_key("access-control-allow-credentials")
        );
    }
    for (value, named) in [
        ("https://*.example", "`https://*.example`"),
        ("https://a.example,*", "`*`"),
        ("https://a.example, app.example", "`app.example`"),
        ("https://a.example/app", "write https://a.example"),
        ("null", "`null`"),
    ] {
        let data_dir = tempfile::tempdir().unwrap();
        let arguments = ["--data-dir", data_dir.path().to_str().unwrap()];
        let refusal = refusal_to_serve(&arguments, &[("NOVA_CORS_ORIGINS", value)]);
        assert!(
            refusal.contains("server.cors_origins") && refusal.contains(named),
            "{refusal}"
        );
    }
}

/// Reads until the host closes the connection.
async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    // A reset ends a connection too, so it is not an error.
    let _ = read.expect("the host did not disconnect a client that stopped sending");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_client_that_is_slow_with_its_headers_is_disconnected() {
    let host = Host::setup()
        .variable("NOVA_HEADER_TIMEOUT_MS", "300")
        .start();
    // Cases: nothing at all, the start of HTTP/1 or HTTP/2, half a header.
    for sent in [
        "",
        "P",
        "PRI * HTTP/2.0\r\n\r\nSM",
        "GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: ",
    ] {
        let mut stream = TcpStream::connect(host.address()).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let answered = read_to_end(&mut stream).await;
        assert!(!answered.contains("HTTP/1.1 200"), "{answered}");
    }
    // Half of a second request, while its connection was idle.
    let mut stream = TcpStream::connect(host.address()).await.unwrap();
    exchange(&mut stream).await;
    stream.write_all(b"GET /livez HTT").await.unwrap();
    let answered = read_to_end(&mut stream).await;
    assert!(!answered.contains("HTTP/1.1 200"), "{answered}");
    host.send(host.request(Method::GET, "/livez")).await.ok(200);
}

/// Sends a request on this connection and reads its answer.
async fn exchange(stream: &mut TcpStream) {
    let request = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nlive") {
        let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut answer)).await;
        let read = read.expect("no answer").unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn an_idle_connection_outlives_the_time_for_headers() {
    let host = Host::setup()
        .variable("NOVA_HEADER_TIMEOUT_MS", "1000")
        .start();
    let mut stream = TcpStream::connect(host.address()).await.unwrap();
    exchange(&mut stream).await;
    let mut http2 = Http2::connect(host.address()).await;
    assert_eq!(http2.get("/livez", "").await, 200);
    for _ in 0..2 {
        // The passing of time is what is tested. A longer pause changes nothing.
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        exchange(&mut stream).await;
        assert_eq!(http2.get("/livez", "").await, 200);
    }
}

#[tokio::test]
async fn an_idle_connection_ends_after_the_idle_time() {
    let host = Host::setup()
        .variable("NOVA_IDLE_TIMEOUT_MS", "300")
        .variable("NOVA_HEADER_TIMEOUT_MS", "60000")
        .start();
    let mut stream = TcpStream::connect(host.address()).await.unwrap();
    exchange(&mut stream).await;
    assert_eq!(read_to_end(&mut stream).await, "");
    // A part of the next request that came together with the first one counts as idle.
    let mut stream = TcpStream::connect(host.address()).await.unwrap();
    let two = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\nGET /livez HTT";
    stream.write_all(two).await.unwrap();
    let answered = read_to_end(&mut stream).await;
    assert_eq!(answered.matches("HTTP/1.1 200").count(), 1, "{answered}");

    let mut http2 = Http2::connect(host.address()).await;
    assert_eq!(http2.get("/livez", "").await, 200);
    let ended = tokio::time::timeout(PATIENCE, http2.ended()).await;
    ended.expect("the host did not end an idle HTTP/2 connection");
}

#[tokio::test]
async fn a_client_that_is_slow_with_its_body_gets_a_408() {
    let host = Host::setup()
        .variable("NOVA_BODY_TIMEOUT_MS", "300")
        .start();
    let head = format!(
        "POST /api/v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 1000\r\nconnection: close\r\n\r\n{{\"events\":",
        host.viewer_token(7)
    );
    let mut stream = TcpStream::connect(host.address()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = read_to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
}

#[tokio::test]
async fn a_body_that_breaks_off_or_is_too_large_stores_nothing() {
    let host = Host::setup()
        .variable("NOVA_BODY_BYTES_MAX", "2000")
        .start();
    let token = host.viewer_token(7);
    let batch = json!({"events": [event(1, 1, "view", 0)]}).to_string();
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
    // White space is valid JSON, so only the size is wrong here.
    let padded = |bytes: usize| batch.clone() + &" ".repeat(bytes - batch.len());
    assert!(send(padded(2_001)).await.problem(413).is_empty());
    assert_eq!(send(padded(2_000)).await.ok(202)["deduped"], 0);
}

#[tokio::test]
async fn the_api_description_lists_every_route() {
    let host = Host::with_community();
    let described = host
        .send(host.request(Method::GET, "/openapi.json"))
        .await
        .ok(200);
    let routes = [
        "get /api/v1/feed",
        "get /api/v1/feed/trending",
        "get /api/v1/discover/suggested-users",
        "post /api/v1/events",
        "get /api/v1/feed/metrics",
        "get /admin/v1/policies",
        "post /admin/v1/policies",
        "post /admin/v1/policies/{name}/{version}/activate",
        "post /admin/v1/rollback",
        "get /admin/v1/audit",
        "get /admin/v1/cohorts/{key}",
        "put /admin/v1/cohorts/{key}",
        "get /admin/v1/experiments/{key}",
        "put /admin/v1/experiments/{key}",
        "post /admin/v1/experiments/{key}/start",
        "post /admin/v1/experiments/{key}/pause",
        "post /admin/v1/experiments/{key}/stop",
        "get /admin/v1/experiments/{key}/results",
        "get /admin/v1/flags/{name}",
        "put /admin/v1/flags/{name}",
        "get /debug/user/{id}/feed/cache",
        "get /debug/user/{id}/feed/explain",
        "get /debug/post/{id}/metrics",
        "get /debug/system/state",
        "get /health",
        "get /livez",
        "get /readyz",
        "get /metrics",
    ];
    for route in routes {
        let (method, path) = route.split_once(' ').unwrap();
        let operation = &described["paths"][path][method];
        assert!(
            operation["responses"].is_object(),
            "{route} is not described"
        );
    }
    // Routes described as protected refuse a caller without a token, and no other route does.
    let filled = |path: &str| {
        path.replace("{id}", "1")
            .replace("{name}", "x")
            .replace("{version}", "1.0.0")
            .replace("{key}", "x")
    };
    for (path, operations) in described["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let answer = host.send(host.request(method.clone(), &filled(path))).await;
            let protected = operation["security"].is_array();
            assert_eq!(
                answer.status == 401,
                protected,
                "{method} {path}: {}",
                answer.status
            );
        }
    }
    let docs = host.send(host.request(Method::GET, "/docs")).await.ok(200);
    assert!(docs.as_str().unwrap().contains("<html"));
}
