//! Policies in three languages. The same scorer in Rust, Python and JavaScript is built with
//! each language's own tools and shipped to a host, and must give every post the formula's
//! score, bit for bit.

use crate::author_loop::{at_host, cargo_test, complaint, nova_in, said, said_json};
use crate::harness::{Host, post_ids, saturated};
use crate::recipes::{Operator, label, patient_setup};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The tools that each language needs, with arguments that check for their presence.
const TOOLS: [(&str, &[&str]); 3] = [
    ("python3", &["-c", "import venv, ensurepip"]),
    ("node", &["--version"]),
    ("npm", &["--version"]),
];

/// Returns true if all tools are present. Prints the missing ones, and fails if the environment
/// requires them.
fn tools_are_there() -> bool {
    let there = |(program, arguments): &(&str, &[&str])| {
        let mut command = Command::new(program);
        let command = command.args(*arguments).stdout(Stdio::null());
        command
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|tool| !there(tool))
        .map(|(program, _)| *program)
        .collect();
    if missing.is_empty() {
        return true;
    }
    let missing = missing.join(", ");
    let required = std::env::var("NOVA_REQUIRE_LANGUAGES").is_ok_and(|value| value == "1");
    assert!(!required, "required tools are missing: {missing}");
    eprintln!("skipped the Python and JavaScript policies: {missing} not found");
    false
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/examples")
}

/// Copies an example to a directory for building, with ample limits. The directory outlives a
/// test run, so the compilers installed into it are kept.
fn copy_of(name: &str) -> PathBuf {
    copy_in("languages", name)
}

/// Does the same in a directory of this name, which no other test uses.
fn copy_in(desk: &str, name: &str) -> PathBuf {
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(desk);
    std::fs::create_dir_all(&to).unwrap();
    // `-L` turns links into the SDK into files.
    said(
        Command::new("cp")
            .arg("-RL")
            .arg(examples().join(name))
            .arg(&to),
    );
    let to = to.join(name);
    let manifest = to.join("policy.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(
        &manifest,
        text.replace("deadline_ms = 20", "deadline_ms = 1000"),
    )
    .unwrap();
    to
}

/// Builds the command `nova policy build`, which may install packages. It gets the test shell's
/// settings for package sources, caches and proxies.
fn build(desk: &Path, name: &str) -> Command {
    let mut command = nova_in(desk, &["policy", "build", name]);
    for (variable, value) in std::env::vars_os() {
        let known = variable.to_string_lossy().to_lowercase();
        if known.starts_with("pip_")
            || known.starts_with("npm_config_")
            || known.ends_with("_proxy")
        {
            command.env(variable, value);
        }
    }
    command
}

/// Builds a scorer in Python. Returns `None` if the tools are missing.
pub fn python_scorer() -> Option<Vec<u8>> {
    if !tools_are_there() {
        return None;
    }
    let directory = copy_in("python_scorer", "wilson-python");
    said_json(&mut build(directory.parent().unwrap(), "wilson-python"));
    Some(std::fs::read(directory.join("wilson_python.wasm")).unwrap())
}

/// A plain implementation of the score that `policies/examples/wilson-*` compute.
fn score(features: &Value) -> f32 {
    let feature = |name: &str| features[name].as_f64().unwrap();
    let trials = feature("exposures");
    let successes = (feature("likes") + feature("comments") + feature("shares")).min(trials);
    let z = 1.96;
    let proven = if trials > 0.0 {
        let share = successes / trials;
        let centre = share + z * z / (2.0 * trials);
        let margin = z * ((share * (1.0 - share) + z * z / (4.0 * trials)) / trials).sqrt();
        ((centre - margin) / (1.0 + z * z / trials)).max(0.0)
    } else {
        0.0
    };
    (proven + 0.5 / (1.0 + feature("age_hours").max(0.0) / 24.0)) as f32
}

/// Asserts that every post has the formula's score and that the order of posts follows from it.
fn assert_ranked_by_the_formula(explained: &Value) {
    let posts = explained["posts"].as_array().unwrap();
    let mut expected: Vec<(f32, u64, u64)> = Vec::new();
    for post in posts {
        let wanted = score(&post["features"]);
        assert_eq!(post["score"].as_f64().unwrap() as f32, wanted, "{post}");
        let id = |name: &str| post[name].as_u64().unwrap();
        expected.push((wanted, id("post_id"), id("author_id")));
    }
    assert!(expected.len() >= 50, "{} posts", expected.len());
    expected.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
    let best_first: Vec<(u64, u64)> = expected.iter().map(|post| (post.1, post.2)).collect();
    assert_eq!(post_ids(explained), saturated(&best_first));
}

/// Builds, checks, pushes and activates an example, as an author and an operator type it.
fn ship(host: &Host, operator: &Operator<'_>, name: &str) {
    let directory = copy_of(name);
    let desk = directory.parent().unwrap();
    if name == "wilson-rust" {
        cargo_test(&directory);
    }
    let built = said_json(&mut build(desk, name));
    let checked = said_json(&mut nova_in(desk, &["policy", "check", name]));
    assert_eq!(
        checked["spec"]["stages"]["score"]["module"],
        built["digest"]
    );
    let pushed = said_json(&mut at_host(host, operator, desk, &["push", name]));
    assert_eq!(pushed["digest"], checked["digest"]);
}

