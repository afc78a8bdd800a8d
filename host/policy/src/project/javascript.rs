//! The build of a JavaScript policy: componentize-js, from the policy's own node_modules, puts
//! SpiderMonkey with the policy loaded into a component.

use super::tool::{self, run};
use super::{BuildError, BuildProgress, Project};
use nova_model::artifact::Stage;
use std::path::Path;
use std::process::Command;

const COMPONENTIZE_JS_PACKAGE: &str = "@bytecodealliance/componentize-js";
/// Version that a new policy's package.json requires.
pub const COMPONENTIZE_JS: &str = "0.23.0";

const LOCK: &str = "package-lock.json";
const GET_NODE: &str = "install Node.js 18 or newer (Debian: apt-get install nodejs npm)";

/// Prints the policy's stage. Loading the policy natively first shows its errors at once, with
/// line numbers; in the component build they would appear late.
const FIND_STAGE: &str = r#"const { policy } = await import("./policy.js");
if (policy === undefined) throw new Error("policy.js exports no `policy`");
console.log(policy.stage);"#;

/// Runs componentize-js. The features are disabled because each would import something. The path of
/// the WIT must be absolute, because the tool reads it from another directory.
const COMPONENTIZE: &str = r#"import { componentize } from "@bytecodealliance/componentize-js";
import { writeFile } from "node:fs/promises";
import { resolve } from "node:path";
const [worldName, staged, to] = process.argv.slice(1);
const { component } = await componentize({
  sourcePath: resolve(staged, "component.js"),
  witPath: resolve(staged, "nova-policy/wit"),
  worldName,
  disableFeatures: ["stdio", "random", "clocks", "http", "fetch-event"],
});
await writeFile(to, component);"#;

pub fn build(project: &Project, progress: BuildProgress<'_>) -> Result<Vec<u8>, BuildError> {
    let directory = &project.directory;
    if directory.to_string_lossy().contains(char::is_whitespace) {
        return Err(BuildError::Unsuitable(format!(
            "componentize-js cannot build in a path with a space in it; move {} elsewhere",
            directory.display()
        )));
    }
    install(directory, progress)?;
    let stage = tool::stage(&node(directory, FIND_STAGE, &[], "loading policy.js")?)?;
    progress("compiling, which takes about ten seconds");
    let staged = tool::stage_sources(directory)?;
    tool::write(&staged.join("component.js"), component(project, stage))?;
    let to = staged.join(project.module_file());
    let arguments = [tool::world(stage), tool::STAGED, &to.to_string_lossy()];
    node(directory, COMPONENTIZE, &arguments, "componentize-js")?;
    std::fs::read(&to).map_err(|error| BuildError::file(&to, error))
}

fn node(
    directory: &Path,
    script: &str,
    arguments: &[&str],
    what: &'static str,
) -> Result<String, BuildError> {
    let mut node = Command::new("node");
    node.current_dir(directory)
        .args(["--input-type=module", "--eval", script, "--"])
        .args(arguments);
    run(&mut node, what, GET_NODE)
}

/// Fills node_modules, once for each content of the lock file.
fn install(directory: &Path, progress: BuildProgress<'_>) -> Result<(), BuildError> {
    let lock = directory.join(LOCK);
    let wanted = std::fs::read(&lock).map_err(|error| BuildError::file(&lock, error))?;
    let installed = directory.join("node_modules/.nova-package-lock.json");
    if std::fs::read(&installed).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    let mut look = Command::new("node");
    run(look.arg("--version"), "node --version", GET_NODE)?;
    progress(&format!(
        "installing {COMPONENTIZE_JS_PACKAGE}@{COMPONENTIZE_JS} into node_modules, once"
    ));
    let mut npm = Command::new("npm");
    // The build needs no package's scripts, so npm runs none.
    npm.current_dir(directory).args([
        "ci",
        "--include=dev",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
    ]);
    run(&mut npm, "npm ci", GET_NODE)?;
    tool::write(&installed, wanted)
}

/// Returns the entry file for componentize-js, with an export named after the interface.
fn component(project: &Project, stage: Stage) -> String {
    let (interface, function) = match stage {
        Stage::Dedup => ("dedup", "dedup"),
        Stage::Score => ("score", "score"),
        Stage::Saturation => ("saturation", "saturate"),
    };
    format!(
        "import {{ policy }} from \"./policy.js\";\n\nexport const {interface} = {{\n  describe: () => policy.describe({name:?}, {version:?}),\n  {function}: (request, params, candidates) => policy.{function}(request, params, candidates),\n  explain: (request, params, candidates) => policy.explain(request, params, candidates),\n}};\n",
        name = project.name,
        version = project.version,
    )
}
