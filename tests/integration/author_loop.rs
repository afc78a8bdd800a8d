//! Workflows of policy authors and operators, as they type them on the command line.

use crate::harness::{Host, eventually, nova};
use crate::recipes::{Operator, SOON, label, patient_setup, text};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns the target directory for a crate of this name. The directory outlives a test run, so
/// that only the first run compiles the dependencies of policies. Crates do not share one,
/// because cargo cannot tell their copies of the SDK apart.
fn target(name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("authored-{name}"));
    std::fs::create_dir_all(&target).unwrap();
    target
}

/// Runs a command that must succeed, and returns its standard output.
#[track_caller]
pub fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}{complaint}");
    said
}

#[track_caller]
pub fn said_json(command: &mut Command) -> Value {
    serde_json::from_str(&said(command.arg("--json"))).unwrap()
}

/// Runs a command that must fail with a single line on standard error, and returns that line.
#[track_caller]
pub fn complaint(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{command:?} did not fail");
    assert!(output.stdout.is_empty(), "{command:?} printed something");
    assert!(complaint.starts_with("nova: "), "{command:?}: {complaint}");
    assert_eq!(complaint.lines().count(), 1, "{command:?}: {complaint}");
    complaint
}

pub fn nova_in(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = nova();
    command.current_dir(directory).args(arguments);
    command
}

/// Builds `nova policy …` against a running host, named by environment variables.
pub fn at_host(
    host: &Host,
    operator: &Operator<'_>,
    directory: &Path,
    arguments: &[&str],
) -> Command {
    let mut command = nova_in(directory, &["policy"]);
    command
        .args(arguments)
        .env("NOVA_HOST", &host.url)
        .env("NOVA_TOKEN", &operator.token);
    command
}

pub fn make(directory: &Path, name: &str, stage: &str) {
    said(&mut nova_in(
        directory,
        &["policy", "new", name, "--stage", stage],
    ));
    std::os::unix::fs::symlink(target(name), directory.join(name).join("target")).unwrap();
}

/// Runs `cargo test` in the environment of a fresh shell, like `nova`. The variables that the
/// outer cargo sets are absent in an author's shell, so they are cleared.
pub fn cargo_test(directory: &Path) -> String {
    let mut cargo = Command::new("cargo");
    cargo.env_clear();
    for (name, value) in nova().get_envs() {
        cargo.env(name, value.unwrap_or_default());
    }
    said(cargo.current_dir(directory).args(["test", "--quiet"]))
}

#[tokio::test]
async fn an_author_creates_tests_builds_checks_and_ships_a_policy_that_an_operator_rolls_back() {
    let host = patient_setup().start();
    let operator = host.operator();
    let desk = tempfile::tempdir().unwrap();
    let desk = desk.path();
    make(desk, "fresh-first", "score");
    assert!(cargo_test(&desk.join("fresh-first")).contains("1 passed"));

    let unbuilt = complaint(&mut nova_in(desk, &["policy", "check", "fresh-first"]));
    assert!(
        unbuilt.contains("nova policy build fresh-first"),
        "{unbuilt}"
    );
    let built = said_json(&mut nova_in(desk, &["policy", "build", "fresh-first"]));
    assert_eq!(built["path"], "fresh-first/fresh_first.wasm");
    let module = desk.join("fresh-first/fresh_first.wasm");
    assert_eq!(std::fs::metadata(&module).unwrap().len(), built["bytes"]);

    let checked = said_json(&mut nova_in(
        desk,
        &["policy", "check", "fresh-first/fresh_first.wasm"],
    ));
    assert_eq!(
        (&checked["digest"], &checked["stage"]),
        (&built["digest"], &json!("score"))
    );
    let checked = said_json(&mut nova_in(desk, &["policy", "check", "fresh-first"]));
    assert_eq!(checked["policy"], "fresh-first@0.1.0");

    let pushed = said_json(&mut at_host(
        &host,
        &operator,
        desk,
        &["push", "fresh-first", "--shadow"],
    ));
    assert_eq!(label(&pushed), "fresh-first@0.1.0");
    assert_eq!(
        (&pushed["digest"], &pushed["state"]),
        (&checked["digest"], &json!("shadow"))
    );
    // The policy may be left out because only one can be meant.
    let canary = said(&mut at_host(&host, &operator, desk, &["canary", "5"]));
    assert_eq!(canary, "fresh-first@0.1.0 is canary, 5 % of viewers\n");
    let activated = said(&mut at_host(&host, &operator, desk, &["activate"]));
    assert!(
        activated.contains("fresh-first@0.1.0 is active"),
        "{activated}"
    );
    let nobody = complaint(&mut at_host(&host, &operator, desk, &["canary", "5"]));
    assert!(nobody.contains("name one"), "{nobody}");
    let list = said_json(&mut at_host(&host, &operator, desk, &["list"]));
    assert_eq!(
        (&list["active"], &list["previous"]),
        (&json!("fresh-first@0.1.0"), &json!("baseline@1.0.0"))
    );
    eventually(SOON, "the author's policy serves", || async {
        let feed = host.feed(7).await;
        feed["served_by"] == "policy" && feed["policy"]["digest"] == checked["digest"]
    })
    .await;

    let not_that_one = ["rollback", "--expected-active", "baseline@1.0.0"];
    complaint(&mut at_host(&host, &operator, desk, &not_that_one));
    let back = said(&mut at_host(
        &host,
        &operator,
        desk,
        &["rollback", "--reason", "complaints"],
    ));
    assert!(back.contains("baseline@1.0.0 is active again"), "{back}");
    let audit = operator.get("/admin/v1/audit?limit=1").await;
    assert_eq!(audit["entries"][0]["detail"]["reason"], "complaints");
    complaint(&mut at_host(&host, &operator, desk, &["rollback"]));
}