/// Asserts that a mistake is reported with its line, before the long compilation starts.
fn assert_mistakes_are_shown_early(name: &str) {
    let (file, mistake) = match name {
        "wilson-python" => ("policy.py", "policy = not_defined\n"),
        "wilson-javascript" => ("policy.js", "export const policy = not_defined;\n"),
        _ => return,
    };
    let directory = copy_of(name);
    std::fs::write(directory.join(file), mistake).unwrap();
    let output = build(&directory, ".").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && said.contains("not_defined"),
        "{said}"
    );
    assert!(!said.contains("compiling"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_policy_in_three_languages_gives_the_same_scores_and_the_same_order() {
    let languages = if tools_are_there() {
        vec!["wilson-rust", "wilson-python", "wilson-javascript"]
    } else {
        vec!["wilson-rust"]
    };
    let host = patient_setup().start();
    let operator = host.operator();
    std::thread::scope(|scope| {
        for name in &languages {
            scope.spawn(|| {
                ship(&host, &operator, name);
                assert_mistakes_are_shown_early(name);
            });
        }
    });
    for name in languages {
        let policy = format!("{name}@1.0.0");
        operator.activate(&policy).await.ok(200);
        let feed = host.feed(7).await;
        assert_eq!(
            (label(&feed["policy"]), &feed["served_by"]),
            (policy, &json!("policy"))
        );
        assert_eq!(feed["degraded"], json!([]));
        let explained = operator.get("/debug/user/7/feed/explain").await;
        assert_ranked_by_the_formula(&explained);
    }
}

/// Policies that behave at admission and answer real viewers with something that is no index.
const WRONG_ANSWERS: [(&str, &str, &str); 2] = [
    (
        "python",
        "policy.py",
        "from nova_policy import deduper\n\n\ndef dedup(posts, params, request):\n    \
         return [1.9] if request.user_id < 2**52 else range(posts.len)\n\n\n\
         policy = deduper(dedup=dedup)\n",
    ),
    (
        "javascript",
        "policy.js",
        "import { deduper } from \"./nova-policy/index.js\";\n\nexport const policy = deduper({\n  \
         dedup: (posts, params, request) =>\n    \
         request.userId < 2n ** 52n ? [undefined] : [...Array(posts.length).keys()],\n});\n",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_no_index_is_a_counted_failure_in_every_language() {
    if !tools_are_there() {
        return;
    }
    let host = patient_setup().start();
    let operator = host.operator();
    let desk = Path::new(env!("CARGO_TARGET_TMPDIR")).join("languages");
    std::fs::create_dir_all(&desk).unwrap();
    for (language, file, source) in WRONG_ANSWERS {
        let name = format!("wrong-{language}");
        let directory = desk.join(&name);
        if !directory.exists() {
            let new = [
                "policy", "new", &name, "--stage", "dedup", "--lang", language,
            ];
            said(&mut nova_in(&desk, &new));
        }
        std::fs::write(directory.join(file), source).unwrap();
        let manifest = directory.join("policy.toml");
        let text = std::fs::read_to_string(&manifest).unwrap();
        let ample = text.replace("deadline_ms = 20", "deadline_ms = 1000");
        std::fs::write(&manifest, ample).unwrap();
        said_json(&mut build(&desk, &name));
        let pushed = said_json(&mut at_host(&host, &operator, &desk, &["push", &name]));
        let policy = format!("{name}@{}", pushed["version"].as_str().unwrap());
        operator.activate(&policy).await.ok(200);
        let feed = host.feed(7).await;
        assert_eq!(feed["served_by"], "last_good", "{feed}");
        let series = format!(
            "nova_feed_policy_calls_total{{outcome=\"trap\",policy=\"{policy}\",stage=\"dedup\"}}"
        );
        assert!(host.metric(&series).await >= 1.0, "{series}");
        operator.rollback().await.ok(200);
    }
}

/// Runs the tests of a policy or an SDK, as its author runs them.
fn own_tests(directory: &Path, language: &str, file: Option<&str>) {
    let mut tests = match language {
        "python" => Command::new("python3"),
        _ => Command::new("node"),
    };
    match language {
        "python" => tests.args(["-B", "-m", "unittest"]),
        _ => tests.arg("--test"),
    };
    said(tests.args(file).current_dir(directory));
}

#[test]
fn sdks_examples_and_new_policies_pass_their_own_tests() {
    if !tools_are_there() {
        return;
    }
    let desk = tempfile::tempdir().unwrap();
    let sdks = [
        ("python", None),
        ("javascript", Some("nova-policy.test.js")),
    ];
    for (language, file) in sdks {
        own_tests(
            &examples().join(format!("../sdk-{language}")),
            language,
            file,
        );
        own_tests(
            &examples().join(format!("wilson-{language}")),
            language,
            None,
        );
        for stage in ["score", "dedup", "saturation"] {
            let name = format!("{language}-{stage}");
            let arguments = ["policy", "new", &name, "--stage", stage, "--lang", language];
            said(&mut nova_in(desk.path(), &arguments));
            own_tests(&desk.path().join(&name), language, None);
        }
    }
}

#[test]
fn a_build_without_its_tools_says_how_to_install_them() {
    let desk = tempfile::tempdir().unwrap();
    for (language, advice) in [("python", "python3-venv"), ("javascript", "nodejs")] {
        let new = ["policy", "new", language, "--lang", language];
        said(&mut nova_in(desk.path(), &new));
        let mut build = nova_in(desk.path(), &["policy", "build", language]);
        let why = complaint(build.env("PATH", desk.path()));
        assert!(
            why.contains("it is not installed") && why.contains(advice),
            "{why}"
        );
    }
}
