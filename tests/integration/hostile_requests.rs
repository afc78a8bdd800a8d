//! Hostile requests to the routes that change something: odd Unicode, NUL, huge and misshapen
//! values. Every refusal names the field, no request is an error of the server, and the hosts
//! share their registry afterwards.

use crate::harness::{Answer, Community, Host, eventually, manifest};
use crate::services::Stack;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const REQUESTS: usize = 1_000;
const SEED: u64 = 20_260_720;
const METRICS_BYTES_MAX: usize = 2_000_000;
const FOLLOWS_WITHIN: Duration = Duration::from_secs(30);

/// Statuses of refusals that concern no field, but the state or the place of a thing.
const WITHOUT_FIELD: [u16; 6] = [404, 405, 409, 412, 413, 414];

/// Makes hostile values. The same seed makes the same ones.
struct Attacker(StdRng);

impl Attacker {
    fn one_of<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.0.random_range(0..from.len())]
    }

    fn text(&mut self) -> String {
        let odd = [
            "",
            " ",
            "\0",
            "a\0b",
            "\u{1b}[31m",
            "\u{202e}x",
            "\u{feff}",
            "\u{fffd}",
            "🙂",
            "ß",
            "NaN",
            "-0",
            "1e999",
            "null",
            "'; DROP TABLE audit; --",
            "%00",
            "..",
            "../../etc",
            "baseline@1.0.0",
            "timeline@1.0.0",
            "@",
            "a@b",
            "all",
            "x\r\ny",
            "\u{2028}",
        ];
        let text = self.one_of(&odd).to_owned();
        let times = [1, 1, 1, 200, 20_000][self.0.random_range(0..5)];
        text.repeat(times)
    }

    /// A JSON text, not always a valid one.
    fn json(&mut self, depth: usize) -> String {
        match self.0.random_range(0..10) {
            0 => self
                .one_of(&["0", "-0.0", "-1", "1e308", "1e999", "9007199254740993"])
                .into(),
            1 => self
                .one_of(&["NaN", "Infinity", "-", "{", "[", "\"", "tru", ""])
                .into(),
            2 => "[".repeat(1_000),
            3 => format!("{}1{}", "[".repeat(90), "]".repeat(90)),
            4 => self
                .one_of(&["null", "true", "[]", "{}", "18446744073709551616"])
                .into(),
            5 if depth > 0 => format!("[{},{}]", self.json(depth - 1), self.json(depth - 1)),
            6 if depth > 0 => {
                let name = json!(self.text());
                format!("{{{name}: {}}}", self.json(depth - 1))
            }
            _ => json!(self.text()).to_string(),
        }
    }

    /// A valid body in which one value is replaced, or no valid body at all.
    fn body(&mut self, path: &str) -> String {
        let Value::Object(mut valid) = body_of(path) else {
            return self.json(2);
        };
        if valid.is_empty() || self.0.random_range(0..5) == 0 {
            return self.json(2);
        }
        let names: Vec<String> = valid.keys().cloned().collect();
        let name = &names[self.0.random_range(0..names.len())];
        valid.insert(name.clone(), json!("\u{1}here\u{1}"));
        let place = json!("\u{1}here\u{1}").to_string();
        Value::Object(valid)
            .to_string()
            .replace(&place, &self.json(2))
    }

    /// The route with odd values in the place of some parameters.
    fn path(&mut self, path: &str) -> String {
        let segments = path.split('/').map(|segment| {
            let usual = match segment {
                "{name}" if path.contains("flags") => "enable_caching",
                "{name}" => "timeline",
                "{version}" => "1.0.0",
                "{key}" => "k",
                other => return other.to_owned(),
            };
            if self.0.random_range(0..3) > 0 {
                return usual.to_owned();
            }
            let odd: String = self.text().chars().take(300).collect();
            url::form_urlencoded::byte_serialize(odd.as_bytes())
                .collect::<String>()
                .replace('+', "%20")
        });
        segments.collect::<Vec<_>>().join("/")
    }
}

/// A body that the route accepts, with every field that a caller may set.
fn body_of(path: &str) -> Value {
    match path.rsplit('/').next().unwrap() {
        "canary" => json!({"percent": 5.0, "expected_active": "baseline@1.0.0"}),
        "activate" => json!({"expected_active": "baseline@1.0.0"}),
        "quarantine" | "lift" => json!({"reason": "a test"}),
        "rollback" => json!({"reason": "a test", "expected_active": "baseline@1.0.0"}),
        "{name}" => json!({"enabled": false}),
        "{key}" if path.contains("cohorts") => json!({"ids": [7]}),
        "{key}" => json!({
            "description": "d", "seed": "s", "hash_version": 2, "coverage": 0.5, "cohort": "all",
            "namespace": {"id": "n", "range": [0.0, 0.5]}, "priority": 1, "overrides": {"7": "a"},
            "variations": [{"key": "a", "weight": 1.0, "policy": "baseline@1.0.0",
                "params": {"score": {"tau_h": 1.0}}}]}),
        _ => json!({}),
    }
}

