//! Imports and exports of a component, read with the parser alone. What is refused here is never
//! compiled.

use super::ModuleError;
use super::world::stage_of;
use wasmparser::{Parser, Payload};

/// Names of each kind that are read. A policy has one export and no import.
const NAMES_MAX: usize = 16;

/// Checks that the component imports nothing and exports a stage.
///
/// # Errors
/// Fails if it does not, or if the bytes are not valid WebAssembly.
pub fn check(bytes: &[u8]) -> Result<(), ModuleError> {
    let (imports, exports) =
        names(bytes).map_err(|error| ModuleError::Invalid(error.to_string()))?;
    stage_of(imports, exports).map(drop)
}

/// Returns the names that the outermost component imports and exports.
fn names(bytes: &[u8]) -> wasmparser::Result<(Vec<String>, Vec<String>)> {
    let (mut imports, mut exports, mut nested) = (Vec::new(), Vec::new(), 0_usize);
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => nested += 1,
            Payload::End(_) => nested = nested.saturating_sub(1),
            Payload::ComponentImportSection(section) if nested == 0 => {
                for import in section {
                    keep(&mut imports, import?.name.name);
                }
            }
            Payload::ComponentExportSection(section) if nested == 0 => {
                for export in section {
                    keep(&mut exports, export?.name.name);
                }
            }
            _ => {}
        }
    }
    Ok((imports, exports))
}

fn keep(names: &mut Vec<String>, name: &str) {
    if names.len() < NAMES_MAX {
        names.push(name.chars().take(100).collect());
    }
}
