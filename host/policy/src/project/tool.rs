//! Common parts of the builds in all languages: reading the project file and running a program.

use super::error::BuildError;
use super::language::Language;
use super::sources::Sources;
use nova_model::artifact::Stage;
use serde::Deserialize;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Directory of the copied sources, relative to the policy's directory.
pub const STAGED: &str = ".nova/source";

/// The fields that every project file has, under the same names.
#[derive(Deserialize)]
struct Named {
    name: String,
    version: String,
}

/// Reads name and version from the project file.
pub fn fields(file: &Path, language: Language) -> Result<(String, String), BuildError> {
    let text = std::fs::read_to_string(file).map_err(|error| BuildError::file(file, error))?;
    let named = match language {
        Language::Rust => in_table(&text, "package"),
        Language::Python => in_table(&text, "project"),
        Language::Javascript => {
            serde_json::from_str::<Named>(&text).map_err(|error| error.to_string())
        }
    };
    let Named { name, version } = named.map_err(|reason| BuildError::file(file, reason))?;
    // Name and version become part of a file name and of generated code.
    let plain = |text: &str, others: &str| {
        let mut letters = text.chars();
        !text.is_empty() && letters.all(|c| c.is_ascii_alphanumeric() || others.contains(c))
    };
    if plain(&name, "-_") && plain(&version, "-.+") {
        return Ok((name, version));
    }
    let reason = format!("name `{name}`, version `{version}`: use letters, digits and hyphens");
    Err(BuildError::file(file, reason))
}

fn in_table(text: &str, table: &str) -> Result<Named, String> {
    let mut file: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| error.to_string())?;
    let named = file
        .remove(table)
        .ok_or_else(|| format!("the table [{table}] is missing"))?;
    named
        .try_into()
        .map_err(|error: toml::de::Error| format!("[{table}]: {}", error.message()))
}

/// Runs a program to its end and returns its standard output.
pub fn run(
    command: &mut Command,
    what: &'static str,
    advice: &'static str,
) -> Result<String, BuildError> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| missing(command.get_program(), error, advice))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    let complaint = format!("{}{printed}", String::from_utf8_lossy(&output.stderr));
    Err(BuildError::Failed {
        what,
        output: complaint.trim_end().to_owned(),
    })
}

fn missing(program: &OsStr, reason: std::io::Error, advice: &'static str) -> BuildError {
    let program = program.to_string_lossy().into_owned();
    let reason = match reason.kind() {
        ErrorKind::NotFound => std::io::Error::other("it is not installed"),
        _ => reason,
    };
    BuildError::Missing {
        program,
        reason,
        advice,
    }
}

/// Parses the stage that the policy's own source declares, as printed by its interpreter.
pub fn stage(printed: &str) -> Result<Stage, BuildError> {
    let named = printed.trim();
    let stage = Stage::ALL.into_iter().find(|stage| stage.as_str() == named);
    stage.ok_or_else(|| {
        BuildError::Unsuitable(format!(
            "the policy's stage is `{named}`; it must be a scorer, a deduper or a saturator"
        ))
    })
}

/// Returns the name of the stage's WIT world.
pub fn world(stage: Stage) -> &'static str {
    match stage {
        Stage::Dedup => "deduper",
        Stage::Score => "scorer",
        Stage::Saturation => "saturator",
    }
}

/// Refuses a component with imports. The host would refuse it too, but here its author can still
/// fix it.
pub fn refuse_imports(bytes: &[u8]) -> Result<(), BuildError> {
    let unreadable =
        |error| BuildError::Unsuitable(format!("the compiled component is invalid: {error:#}"));
    let decoded = wit_component::decode(bytes).map_err(unreadable)?;
    let wit_component::DecodedWasm::Component(resolve, world) = decoded else {
        return Err(BuildError::Unsuitable(
            "the compiler produced a WIT package, not a component".to_owned(),
        ));
    };
    let imports = resolve.worlds[world].imports.keys();
    let imports: Vec<String> = imports.map(|key| resolve.name_world_key(key)).collect();
    if imports.is_empty() {
        Ok(())
    } else {
        Err(BuildError::Imports(imports))
    }
}

/// Copies the sources to a directory that the build may add files to. Sandboxed interpreters see
/// only this directory and follow no link out of it.
pub fn stage_sources(directory: &Path) -> Result<PathBuf, BuildError> {
    let staged = directory.join(STAGED);
    match std::fs::remove_dir_all(&staged) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(BuildError::file(&staged, error));
        }
        _ => {}
    }
    for source in Sources::read(directory)?.paths() {
        let to = staged.join(source.strip_prefix(directory).unwrap_or(source));
        let parent = to.parent().unwrap_or(&staged);
        std::fs::create_dir_all(parent)
            .and_then(|()| std::fs::copy(source, &to))
            .map_err(|error| BuildError::file(&to, error))?;
    }
    Ok(staged)
}

pub fn write(file: &Path, content: impl AsRef<[u8]>) -> Result<(), BuildError> {
    std::fs::write(file, content).map_err(|error| BuildError::file(file, error))
}
