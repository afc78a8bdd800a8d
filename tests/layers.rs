//! The layers of the tree, as rules with their reasons: which crate may depend on which, which
//! module may use which, and no import cycles. A rule that hinders you is changed here, with a
//! reason that a reviewer can judge.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "layers/modules.rs"]
mod modules;
#[path = "layers/source.rs"]
mod source;
#[path = "layers/tokens.rs"]
mod tokens;

use modules::Crate;
use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// Crate, its folder, and the crates of this workspace that it may depend on.
const CRATES: &[(&str, &str, &[&str])] = &[
    ("nova-model", "host/model", &[]),
    ("nova-support", "host/support", &["nova-model"]),
    (
        "nova-policy",
        "host/policy",
        &["nova-model", "nova-support"],
    ),
    (
        "nova-stores",
        "host/stores",
        &["nova-model", "nova-support"],
    ),
    (
        "nova-control",
        "host/control",
        &["nova-model", "nova-support", "nova-policy", "nova-stores"],
    ),
    (
        "nova",
        "host",
        &[
            "nova-model",
            "nova-support",
            "nova-policy",
            "nova-stores",
            "nova-control",
        ],
    ),
];

/// Dependency, the only crate that may have it, and the reason.
const CONFINED: &[(&str, &str, &str)] = &[
    (
        "wasmtime",
        "nova-policy",
        "only the policy crate runs guests",
    ),
    ("sqlx", "nova-stores", "SQL stays behind the ports"),
    ("clickhouse", "nova-stores", "SQL stays behind the ports"),
    ("redis", "nova-stores", "the caches stay behind the ports"),
    (
        "rdkafka",
        "nova-stores",
        "the broker stays behind the ports",
    ),
    ("axum", "nova", "HTTP is the outermost layer"),
];

/// Module of the host crate, modules that it must not use, and the reason.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    (
        "feed",
        &["app", "http", "jobs", "commands", "wiring", "host"],
        "the feed gets what it needs as arguments, so that it runs without a host",
    ),
    (
        "events",
        OUTER,
        "taking in events is independent of how a host is put together",
    ),
    (
        "cdc",
        OUTER,
        "applying captured changes is independent of how a host is put together",
    ),
    (
        "experiments",
        OUTER,
        "recording exposures is independent of how a host is put together",
    ),
    (
        "discover",
        OUTER,
        "lists are made the same way for routes, jobs and tests",
    ),
    (
        "replay",
        OUTER,
        "a replay runs without a host, on another machine",
    ),
    (
        "http",
        &["commands", "wiring", "host"],
        "a route answers from the app that it is given and starts nothing",
    ),
    (
        "jobs",
        &["http", "commands"],
        "a periodic job serves no request and reads no command line",
    ),
    (
        "wiring",
        &["http", "commands"],
        "the wiring makes stores and serves nothing",
    ),
    (
        "host",
        &["commands"],
        "a host is started by a command and by tests alike",
    ),
];
const OUTER: &[&str] = &["app", "http", "commands", "wiring", "host", "jobs"];

/// External crate, the only modules of the host crate that may use it, and the reason.
const ONLY: &[(&str, &[&str], &str)] = &[
    (
        "axum",
        &["http"],
        "other modules know neither requests nor responses",
    ),
    ("clap", &["commands"], "other modules know no command line"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Lists the dependencies of a manifest, and the section that each is in.
fn dependencies(manifest: &str) -> Vec<(String, String)> {
    let (mut section, mut found) = (String::new(), Vec::new());
    for line in manifest.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_matches(['[', ']']).to_owned();
            // A dependency may also be a section of its own: [dependencies.NAME].
            if let Some((kind, name)) = section.rsplit_once("dependencies.") {
                found.push((name.to_owned(), format!("{kind}dependencies")));
            }
        } else if section.ends_with("dependencies")
            && let Some((name, _)) = line.split_once(['=', '.'])
            && !line.starts_with('#')
        {
            found.push((name.trim().to_owned(), section.clone()));
        }
    }
    found
}

