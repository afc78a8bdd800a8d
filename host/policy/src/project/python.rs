//! The build of a Python policy: componentize-py, in the policy's own virtual environment, puts
//! CPython with the policy loaded into a component.

use super::tool::{self, run};
use super::{BuildError, BuildProgress, Project};
use nova_model::artifact::Stage;
use std::path::Path;
use std::process::Command;

/// Requirement that a new policy's requirements.txt contains.
pub const COMPONENTIZE_PY: &str = "componentize-py==0.25.0";

const REQUIREMENTS: &str = "requirements.txt";
const GET_PYTHON: &str =
    "install Python 3.10 or newer, with its venv module (Debian: apt-get install python3-venv)";

/// Checks for Python 3.10, the oldest with a componentize-py. Under an older Python, pip says
/// only that it finds no version.
const CHECK_PYTHON: &str = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))";

/// Prints the policy's stage. Loading the policy natively first shows its errors at once, with
/// line numbers; in the component build they would appear late.
const FIND_STAGE: &str = "from policy import policy; print(policy.stage)";

pub fn build(project: &Project, progress: BuildProgress<'_>) -> Result<Vec<u8>, BuildError> {
    let directory = &project.directory;
    let environment = directory.join(".venv");
    install(directory, &environment, progress)?;
    let python = environment.join("bin/python");
    let printed = run(
        in_environment(&python, &environment)
            .current_dir(directory)
            .args(["-c", FIND_STAGE]),
        "loading policy.py",
        GET_PYTHON,
    )?;
    let stage = tool::stage(&printed)?;
    progress("compiling, which takes about ten seconds");
    let staged = tool::stage_sources(directory)?;
    tool::write(&staged.join("component.py"), component(project, stage))?;
    let to = staged.join(project.module_file());
    let mut componentize = in_environment(&environment.join("bin/componentize-py"), &environment);
    componentize
        .current_dir(&staged)
        .args(["--quiet", "--wit-path", "nova_policy/wit", "--world"])
        .arg(tool::world(stage))
        .args(["componentize", "component", "--stub-wasi"])
        .args(["--python-path", ".", "--output"])
        .arg(&to);
    run(&mut componentize, "componentize-py", GET_PYTHON)?;
    std::fs::read(&to).map_err(|error| BuildError::file(&to, error))
}

/// Creates the environment, once for each content of requirements.txt.
fn install(
    directory: &Path,
    environment: &Path,
    progress: BuildProgress<'_>,
) -> Result<(), BuildError> {
    let requirements = directory.join(REQUIREMENTS);
    let wanted =
        std::fs::read(&requirements).map_err(|error| BuildError::file(&requirements, error))?;
    let installed = environment.join("nova-requirements.txt");
    if std::fs::read(&installed).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    let mut check = Command::new("python3");
    run(check.args(["-c", CHECK_PYTHON]), "python3", GET_PYTHON).map_err(|error| match error {
        BuildError::Failed { .. } => {
            BuildError::Unsuitable(format!("this python3 cannot build policies; {GET_PYTHON}"))
        }
        other => other,
    })?;
    progress(&format!("installing {COMPONENTIZE_PY} into .venv, once"));
    let mut make = Command::new("python3");
    run(
        make.args(["-m", "venv", "--clear"]).arg(environment),
        "python3 -m venv",
        GET_PYTHON,
    )?;
    let mut pip = in_environment(&environment.join("bin/python"), environment);
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ])
    .arg("--requirement")
    .arg(&requirements);
    run(&mut pip, "pip install", GET_PYTHON)?;
    tool::write(&installed, wanted)
}

/// Returns a command for a program in the environment, which sees only the packages installed
/// there.
fn in_environment(program: &Path, environment: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env("VIRTUAL_ENV", environment)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env_remove("PYTHONPATH")
        .env_remove("PYTHONHOME");
    command
}

/// Returns the entry file for componentize-py, with a class named after the interface.
fn component(project: &Project, stage: Stage) -> String {
    let (class, function) = match stage {
        Stage::Dedup => ("Dedup", "dedup"),
        Stage::Score => ("Score", "score"),
        Stage::Saturation => ("Saturation", "saturate"),
    };
    format!(
        "from policy import policy\n\n\nclass {class}:\n    def describe(self):\n        return policy.describe({name:?}, {version:?})\n\n    def {function}(self, request, params, candidates):\n        return policy.{function}(request, params, candidates)\n\n    def explain(self, request, params, candidates):\n        return policy.explain(request, params, candidates)\n",
        name = project.name,
        version = project.version,
    )
}