#[test]
fn scaffolds_of_the_other_stages_have_a_passing_test_too() {
    let desk = tempfile::tempdir().unwrap();
    for stage in ["dedup", "saturation"] {
        let name = format!("my-{stage}");
        make(desk.path(), &name, stage);
        let passed = cargo_test(&desk.path().join(&name));
        assert!(passed.contains("1 passed"), "{passed}");
    }
}

#[tokio::test]
async fn a_published_policy_can_be_pushed_with_other_parameters_to_a_host_and_to_a_directory() {
    let host = patient_setup().start();
    let operator = host.operator();
    let desk = tempfile::tempdir().unwrap();
    let desk = desk.path();
    let derive = |version| {
        [
            "push",
            "--from",
            "baseline@1.0.0",
            "--version",
            version,
            "--set",
            "score.w_freshness=0.35",
        ]
    };
    let pushed = said_json(&mut at_host(&host, &operator, desk, &derive("1.1.0")));
    assert_eq!(label(&pushed), "baseline@1.1.0");
    let list = operator.get("/admin/v1/policies").await;
    let entry = |version: &str| {
        let entries = list["policies"].as_array().unwrap().iter();
        entries
            .clone()
            .find(|entry| label(entry) == format!("baseline@{version}"))
            .unwrap()
    };
    let mut expected = entry("1.0.0")["stages"].clone();
    expected["score"]["params"]["w_freshness"] = 0.35.into();
    assert_eq!(
        (&entry("1.1.0")["stages"], &entry("1.1.0")["limits"]),
        (&expected, &entry("1.0.0")["limits"])
    );

    // Push into the data directory of a running host, which picks the policy up. The same
    // behaviour has the same digest.
    let data_dir = host.data_dir.to_str().unwrap();
    let into = |arguments: &[&str]| {
        let mut command = nova_in(desk, &["policy"]);
        command.args(arguments).args(["--data-dir", data_dir]);
        command
    };
    let local = said_json(&mut into(&derive("1.2.0")));
    assert_eq!(
        (label(&local), &local["digest"]),
        ("baseline@1.2.0".to_owned(), &pushed["digest"])
    );
    said(&mut into(&["activate", "baseline@1.2.0"]));
    eventually(SOON, "the running host follows", || async {
        operator.active().await == "baseline@1.2.0"
    })
    .await;
    said(&mut into(&["rollback"]));
    eventually(SOON, "the running host follows", || async {
        operator.active().await == "baseline@1.0.0"
    })
    .await;
    let audit = operator.get("/admin/v1/audit?limit=1").await;
    assert_eq!(audit["entries"][0]["actor"], "cli");

    // Push into a data directory that no host has used yet.
    let elsewhere = desk.join("data");
    let mut command = nova_in(desk, &["policy"]);
    command
        .args(derive("1.1.0"))
        .env("NOVA_DATA_DIR", &elsewhere);
    assert_eq!(said_json(&mut command)["digest"], pushed["digest"]);

    for (set, words) in [
        ("score.w_speed=1", "w_speed"),
        ("score.w_freshness=1e300", "w_freshness"),
        ("speed.w_freshness=1", "stages are"),
        ("w_freshness", "STAGE.PARAM=VALUE"),
    ] {
        let refused = [
            "push",
            "--from",
            "baseline@1.0.0",
            "--version",
            "1.3.0",
            "--set",
            set,
        ];
        let why = complaint(&mut at_host(&host, &operator, desk, &refused));
        assert!(why.contains(words), "{set}: {why}");
    }
    assert!(
        !operator
            .published()
            .await
            .contains(&"baseline@1.3.0".to_owned())
    );
}