fn refuse(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn no_crate_depends_on_a_crate_above_it_or_on_a_library_confined_to_another() {
    let mut violations = Vec::new();
    for (name, folder, allowed) in CRATES {
        let path = root().join(folder).join("Cargo.toml");
        for (dependency, section) in dependencies(&read_to_string(path).unwrap()) {
            let is_internal = CRATES.iter().any(|(name, ..)| *name == dependency);
            if is_internal && !allowed.contains(&dependency.as_str()) {
                violations.push(format!(
                    "{name} must not depend on {dependency} ({section})"
                ));
            }
            // The integration tests and the load run ask the servers themselves.
            let is_excepted = *name == "nova" && section == "dev-dependencies";
            let confined = CONFINED.iter().find(|(library, ..)| *library == dependency);
            if let Some((_, owner, why)) = confined
                && owner != name
                && !is_excepted
            {
                violations.push(format!(
                    "{name} must not depend on {dependency} ({section}), only {owner} may: {why}"
                ));
            }
        }
    }
    refuse(&violations);
}

#[test]
fn no_files_import_each_other_in_a_cycle() {
    let mut violations = Vec::new();
    for (_, folder, _) in CRATES {
        for cycle in Crate::read(&root().join(folder).join("src/lib.rs")).cycles() {
            violations.push(format!(
                "{folder}/src, an import cycle:\n  {}",
                cycle.join("\n  ")
            ));
        }
    }
    refuse(&violations);
}

#[test]
fn the_modules_of_the_host_crate_use_only_what_is_below_them() {
    let host = Crate::read(&root().join("host/src/lib.rs"));
    let mut violations = Vec::new();
    for (file, module, path) in host.uses() {
        let user = module.get(1).map_or("lib", String::as_str);
        let used: Vec<&str> = path.segments.iter().map(String::as_str).collect();
        let forbidden = FORBIDDEN.iter().filter(|(module, ..)| *module == user);
        for (_, modules, why) in forbidden {
            if used[0] == "crate" && used.get(1).is_some_and(|used| modules.contains(used)) {
                let (path, line) = (used.join("::"), path.line);
                violations.push(format!(
                    "host/src/{file}:{line}: {user} must not use {path}: {why}"
                ));
            }
        }
        for (library, modules, why) in ONLY {
            if used[0] == *library && !modules.contains(&user) {
                let line = path.line;
                violations.push(format!(
                    "host/src/{file}:{line}: {user} must not use {library}: {why}"
                ));
            }
        }
    }
    refuse(&violations);
}

#[test]
fn a_table_names_only_crates_and_modules_that_exist() {
    let host = Crate::read(&root().join("host/src/lib.rs"));
    let named = FORBIDDEN
        .iter()
        .flat_map(|(module, used, _)| used.iter().chain([module]));
    let named = named.chain(ONLY.iter().flat_map(|(_, modules, _)| modules.iter()));
    for module in named {
        assert!(
            host.has(module),
            "there is no module `{module}` in host/src"
        );
    }
    let folders = std::fs::read_dir(root().join("host")).unwrap().flatten();
    let crates = folders.filter(|folder| folder.path().join("Cargo.toml").is_file());
    assert_eq!(
        crates.count(),
        CRATES.len() - 1,
        "a crate under host/ is not in CRATES"
    );
}

#[test]
fn dependencies_are_found_in_every_form() {
    let manifest = "[package]\nname = \"x\"\n[dependencies]\na.workspace = true\n# b = \"1\"\n\
        c = { path = \"../c\" }\n[dev-dependencies.d]\nversion = \"1\"\n\
        [target.'cfg(unix)'.dependencies]\ne = \"1\"\n";
    let names = dependencies(manifest).into_iter().map(|(name, _)| name);
    assert_eq!(names.collect::<Vec<_>>(), ["a", "c", "d", "e"]);
}
