//! What commands do if nobody reads their output, or if it cannot be written.

use crate::harness::{Community, Host};
use crate::services::nova;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

/// The status that a shell reports for a program that SIGPIPE ended.
const CLOSED_PIPE: i32 = 141;

/// Returns the end of a pipe whose reader is gone.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// Runs a command with this output and returns its status and what it wrote to standard error.
fn run_into(mut command: Command, output: Stdio) -> (ExitStatus, String) {
    let mut child = command
        .stdout(output)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    (child.wait().unwrap(), said)
}

/// Commands that print something on this data directory, each in every form of its output.
fn commands(data_dir: &Path, host: &Host, files: &Path) -> Vec<Command> {
    let operator = host.admin_token("operator");
    let embedded: &[&[&str]] = &[
        &["token", "--user", "1"],
        &["bucket", "--seed", "a", "--unit", "1"],
        &["policy", "list"],
        &["audit"],
        &["audit", "verify"],
        &["import", files.to_str().unwrap()],
    ];
    let remote: &[&[&str]] = &[
        &["policy", "list"],
        &["policy", "status"],
        &["policy", "explain", "--user", "7"],
        &["policy", "activate", "timeline@1.0.0"],
        &["policy", "rollback"],
        &["audit"],
        &["audit", "verify"],
    ];
    let mut all = Vec::new();
    for json in [false, true] {
        for arguments in embedded {
            let mut command = nova();
            command.args(*arguments).env("NOVA_DATA_DIR", data_dir);
            all.push((command, json));
        }
        for arguments in remote {
            let mut command = nova();
            command
                .args(*arguments)
                .env("NOVA_HOST", &host.url)
                .env("NOVA_TOKEN", &operator);
            all.push((command, json));
        }
    }
    let with_json = all.into_iter().map(|(mut command, json)| {
        if json {
            command.arg("--json");
        }
        command
    });
    with_json.collect()
}

#[test]
fn a_closed_pipe_ends_a_command_quietly_and_a_full_disk_is_an_error() {
    let host = Host::with_community();
    let (files, directory) = (Community::small(), tempfile::tempdir().unwrap());
    let data_dir = directory.path();
    files.import(data_dir, &[]);
    // The first token says that it generated a key.
    let mut token = nova();
    token
        .args(["token", "--user", "1"])
        .env("NOVA_DATA_DIR", data_dir);
    assert!(token.output().unwrap().status.success());
    for command in commands(data_dir, &host, files.path()) {
        let name = format!("{command:?}");
        let (status, said) = run_into(command, closed_pipe());
        assert_eq!(
            (status.code(), said.as_str()),
            (Some(CLOSED_PIPE), ""),
            "{name}"
        );
    }
    for command in commands(data_dir, &host, files.path()) {
        let name = format!("{command:?}");
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (status, said) = run_into(command, full.into());
        assert_eq!(status.code(), Some(1), "{name}: {said}");
        assert!(
            said.contains("could not write the output"),
            "{name}: {said}"
        );
        assert_eq!(said.trim_end().lines().count(), 1, "{name}: {said}");
    }
}

#[test]
fn nobody_reading_standard_error_changes_no_outcome() {
    let directory = tempfile::tempdir().unwrap();
    let status = |arguments: &[&str]| {
        let mut command = nova();
        command
            .args(arguments)
            .env("NOVA_DATA_DIR", directory.path());
        command.stdout(Stdio::null()).stderr(closed_pipe());
        command.status().unwrap().code()
    };
    // It says that it generated a key.
    assert_eq!(status(&["token", "--user", "1"]), Some(0));
    assert_eq!(status(&["policy", "check", "/nowhere"]), Some(1));
    assert_eq!(status(&["import", "/nowhere"]), Some(1));
}

#[test]
fn help_for_nobody_ends_quietly() {
    for arguments in [&["--help"][..], &["policy", "push", "--help"]] {
        let mut command = nova();
        command.args(arguments);
        let (status, said) = run_into(command, closed_pipe());
        assert!(
            !said.contains("panicked") && status.code() != Some(101),
            "{said}"
        );
    }
}
