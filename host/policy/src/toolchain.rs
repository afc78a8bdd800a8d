//! The build of a policy crate into a component: cargo for `wasm32-unknown-unknown`, then the
//! component encoding. The build script includes this file too, so bundled policies and those of
//! authors are built in the same way.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const TARGET: &str = "wasm32-unknown-unknown";

/// Compiler flags of policies, in addition to their profile.
///
/// The cost of a fresh instance is the cost of mapping and clearing its memory, so the stack is
/// 64 KiB instead of the linker's 1 MiB. Fixed-width SIMD gives the same bits on every processor.
const RUSTFLAGS: [&str; 2] = ["-Clink-arg=-zstack-size=65536", "-Ctarget-feature=+simd128"];

/// The arguments of one cargo run that builds components' core modules.
#[derive(Debug, Clone, Copy)]
pub struct ComponentBuild<'a> {
    /// Directory of the manifest.
    pub directory: &'a Path,
    /// Directory that cargo runs in. It decides which `.cargo/config.toml` and which toolchain
    /// apply.
    pub working_directory: &'a Path,
    pub target: &'a Path,
    pub profile: &'a str,
    pub arguments: &'a [&'a str],
}

/// Builds core modules and returns the directory they are in.
///
/// # Errors
/// Fails with one line that says what to do if the target is missing, or with the compiler's
/// output.
pub fn build_component_modules(build: ComponentBuild<'_>) -> Result<PathBuf, String> {
    require_target(build.directory)?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // These variables describe the outer cargo's own build and are wrong for another target.
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
            rustflags(build.directory).join("\u{1f}"),
        )
        .current_dir(build.working_directory)
        .arg("build")
        .arg("--manifest-path")
        .arg(build.directory.join("Cargo.toml"))
        .args(["--profile", build.profile, "--target", TARGET])
        .args(build.arguments)
        .arg("--target-dir")
        .arg(build.target)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cargo could not be started: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "building the policy in {} failed:\n{}",
            build.directory.display(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        ));
    }
    let profile_directory = if build.profile == "dev" {
        "debug"
    } else {
        build.profile
    };
    Ok(build.target.join(TARGET).join(profile_directory))
}

/// Returns the flags, including those that remove this machine's directories from panic messages.
/// So the same sources give the same bytes, and the same digest, on every machine.
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

/// Checks that the standard library for the target is installed, because cargo's own message for
/// that is 20 lines long.
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
/// Fails if the file cannot be read or carries no valid world.
pub fn encode_component(module: &Path) -> Result<Vec<u8>, String> {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", module.display());
    let bytes = std::fs::read(module).map_err(|error| named(&error))?;
    wit_component::ComponentEncoder::default()
        .validate(true)
        .module(&bytes)
        .and_then(|encoder| encoder.encode())
        .map_err(|error| named(&format!("{error:#}")))
}
