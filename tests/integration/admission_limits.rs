//! Limits of what an upload may cost: the child process that compiles and tries it, the places
//! for bodies, and the sizes of texts. While an upload is tried, feeds are answered.

use crate::harness::{Answer, Host, eventually, manifest, shipped_module};
use crate::recipes::{Operator, SOON, patient_setup, text};
use futures::future::join_all;
use reqwest::Method;
use reqwest::multipart::{Form, Part};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// Largest response to `GET /metrics`.
const METRICS_BYTES_MAX: usize = 2 << 20;

fn leb(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(byte);
            return bytes;
        }
        bytes.push(byte | 0x80);
    }
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id][..], &leb(content.len()), content].concat()
}

/// Returns a core module with these function bodies, each without arguments and results. The
/// first one may be the start function.
fn core_module(bodies: &[Vec<u8>], starts: bool) -> Vec<u8> {
    let count = leb(bodies.len());
    let types = section(1, &[1, 0x60, 0, 0]);
    let functions = section(3, &[count.clone(), vec![0; bodies.len()]].concat());
    let start = if starts { section(8, &[0]) } else { Vec::new() };
    let code: Vec<u8> = bodies
        .iter()
        .flat_map(|body| [leb(body.len()), body.clone()].concat())
        .collect();
    let code = section(10, &[count, code].concat());
    [b"\0asm\x01\0\0\0".to_vec(), types, functions, start, code].concat()
}

/// Returns the bundled scorer with another core module inside, which `instantiated` runs.
fn scorer_with(module: &[u8], instantiated: bool) -> Vec<u8> {
    let mut component = shipped_module("weighted_scorer.wasm");
    let (mut at, mut modules) = (8, 0);
    while at < component.len() {
        modules += usize::from(component[at] == 1);
        let (mut length, mut shift) = (0, 0);
        loop {
            at += 1;
            length |= usize::from(component[at] & 0x7f) << shift;
            shift += 7;
            if component[at] & 0x80 == 0 {
                break;
            }
        }
        at += 1 + length;
    }
    component.extend(section(1, module));
    if instantiated {
        component.extend(section(2, &[vec![1, 0], leb(modules), vec![0]].concat()));
    }
    component
}

/// Returns a scorer that takes long to compile: functions of nearly the largest allowed size.
fn compile_bomb() -> Vec<u8> {
    // One local of i32, and many additions of a constant to it and to its product with itself.
    let step = [0x20, 0, 0x20, 0, 0x6c, 0x41, 7, 0x6a, 0x21, 0];
    let body = [&[1, 1, 0x7f][..], &step.repeat(180_000), &[0x0b]].concat();
    scorer_with(&core_module(&vec![body; 20], false), false)
}

/// Returns a scorer whose start function never ends.
fn endless_start() -> Vec<u8> {
    let body = vec![0, 0x03, 0x40, 0x0c, 0, 0x0b, 0x0b];
    scorer_with(&core_module(&[body], true), true)
}

fn reason(answer: Answer) -> String {
    assert_eq!(answer.status, 422, "{}", answer.body);
    text(&answer.body["errors"][0]["message"])
}

async fn upload(host: &Host, operator: &Operator<'_>, scorer: Vec<u8>) -> Answer {
    let manifest = manifest("bomb", "1.0.0", "score", "x.wasm");
    host.upload(&operator.token, &manifest, &[("x.wasm", scorer)])
        .await
}

/// Returns the processes that the host has started, with their states.
fn children(host: &Host) -> Vec<(u32, String)> {
    let parent = host.process_id().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let child = |path: PathBuf| {
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        let (id, _) = stat.split_once(' ')?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?.to_owned();
        (fields.next()? == parent).then_some((id.parse().ok()?, state))
    };
    processes.filter_map(|entry| child(entry.path())).collect()
}

#[tokio::test]
async fn an_upload_that_exceeds_a_limit_is_refused_and_leaves_no_process() {
    let cases = [
        ("NOVA_POLICY_ADMISSION_CPU_S", "1", "admission_cpu_s"),
        ("NOVA_POLICY_ADMISSION_WALL_S", "1", "admission_wall_s"),
        (
            "NOVA_POLICY_ADMISSION_MEMORY_MB",
            "256",
            "admission_memory_mb",
        ),
    ];
    for (variable, value, key) in cases {
        let host = patient_setup().serve_variable(variable, value).start();
        let operator = host.operator();
        let answer = upload(&host, &operator, compile_bomb()).await;
        let reason = reason(answer);
        assert!(reason.contains(key), "{variable}: {reason}");
        assert_eq!(children(&host), [], "{variable}");
        assert_eq!(host.feed(7).await["served_by"], "policy", "{variable}");
    }
}

#[tokio::test]
async fn a_start_function_that_never_ends_is_refused() {
    let host = patient_setup().start();
    let operator = host.operator();
    let reason = reason(upload(&host, &operator, endless_start()).await);
    assert!(reason.contains("describe failed"), "{reason}");
    assert_eq!(children(&host), []);
}

#[tokio::test]
async fn a_killed_check_is_a_refusal_and_feeds_are_answered_meanwhile() {
    let host = patient_setup().start();
    let operator = host.operator();
    let trying = upload(&host, &operator, compile_bomb());
    let killing = async {
        eventually(SOON, "the upload is tried", || async {
            !children(&host).is_empty()
        })
        .await;
        assert_eq!(host.feed(7).await["served_by"], "policy");
        let child = children(&host)[0].0.to_string();
        let killed = Command::new("kill").args(["-KILL", &child]).status();
        assert!(killed.unwrap().success());
    };
    let (answer, ()) = tokio::join!(trying, killing);
    let reason = reason(answer);
    assert!(reason.contains("signal: 9"), "{reason}");
    assert_eq!(children(&host), []);
}