/// Sends hostile requests to every route that changes something, in turn to each host.
async fn attack(hosts: &[Host]) {
    let openapi = hosts[0].get("", "/openapi.json").await.ok(200);
    let mut routes = Vec::new();
    for (path, methods) in openapi["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let is_write = path.starts_with("/admin/v1/") && method != "get";
            if is_write {
                let method: Method = method.to_uppercase().parse().unwrap();
                routes.push((method, path.clone()));
            }
        }
    }
    assert!(routes.len() >= 13, "{routes:?}");
    let tokens: Vec<String> = hosts
        .iter()
        .map(|host| host.admin_token("operator"))
        .collect();
    let mut attacker = Attacker(StdRng::seed_from_u64(SEED));
    let mut refused = 0;
    // A connection for each request: a refusal that comes before the whole body was read ends it.
    let client = reqwest::Client::builder().pool_max_idle_per_host(0);
    let client = client.build().unwrap();
    for n in 0..REQUESTS {
        let (method, route) = &routes[n % routes.len()];
        let at = (n / routes.len()) % hosts.len();
        let (host, path) = (&hosts[at], attacker.path(route));
        let url = format!("http://{}{path}", host.address());
        let request = client.request(method.clone(), url).bearer_auth(&tokens[at]);
        let (request, sent) = if route == "/admin/v1/policies" {
            let valid = manifest("other", "1.0.0", "score", "builtin:weighted-scorer");
            let text = match n % 2 {
                0 => attacker.text(),
                _ => valid.replace("1.0.0", &attacker.text()),
            };
            let form = reqwest::multipart::Form::new().text("manifest", text.clone());
            (request.multipart(form), text)
        } else {
            let body = attacker.body(route);
            let request = request.header("content-type", "application/json");
            (request.body(body.clone()), body)
        };
        let answer = host.send(request).await;
        let sent: String = sent.chars().take(200).collect();
        let what = format!(
            "{n}: {method} {path} {sent:?} → {} {}",
            answer.status, answer.body
        );
        assert!(answer.status < 500, "{what}");
        if answer.status >= 400 {
            refused += 1;
            assert_names_a_field(answer, &what);
        }
    }
    assert!(
        refused > REQUESTS / 2,
        "{refused} of {REQUESTS} were refused"
    );
}

fn assert_names_a_field(answer: Answer, what: &str) {
    let status = answer.status;
    let fields = answer.problem(status);
    if !WITHOUT_FIELD.contains(&status) {
        assert!(
            !fields.is_empty() && fields.iter().all(|field| !field.is_empty()),
            "{what}"
        );
    }
}

async fn assert_small_metrics(host: &Host) {
    let answer = host.send(host.request(Method::GET, "/metrics")).await;
    let bytes = answer.body.as_str().unwrap().len();
    assert!(bytes < METRICS_BYTES_MAX, "{bytes} bytes of metrics");
}

/// Asserts that a change on each host reaches all of them, and prints the time of a whole read.
async fn assert_shared(hosts: &[Host]) {
    for (n, changed) in hosts.iter().enumerate() {
        let operator = changed.admin_token("operator");
        let path = format!("/admin/v1/cohorts/after-{n}");
        changed
            .put(&operator, &path, &json!({"ids": [7]}))
            .await
            .ok(201);
        for host in hosts {
            let operator = host.admin_token("operator");
            eventually(FOLLOWS_WITHIN, "the other hosts follow", async || {
                host.get(&operator, &path).await.status == 200
            })
            .await;
            let state = host.get(&operator, "/debug/system/state").await.ok(200);
            assert_eq!(state["local_changes"], json!([]));
            assert_eq!(state["set_aside_changes"], json!([]));
        }
        let begun = Instant::now();
        changed.get(&operator, "/admin/v1/policies").await.ok(200);
        eprintln!(
            "the list of policies took {:?} after {REQUESTS} requests",
            begun.elapsed()
        );
    }
}

#[tokio::test]
async fn hostile_changes_are_refused_with_the_field_on_an_embedded_host() {
    let hosts = [Host::setup()
        .community(Community::small())
        .serve_variable("NOVA_RATE_LIMIT", "off")
        .start()];
    attack(&hosts).await;
    assert_small_metrics(&hosts[0]).await;
    assert_shared(&hosts).await;
    hosts[0].feed(1).await;
}

#[tokio::test]
async fn hostile_changes_separate_no_host_from_the_fleet() {
    let Some(stack) = Stack::migrated().await else {
        return;
    };
    let on = || {
        let setup = Host::setup().stack(&stack);
        setup.variable("NOVA_RATE_LIMIT", "off")
    };
    let first = on().community(Community::small()).start();
    let hosts = [first, on().start()];
    attack(&hosts).await;
    for host in &hosts {
        assert_small_metrics(host).await;
    }
    assert_shared(&hosts).await;
}
