//! Reasons for refusing bytes as a module.

use crate::class_engine::root_cause;
use crate::compiler::CompileError;
use nova_model::failure::PolicyFailure;

/// Reason for refusing bytes as a module.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    #[error("not WebAssembly: the file does not begin with \\0asm")]
    NotWasm,
    #[error("the file is a core module, not a component; build it with `nova policy build`")]
    CoreModule,
    #[error("not a valid component: {0}")]
    Invalid(String),
    #[error("imports {}, but a policy imports nothing; remove the code that needs them", quoted(.0))]
    Imports(Vec<String>),
    #[error("wrong world: the component exports {}, but must export one of nova:policy/dedup, nova:policy/score, nova:policy/saturation @1.0.0", quoted(.0))]
    WrongWorld(Vec<String>),
    #[error(
        "implements {interface}@{found}, but this host supports {interface}@{offered}; build it with an SDK of that version"
    )]
    AbiVersion {
        interface: &'static str,
        found: String,
        offered: &'static str,
    },
    #[error("too complex: {0}")]
    TooComplex(String),
    #[error(transparent)]
    Uncompiled(CompileError),
    #[error("describe failed: {0}")]
    Describe(PolicyFailure),
    #[error("description: {0}")]
    Description(String),
}

impl ModuleError {
    /// Returns a stable code for programs.
    pub fn code(&self) -> &'static str {
        match self {
            ModuleError::NotWasm => "not_wasm",
            ModuleError::CoreModule => "core_module",
            ModuleError::Invalid(_) => "invalid_component",
            ModuleError::Imports(_) => "imports",
            ModuleError::WrongWorld(_) => "wrong_world",
            ModuleError::AbiVersion { .. } => "abi_version",
            ModuleError::TooComplex(_) => "too_complex",
            ModuleError::Uncompiled(_) => "compile_time",
            ModuleError::Describe(_) => "describe",
            ModuleError::Description(_) => "description",
        }
    }
}

impl From<CompileError> for ModuleError {
    fn from(error: CompileError) -> Self {
        match error {
            CompileError::Invalid(error) => ModuleError::Invalid(root_cause(&error)),
            other => ModuleError::Uncompiled(other),
        }
    }
}

fn quoted(names: &[String]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}
