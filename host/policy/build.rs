//! Builds `policies/` and `tests/guests/` to WebAssembly components, so that one `cargo build`
//! gives a host that contains `baseline` and test runs find their hostile guests.

#[path = "src/toolchain.rs"]
mod toolchain;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use toolchain::{ComponentBuild, build_component_modules, encode_component};

const POLICIES: [&str; 5] = [
    "weighted-scorer",
    "seen-dedup",
    "author-saturation",
    "timeline-scorer",
    "decay-saturation",
];

fn main() -> ExitCode {
    // Read at run time, not at compile time, because checkouts may share a target directory.
    let manifest_dir = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let root = Path::new(&manifest_dir).join("../..");
    for watched in [
        "policies",
        "wit",
        "tests/guests",
        "Cargo.lock",
        "rust-toolchain.toml",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/toolchain.rs");
    match build(&root) {
        Ok(out) => {
            println!("cargo::rustc-env=NOVA_COMPONENTS_DIR={}", out.display());
            ExitCode::SUCCESS
        }
        Err(reason) => {
            println!("cargo::error={reason}");
            ExitCode::FAILURE
        }
    }
}

fn build(root: &Path) -> Result<PathBuf, String> {
    let out = std::env::var_os("OUT_DIR")
        .map(PathBuf::from)
        .ok_or("OUT_DIR is not set")?;
    // This build needs its own target directory, because the outer build holds the lock of its
    // directory while this runs.
    let target = out.join("policies-target");
    let packages = POLICIES.iter().flat_map(|name| ["-p", name]).chain([
        "-p",
        "guests",
        "--lib",
        "--examples",
    ]);
    // Outside of the checkout, because its .cargo/config.toml names a wrapper of rustc by its
    // path, and cargo mixes that path into symbol names: the bytes of the modules would depend on
    // the directory of the checkout.
    let outside = root.join("..");
    let modules = build_component_modules(ComponentBuild {
        directory: root,
        working_directory: &outside,
        target: &target,
        profile: "policy",
        arguments: &packages.collect::<Vec<_>>(),
    })?;
    for (kind, directory) in [
        ("policies", modules.clone()),
        ("guests", modules.join("examples")),
    ] {
        encode_all(&directory, &out.join(kind))?;
    }
    Ok(out)
}

fn encode_all(from: &Path, to: &Path) -> Result<(), String> {
    std::fs::create_dir_all(to).map_err(|error| format!("{}: {error}", to.display()))?;
    let entries =
        std::fs::read_dir(from).map_err(|error| format!("{}: {error}", from.display()))?;
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let is_module = path
            .extension()
            .is_some_and(|extension| extension == "wasm");
        // Cargo leaves a second copy of each example, with a hash in its name.
        let is_copy = path
            .file_stem()
            .is_some_and(|stem| stem.to_string_lossy().contains('-'));
        let Some(name) = path
            .file_name()
            .filter(|name| is_module && !is_copy && *name != "guests.wasm")
        else {
            continue;
        };
        let component = encode_component(&path)?;
        let to = to.join(name);
        std::fs::write(&to, component).map_err(|error| format!("{}: {error}", to.display()))?;
    }
    Ok(())
}
