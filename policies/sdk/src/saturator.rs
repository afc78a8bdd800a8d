//! `saturator!` and its default reasons.

/// Declares a saturator.
///
/// `saturate: rule` with `fn rule(&Columns, &Params, &Request) -> Vec<u32>` returns the index to
/// show at each position: a permutation of `0..columns.len`. Candidates come in the order of their
/// scores, best first; `columns.scores` has the scores.
///
/// Reasons are optional. Without them `explain` says `stayed`, `moved up` or `moved down`. With
/// `reasons { Stayed = "…", Deferred = "…" }` an enum `Reason` is generated, and `explain: why`
/// with `fn why(&Columns, &Params, &Request) -> Vec<Reason>` returns one per candidate, by index.
#[macro_export]
macro_rules! saturator {
    (
        $(features { $($feature:ident),* $(,)? })?
        $(parameters { $(
            $(#[doc = $doc:literal])+
            $parameter:ident: $default:literal in $min:literal ..= $max:literal
        ),* $(,)? })?
        saturate: $saturate:path $(,)?
    ) => {
        $crate::__declare! {
            input: Ranked { scores: f32 }
            features { $($($feature),*)? }
            parameters { $($( [$($doc)+] $parameter: $default in $min ..= $max ),*)? }
            explains { "stayed", "moved up", "moved down" }
        }

        $crate::__saturator! {
            $saturate,
            |request, params, ranked| $crate::support::reasons_by_movement(
                ranked.post_ids.len(),
                &saturate(request, params, ranked),
            )
        }
    };
    (
        $(features { $($feature:ident),* $(,)? })?
        $(parameters { $(
            $(#[doc = $doc:literal])+
            $parameter:ident: $default:literal in $min:literal ..= $max:literal
        ),* $(,)? })?
        reasons { $($reason:ident = $text:literal),+ $(,)? }
        saturate: $saturate:path,
        explain: $explain:path $(,)?
    ) => {
        $crate::__declare! {
            input: Ranked { scores: f32 }
            features { $($($feature),*)? }
            parameters { $($( [$($doc)+] $parameter: $default in $min ..= $max ),*)? }
            explains { $($text),+ }
        }

        $crate::__reason! { $($reason = $text),+ }

        $crate::__saturator! {
            $saturate,
            |request, params, ranked| {
                let reasons = $explain(&Columns::new(ranked), &Params::new(params), request);
                reasons.into_iter().map(|reason: Reason| reason as u32).collect()
            }
        }
    };
}

/// Generates `saturate`, `explain` and the component that exports them.
#[doc(hidden)]
#[macro_export]
macro_rules! __saturator {
    ($saturate:path, |$request:ident, $params:ident, $ranked:ident| $reasons:expr) => {
        /// Returns the index to show at each position.
        pub fn saturate(
            request: &$crate::Request,
            params: &[f64],
            ranked: &$crate::Ranked<'_>,
        ) -> Vec<u32> {
            $saturate(&Columns::new(ranked), &Params::new(params), request)
        }

        /// Returns one reason code per candidate, in the order of `ranked`. A code is an index into
        /// `describe().explains`.
        pub fn explain(
            $request: &$crate::Request,
            $params: &[f64],
            $ranked: &$crate::Ranked<'_>,
        ) -> Vec<u32> {
            $reasons
        }

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            struct Component;

            impl $crate::wasm::saturator::Guest for Component {
                fn describe() -> $crate::wasm::saturator::Description {
                    describe().into()
                }

                fn saturate(
                    request: $crate::wasm::saturator::Request,
                    params: Vec<f64>,
                    ranked: $crate::wasm::saturator::Ranked,
                ) -> Vec<u32> {
                    saturate(&request.into(), &params, &ranked.as_columns())
                }

                fn explain(
                    request: $crate::wasm::saturator::Request,
                    params: Vec<f64>,
                    ranked: $crate::wasm::saturator::Ranked,
                ) -> Vec<u32> {
                    explain(&request.into(), &params, &ranked.as_columns())
                }
            }

            $crate::wasm::saturator::export_saturator!(Component with_types_in $crate::wasm::saturator);
        };
    };
}

/// Returns 0 for each index that stayed at its rank, 1 if it moved up and 2 if it moved down.
pub fn reasons_by_movement(len: usize, order: &[u32]) -> Vec<u32> {
    let mut reasons = vec![0; len];
    for (position, &index) in order.iter().enumerate() {
        // The host reports an index out of range; explaining must not fail because of it.
        if let Some(reason) = reasons.get_mut(index as usize) {
            *reason = match position.cmp(&(index as usize)) {
                std::cmp::Ordering::Equal => 0,
                std::cmp::Ordering::Less => 1,
                std::cmp::Ordering::Greater => 2,
            };
        }
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn movement_compares_position_with_rank_and_ignores_an_index_out_of_range() {
        assert_eq!(reasons_by_movement(4, &[0, 2, 1, 9]), [0, 2, 1, 0]);
    }
}