/// Returns the sub-commands that a help text lists.
fn commands_in(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = listed.map_while(|line| line.split_whitespace().next());
    names
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_command_has_a_help_text_with_an_example() {
    let directory = tempfile::tempdir().unwrap();
    let help = |path: &[&str]| said(nova_in(directory.path(), path).arg("--help"));
    let mut seen = Vec::new();
    for command in commands_in(&help(&[])) {
        let text = help(&[&command]);
        assert!(text.contains("Example"), "nova {command} --help");
        for step in commands_in(&text) {
            assert!(
                help(&[&command, &step]).contains("Example"),
                "nova {command} {step} --help"
            );
            seen.push(format!("{command} {step}"));
        }
        seen.push(command);
    }
    for known in [
        "serve",
        "token",
        "bucket",
        "policy new",
        "policy push",
        "experiment start",
    ] {
        assert!(
            seen.iter().any(|command| command == known),
            "{known} is not among {seen:?}"
        );
    }
}

#[test]
fn each_failure_is_one_line_that_names_its_cause() {
    let desk = tempfile::tempdir().unwrap();
    let desk = desk.path();
    std::fs::create_dir(desk.join("taken")).unwrap();
    std::fs::write(desk.join("noise.wasm"), "noise").unwrap();
    let bad = "name = \"bad\"\nversion = \"1.0.0\"\n[dedup]\nmodule = \"builtin:no\"\n[score]\nmodule = \"builtin:no\"\n[saturation]\nmodule = \"x.wasm\"\n";
    std::fs::create_dir(desk.join("bad")).unwrap();
    std::fs::write(desk.join("bad/policy.toml"), bad).unwrap();
    let nowhere = "http://127.0.0.1:1";
    let cases: [(&[&str], &str); 12] = [
        (&["policy", "new", "Bad Name"], "Bad Name"),
        (&["policy", "new", "1st"], "1st"),
        (&["policy", "new", "taken"], "taken"),
        (&["policy", "build", "taken"], "nova policy new"),
        (&["policy", "check", "taken"], "policy.toml"),
        (&["policy", "check", "noise.wasm"], "not WebAssembly"),
        (&["policy", "check", "bad"], "would be refused"),
        (
            &["policy", "push", "absent", "--data-dir", "data"],
            "absent",
        ),
        (
            &["policy", "activate", "nobody@1.0.0", "--data-dir", "data"],
            "nobody@1.0.0",
        ),
        (&["policy", "list", "--host", nowhere], "nova token"),
        (
            &["policy", "list", "--host", nowhere, "--token", "t"],
            nowhere,
        ),
        (&["experiment", "start", "recency"], "--host"),
    ];
    for (arguments, words) in cases {
        let why = complaint(&mut nova_in(desk, arguments));
        assert!(why.contains(words), "{arguments:?}: {why}");
    }
}

#[test]
fn nova_token_prints_a_token_and_nothing_else() {
    let desk = tempfile::tempdir().unwrap();
    let token = |arguments: &[&str]| {
        let printed = said(nova_in(desk.path(), &["token", "--data-dir", "data"]).args(arguments));
        assert_eq!(printed.lines().count(), 1);
        printed.trim().to_owned()
    };
    let viewer = token(&["--user", "7"]);
    assert_eq!(viewer.split('.').count(), 3, "{viewer}");
    assert_ne!(
        viewer,
        token(&["--user", "7", "--role", "operator", "--audience", "admin"])
    );
    let printed = said_json(&mut nova_in(
        desk.path(),
        &["token", "--user", "7", "--data-dir", "data"],
    ));
    assert_eq!(text(&printed["token"]).split('.').count(), 3);
}

#[test]
fn bench_compares_a_module_with_baseline_by_stage_and_by_number_of_candidates() {
    let desk = tempfile::tempdir().unwrap();
    let module = desk.path().join("timeline_scorer.wasm");
    std::fs::write(
        &module,
        crate::harness::shipped_module("timeline_scorer.wasm"),
    )
    .unwrap();
    let bench = ["policy", "bench", "timeline_scorer.wasm", "--calls", "2"];
    let measured = said_json(&mut nova_in(desk.path(), &bench));
    let sizes = measured["report"]["sizes"].as_array().unwrap();
    assert_eq!(
        sizes.len(),
        measured["report"]["candidates"].as_array().unwrap().len()
    );
    let fuel =
        |at: usize, stage: &str, side: &str| sizes[at][stage][side]["fuel"].as_u64().unwrap();
    for at in 0..sizes.len() {
        // The stages not provided by the module are those of baseline, and fuel is
        // deterministic.
        for same in ["dedup", "saturation"] {
            assert_eq!(fuel(at, same, "policy"), fuel(at, same, "baseline"));
        }
        assert_ne!(fuel(at, "score", "policy"), fuel(at, "score", "baseline"));
    }
    assert!(fuel(5, "score", "policy") > fuel(0, "score", "policy"));
    let table = said(&mut nova_in(desk.path(), &bench));
    for words in ["saturation", "candidates", "5000 |###", "fuel grows as n^"] {
        assert!(table.contains(words), "{table}");
    }
}

#[test]
fn a_refused_policy_gets_every_reason_as_json_and_in_one_line() {
    let desk = tempfile::tempdir().unwrap();
    let file = "misbehaves_as_told.wasm";
    std::fs::write(desk.path().join(file), crate::harness::guest(file)).unwrap();
    let output = nova_in(desk.path(), &["policy", "check", file, "--json"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let error = &answer["errors"][0];
    assert_eq!(
        (&error["code"], &error["stage"]),
        (&json!("parameter_range"), &json!("score"))
    );
    let line = complaint(&mut nova_in(desk.path(), &["policy", "check", file]));
    assert!(line.contains("score.params.divisor = 0"), "{line}");
}
