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
    dedup: NativeStage<Deduper>,
    score: NativeStage<Scorer>,
    saturation: NativeStage<Saturator>,
}

/// A deduper as native code: the request, the parameter values and the candidates.
type Deduper = fn(&Request, &[f64], &Candidates<'_>) -> Vec<u32>;
/// A saturator as native code: the request, the parameter values and the ranked posts.
type Saturator = fn(&Request, &[f64], &Ranked<'_>) -> Vec<u32>;
/// A scorer as native code: the request, the parameter values and the candidates.
pub type Scorer = fn(&Request, &[f64], &Candidates<'_>) -> Vec<f32>;

#[derive(Debug, Clone)]
struct NativeStage<F> {
    run: F,
    features: Vec<Feature>,
    params: Vec<f64>,
}

static NATIVE: LazyLock<Native> = LazyLock::new(|| Native {
    dedup: NativeStage::new(seen_dedup::dedup, &seen_dedup::describe()),
    score: NativeStage::new(weighted_scorer::score, &weighted_scorer::describe()),
    saturation: NativeStage::new(author_saturation::saturate, &author_saturation::describe()),
});

impl<F> NativeStage<F> {
    fn new(run: F, description: &Description) -> Self {
        Self {
            run,
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

    /// Returns a copy that scores with `run`, which gets the same features and parameters.
    pub fn with_scorer(&self, run: Scorer) -> Self {
        let mut native = self.clone();
        native.score.run = run;
        native
    }
}

impl Stages for Native {
    fn features(&self, stage: Stage) -> &[Feature] {
        match stage {
            Stage::Dedup => &self.dedup.features,
            Stage::Score => &self.score.features,
            Stage::Saturation => &self.saturation.features,
        }
    }

    fn dedup(
        &self,
        request: &Request,
        candidates: &Candidates<'_>,
    ) -> Result<Vec<u32>, PolicyFailure> {
        Ok((self.dedup.run)(request, &self.dedup.params, candidates))
    }

    fn score(
        &self,
        request: &Request,
        candidates: &Candidates<'_>,
    ) -> Result<Vec<f32>, PolicyFailure> {
        Ok((self.score.run)(request, &self.score.params, candidates))
    }

    fn saturate(&self, request: &Request, ranked: &Ranked<'_>) -> Result<Vec<u32>, PolicyFailure> {
        Ok((self.saturation.run)(
            request,
            &self.saturation.params,
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
