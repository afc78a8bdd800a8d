//! From a policy crate to a component: cargo for `wasm32-unknown-unknown`, then the component
//! encoding. The build script includes this file too, so shipped and authored policies are built alike.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const TARGET: &str = "wasm32-unknown-unknown";

/// How policies are compiled, beside their profile.
///
/// A fresh instance costs what its memory costs to map and to clear, so the stack is 64 KiB instead
/// of the linker's 1 MiB. Fixed-width SIMD gives the same bits on every processor.
const RUSTFLAGS: [&str; 2] = ["-Clink-arg=-zstack-size=65536", "-Ctarget-feature=+simd128"];

/// One run of cargo.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    pub directory: &'a Path,
    pub target: &'a Path,
    pub profile: &'a str,
    pub arguments: &'a [&'a str],
}

/// Builds core modules and returns the directory they are in.
///
/// # Errors
/// One line that says what to do: the target is missing, or what the compiler said.
pub fn build_component_modules(job: Job<'_>) -> Result<PathBuf, String> {
    require_target(job.directory)?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // An outer cargo describes its own build in these; they mean nothing good to another target.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let outer = (text.starts_with("CARGO_")
            && !text.starts_with("CARGO_HOME")
            && !text.starts_with("CARGO_NET")
            && !text.starts_with("CARGO_HTTP")
            && !text.starts_with("CARGO_REGISTR")
            && !text.starts_with("CARGO_SOURCE"))
            || text.starts_with("RUSTFLAGS")
            || text == "RUSTC_WRAPPER"
            || text == "RUSTC_WORKSPACE_WRAPPER";
        if outer {
            cargo.env_remove(name);
        }
    }
    let output = cargo
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            rustflags(job.directory).join("\u{1f}"),
        )
        .current_dir(job.directory)
        .args(["build", "--profile", job.profile, "--target", TARGET])
        .args(job.arguments)
        .arg("--target-dir")
        .arg(job.target)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cargo could not be started: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "building the policy in {} failed:\n{}",
            job.directory.display(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        ));
    }
    let profile_directory = if job.profile == "dev" {
        "debug"
    } else {
        job.profile
    };
    Ok(job.target.join(TARGET).join(profile_directory))
}

/// The flags, with the directories of this machine taken out of panic messages: the same sources
/// give the same bytes, and so the same digest, wherever they are built.
fn rustflags(directory: &Path) -> Vec<String> {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home =
        cargo_home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let sources = std::path::absolute(directory)
        .and_then(|path| path.canonicalize())
        .ok();
    let remap = [(cargo_home, "cargo"), (sources, "policy")];
    let remap = remap
        .into_iter()
        .filter_map(|(from, to)| Some(format!("--remap-path-prefix={}={to}", from?.display())));
    RUSTFLAGS
        .iter()
        .map(|flag| (*flag).to_owned())
        .chain(remap)
        .collect()
}

/// The standard library for the target must be installed; cargo's own message for that is 20 lines long.
fn require_target(directory: &Path) -> Result<(), String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .current_dir(directory)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .map_err(|error| {
            format!("rustc could not be started: {error}; install Rust from https://rustup.rs")
        })?;
    let libdir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let installed = output.status.success()
        && std::fs::read_dir(&libdir).is_ok_and(|mut entries| entries.next().is_some());
    if installed {
        return Ok(());
    }
    Err(format!(
        "the Rust target {TARGET} is missing; run: rustup target add {TARGET}"
    ))
}

/// Turns a core module that carries its WIT world into a component.
///
/// # Errors
/// When the file cannot be read or carries no valid world.
pub fn encode_component(module: &Path) -> Result<Vec<u8>, String> {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", module.display());
    let bytes = std::fs::read(module).map_err(|error| named(&error))?;
    wit_component::ComponentEncoder::default()
        .validate(true)
        .module(&bytes)
        .and_then(|encoder| encoder.encode())
        .map_err(|error| named(&format!("{error:#}")))
}