#[tokio::test]
async fn the_check_of_an_upload_that_nobody_waits_for_is_stopped() {
    let host = patient_setup().start();
    let operator = host.operator();
    {
        let trying = upload(&host, &operator, compile_bomb());
        let begun = eventually(SOON, "the upload is tried", || async {
            !children(&host).is_empty()
        });
        tokio::select! {
            answer = trying => panic!("answered: {}", answer.body),
            () = begun => {}
        }
    }
    eventually(SOON, "the child is gone", || async {
        children(&host).is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_hundred_uploads_at_once_keep_the_hosts_memory_bounded() {
    const BODY_BYTES: usize = 8 << 20;
    let host = patient_setup().start();
    let operator = host.operator();
    let before = host.peak_memory_bytes();
    let bytes = bytes::Bytes::from(vec![b'x'; BODY_BYTES]);
    let send = |_| {
        let part = Part::stream_with_length(bytes.clone(), BODY_BYTES as u64);
        let form = Form::new()
            .text("manifest", "nonsense")
            .part("x.wasm", part.file_name("x.wasm"));
        let request = host.request(Method::POST, "/admin/v1/policies");
        let request = request.bearer_auth(&operator.token).multipart(form).send();
        async move { request.await.ok().map(|answer| answer.status().as_u16()) }
    };
    let statuses = join_all((0..100).map(send)).await;
    // A client that still sends its body may miss the answer that it has no place.
    let answered: Vec<u16> = statuses.into_iter().flatten().collect();
    assert!(
        answered.iter().all(|status| [422, 503].contains(status)),
        "{answered:?}"
    );
    assert!(answered.contains(&422), "{answered:?}");
    let grown = host.peak_memory_bytes().saturating_sub(before);
    eprintln!("100 uploads of {BODY_BYTES} bytes: {grown} bytes more at the peak");
    assert!(grown < 20 * BODY_BYTES, "{grown}");
}

#[tokio::test]
async fn long_texts_of_a_manifest_are_refused_by_name_and_are_in_no_metric() {
    let host = patient_setup().start();
    let operator = host.operator();
    let before = operator.published().await;
    let shipped = manifest("long", "1.0.0", "none", "");
    let long = |bytes: usize| "1".repeat(bytes);
    let described = |bytes| format!("description = \"{}\"\n{shipped}", long(bytes));
    let versioned = |bytes| shipped.replace("1.0.0", &format!("1.0.0-{}", long(bytes)));
    let cases = [
        (described(30 << 20), "the manifest"),
        (versioned(5 << 20), "the manifest"),
        (described(5_000), "description"),
        (versioned(65), "version"),
    ];
    for (manifest, field) in cases {
        let reason = reason(host.upload(&operator.token, &manifest, &[]).await);
        assert!(
            reason.contains(field) && reason.len() < 300,
            "{field}: {reason}"
        );
    }
    assert_eq!(operator.published().await, before);
    let metrics = host.send(host.request(Method::GET, "/metrics")).await.body;
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.len() < METRICS_BYTES_MAX, "{}", metrics.len());
    assert!(!metrics.contains("long@"));
}

#[tokio::test]
async fn a_pipe_in_place_of_a_manifest_is_refused_and_the_next_directory_is_published() {
    let host = patient_setup().start();
    let operator = host.operator();
    let policies = host.data_dir.join("policies");
    std::fs::create_dir_all(policies.join("a-pipe")).unwrap();
    let made = Command::new("mkfifo")
        .arg(policies.join("a-pipe/policy.toml"))
        .status();
    assert!(made.unwrap().success());
    std::fs::create_dir_all(policies.join("endless")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", policies.join("endless/policy.toml")).unwrap();
    std::fs::create_dir_all(policies.join("good")).unwrap();
    let good = manifest("good", "1.0.0", "none", "");
    std::fs::write(policies.join("good/policy.toml"), good).unwrap();
    eventually(SOON, "the good directory is published", || async {
        operator
            .published()
            .await
            .contains(&"good@1.0.0".to_owned())
    })
    .await;
    let state = operator.get("/debug/system/state").await;
    for directory in ["a-pipe", "endless"] {
        let reason = text(&state["refused_policies"][directory][0]);
        assert!(
            reason.contains("not a regular file"),
            "{directory}: {reason}"
        );
    }
}

/// A stalled upload holds a place, but no other request waits for it.
#[tokio::test]
async fn a_client_that_expects_100_continue_is_told_to_continue() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let host = patient_setup().start();
    let operator = host.operator();
    let mut stream = tokio::net::TcpStream::connect(host.address())
        .await
        .unwrap();
    let head = format!(
        "POST /admin/v1/policies HTTP/1.1\r\nhost: nova\r\nauthorization: Bearer {}\r\n\
         content-type: multipart/form-data; boundary=b\r\ncontent-length: 1000000\r\n\
         expect: 100-continue\r\n\r\n",
        operator.token
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut said = [0; 12];
    stream.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"HTTP/1.1 100");
    let started = Instant::now();
    assert_eq!(host.feed(7).await["served_by"], "policy");
    assert!(started.elapsed() < Duration::from_secs(60));
}
