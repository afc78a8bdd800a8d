//! The description that a module gives of itself, and the checks on it.

use super::ModuleError;
use nova_model::features::Feature;
use serde::Serialize;

/// Bounds on a module's description.
const DESCRIPTION_ENTRIES_MAX: usize = 256;
const DESCRIPTION_TEXT_BYTES_MAX: usize = 1_024;

#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Description {
    pub name: String,
    pub version: String,
    pub features: Vec<String>,
    pub parameters: Vec<Parameter>,
    pub explains: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Parameter {
    pub name: String,
    pub default: f64,
    pub min: f64,
    pub max: f64,
    pub doc: String,
}

/// Checks the description and returns the features that the module reads.
pub(super) fn check(description: &Description) -> Result<Vec<Feature>, ModuleError> {
    let refuse = |reason: String| Err(ModuleError::Description(reason));
    let texts = [&description.name, &description.version].into_iter();
    let texts = texts
        .chain(&description.features)
        .chain(&description.explains);
    let texts = texts.chain(
        description
            .parameters
            .iter()
            .flat_map(|p| [&p.name, &p.doc]),
    );
    if let Some(long) = texts
        .map(String::len)
        .find(|&bytes| bytes > DESCRIPTION_TEXT_BYTES_MAX)
    {
        return refuse(format!(
            "a text has {long} bytes; {DESCRIPTION_TEXT_BYTES_MAX} are allowed"
        ));
    }
    let sizes = [
        description.features.len(),
        description.parameters.len(),
        description.explains.len(),
    ];
    if sizes.iter().any(|&size| size > DESCRIPTION_ENTRIES_MAX) {
        return refuse(format!(
            "a list has more than {DESCRIPTION_ENTRIES_MAX} entries"
        ));
    }
    if semver::Version::parse(&description.version).is_err() {
        return refuse(format!(
            "version `{}` is not a semantic version",
            description.version
        ));
    }
    for (at, parameter) in description.parameters.iter().enumerate() {
        let Parameter {
            name,
            default,
            min,
            max,
            ..
        } = parameter;
        if description.parameters[..at]
            .iter()
            .any(|other| other.name == *name)
        {
            return refuse(format!("parameter `{name}` is declared twice"));
        }
        if !(min.is_finite() && max.is_finite() && min <= default && default <= max) {
            return refuse(format!(
                "parameter `{name}`: default {default} is not within {min} … {max}"
            ));
        }
    }
    let unknown = description
        .features
        .iter()
        .find(|name| Feature::parse(name).is_none());
    if let Some(name) = unknown {
        let offered = Feature::ALL
            .iter()
            .map(|feature| feature.name())
            .collect::<Vec<_>>()
            .join(", ");
        return refuse(format!(
            "unknown feature `{name}`; this host offers {offered}"
        ));
    }
    Ok(description
        .features
        .iter()
        .filter_map(|name| Feature::parse(name))
        .collect())
}
