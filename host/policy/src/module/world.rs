//! The three worlds as the host calls them: linking, instances, and the conversion of arguments
//! and descriptions. A component that imports anything is refused here. The generated types of the
//! worlds differ only in their paths.

use super::{Description, ModuleError, Parameter};
use crate::bindings::{deduper, saturator, scorer};
use crate::sandbox::Sandbox;
use nova_model::artifact::Stage;
use nova_policy_sdk::{Candidates, Ranked, Request};
use wasmtime::Store;
use wasmtime::component::{Component, InstancePre};

/// A generated, pre-linked world.
pub(super) trait World: Sized + Send + Sync {
    type Instance: Send + 'static;
    const STAGE: Stage;

    fn link(pre: InstancePre<Sandbox>) -> wasmtime::Result<Self>;
    fn instantiate(&self, store: &mut Store<Sandbox>) -> wasmtime::Result<Self::Instance>;
    fn describe(
        store: &mut Store<Sandbox>,
        instance: &Self::Instance,
    ) -> wasmtime::Result<Description>;
}

macro_rules! world {
    ($stage:ident: $world:ident, $pre:ident, $instance:ident, $interface:ident, $exports:ident) => {
        impl World for $world::$pre<Sandbox> {
            type Instance = $world::$instance;
            const STAGE: Stage = Stage::$stage;

            fn link(pre: InstancePre<Sandbox>) -> wasmtime::Result<Self> {
                Self::new(pre)
            }

            fn instantiate(&self, store: &mut Store<Sandbox>) -> wasmtime::Result<Self::Instance> {
                <$world::$pre<Sandbox>>::instantiate(self, store)
            }

            fn describe(
                store: &mut Store<Sandbox>,
                instance: &Self::Instance,
            ) -> wasmtime::Result<Description> {
                let described = instance.$exports().call_describe(store)?;
                let parameter =
                    |p: $world::exports::nova::policy::$interface::Parameter| Parameter {
                        name: p.name,
                        default: p.default,
                        min: p.min,
                        max: p.max,
                        doc: p.doc,
                    };
                Ok(Description {
                    name: described.name,
                    version: described.version,
                    features: described.features,
                    parameters: described.parameters.into_iter().map(parameter).collect(),
                    explains: described.explains,
                })
            }
        }

        impl From<&Request> for $world::exports::nova::policy::$interface::Request {
            fn from(request: &Request) -> Self {
                Self {
                    user_id: request.user_id,
                    now_ms: request.now_ms,
                    seed: request.seed,
                    limit: request.limit,
                }
            }
        }
    };
}

macro_rules! rows {
    ($generated:ty, $rows:ident { $($column:ident),+ }) => {
        impl<'a> From<&$rows<'a>> for $generated {
            fn from(rows: &$rows<'a>) -> Self {
                Self { $($column: rows.$column),+ }
            }
        }
    };
}

world!(Dedup: deduper, DeduperPre, Deduper, dedup, nova_policy_dedup);
world!(Score: scorer, ScorerPre, Scorer, score, nova_policy_score);
world!(Saturation: saturator, SaturatorPre, Saturator, saturation, nova_policy_saturation);

rows!(
    deduper::exports::nova::policy::dedup::Candidates<'a>,
    Candidates {
        post_ids,
        author_ids,
        created_at_ms,
        features
    }
);
rows!(
    scorer::exports::nova::policy::score::Candidates<'a>,
    Candidates {
        post_ids,
        author_ids,
        created_at_ms,
        features
    }
);
rows!(
    saturator::exports::nova::policy::saturation::Ranked<'a>,
    Ranked {
        post_ids,
        author_ids,
        created_at_ms,
        features,
        scores
    }
);

/// Checks that the component imports nothing and returns the stage whose interface it exports.
pub(super) fn exported_stage(
    engine: &wasmtime::Engine,
    component: &Component,
) -> Result<Stage, ModuleError> {
    let ty = component.component_type();
    let imports: Vec<String> = ty
        .imports(engine)
        .map(|(name, _)| name.to_owned())
        .collect();
    let exports = ty.exports(engine).map(|(name, _)| name.to_owned());
    stage_of(imports, exports.collect())
}

/// Returns the stage of a component with these imports and exports.
pub(super) fn stage_of(imports: Vec<String>, exports: Vec<String>) -> Result<Stage, ModuleError> {
    if !imports.is_empty() {
        return Err(ModuleError::Imports(imports));
    }
    Stage::ALL
        .into_iter()
        .find(|stage| exports.iter().any(|export| export == stage.interface()))
        .ok_or_else(|| other_abi(&exports).unwrap_or(ModuleError::WrongWorld(exports)))
}

/// Returns an error if a stage's interface is exported in an ABI version that this host does not
/// support.
fn other_abi(exports: &[String]) -> Option<ModuleError> {
    Stage::ALL.into_iter().find_map(|stage| {
        let (interface, offered) = stage.interface().split_once('@')?;
        let (_, found) = exports
            .iter()
            .filter_map(|export| export.split_once('@'))
            .find(|(export, _)| *export == interface)?;
        Some(ModuleError::AbiVersion {
            interface,
            found: found.to_owned(),
            offered,
        })
    })
}
