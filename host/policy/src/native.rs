//! The bundled policies compiled into the host as native code. They are the last step of the
//! fallback chain that still ranks when every module has failed, and the reference in
//! measurements of modules. They use the same crates as the bundled modules, so there is no
//! second implementation to maintain.

use super::ranking::Stages;
use nova_model::artifact::Stage;
use nova_model::failure::{FailureKind, PolicyFailure};
use nova_model::features::Feature;
use nova_policy_sdk::{Candidates, Description, Ranked, Request};
use std::sync::LazyLock;

/// The native copy of `baseline`, with default parameters.
#[derive(Debug, Clone)]
pub struct Native {
    stages: [NativeStage; 3],
}

#[derive(Debug, Clone)]
struct NativeStage {
    features: Vec<Feature>,
    params: Vec<f64>,
}

static NATIVE: LazyLock<Native> = LazyLock::new(|| Native {
    stages: [
        NativeStage::of(&seen_dedup::describe()),
        NativeStage::of(&weighted_scorer::describe()),
        NativeStage::of(&author_saturation::describe()),
    ],
});

impl NativeStage {
    fn of(description: &Description) -> Self {
        Self {
            features: description
                .features
                .iter()
                .filter_map(|name| Feature::parse(name))
                .collect(),
            params: description
                .parameters
                .iter()
                .map(|parameter| parameter.default)
                .collect(),
        }
    }
}

impl Native {
    pub fn get() -> &'static Native {
        &NATIVE
    }

    fn stage(&self, stage: Stage) -> &NativeStage {
        &self.stages[stage as usize]
    }
}

impl Stages for Native {
    fn features(&self, stage: Stage) -> &[Feature] {
        &self.stage(stage).features
    }

    fn dedup(
        &self,
        request: &Request,
        candidates: &Candidates<'_>,
    ) -> Result<Vec<u32>, PolicyFailure> {
        Ok(seen_dedup::dedup(
            request,
            &self.stage(Stage::Dedup).params,
            candidates,
        ))
    }

    fn score(
        &self,
        request: &Request,
        candidates: &Candidates<'_>,
    ) -> Result<Vec<f32>, PolicyFailure> {
        Ok(weighted_scorer::score(
            request,
            &self.stage(Stage::Score).params,
            candidates,
        ))
    }

    fn saturate(&self, request: &Request, ranked: &Ranked<'_>) -> Result<Vec<u32>, PolicyFailure> {
        Ok(author_saturation::saturate(
            request,
            &self.stage(Stage::Saturation).params,
            ranked,
        ))
    }
}

/// Runs native code so that a panic in it becomes a policy failure instead of a lost request.
pub fn guarded<T>(
    run: impl FnOnce() -> Result<T, PolicyFailure> + std::panic::UnwindSafe,
) -> Result<T, PolicyFailure> {
    std::panic::catch_unwind(run).unwrap_or_else(|_| {
        Err(PolicyFailure::new(
            Stage::Score,
            FailureKind::Trap,
            "the native ranker panicked",
        ))
    })
}
