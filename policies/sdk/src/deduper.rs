//! `deduper!` and its default reasons.

/// Declares a deduper.
///
/// `dedup: rule` with `fn rule(&Columns, &Params, &Request) -> Vec<u32>` returns the indices to
/// keep, each at most once, and at least one if there are candidates.
///
/// Reasons are optional. Without them `explain` says `kept` or `removed`. With `reasons { Kept =
/// "…", Seen = "…" }` an enum `Reason` is generated, and `explain: why` with `fn why(&Columns,
/// &Params, &Request) -> Vec<Reason>` returns one for each candidate.
#[macro_export]
macro_rules! deduper {
    (
        $(features { $($feature:ident),* $(,)? })?
        $(parameters { $(
            $(#[doc = $doc:literal])+
            $parameter:ident: $default:literal in $min:literal ..= $max:literal
        ),* $(,)? })?
        dedup: $dedup:path $(,)?
    ) => {
        $crate::__declare! {
            input: Candidates {}
            features { $($($feature),*)? }
            parameters { $($( [$($doc)+] $parameter: $default in $min ..= $max ),*)? }
            explains { "kept", "removed" }
        }

        $crate::__deduper! {
            $dedup,
            |request, params, candidates| $crate::support::reasons_by_membership(
                candidates.post_ids.len(),
                &dedup(request, params, candidates),
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
        dedup: $dedup:path,
        explain: $explain:path $(,)?
    ) => {
        $crate::__declare! {
            input: Candidates {}
            features { $($($feature),*)? }
            parameters { $($( [$($doc)+] $parameter: $default in $min ..= $max ),*)? }
            explains { $($text),+ }
        }

        $crate::__reason! { $($reason = $text),+ }

        $crate::__deduper! {
            $dedup,
            |request, params, candidates| {
                let reasons = $explain(&Columns::new(candidates), &Params::new(params), request);
                reasons.into_iter().map(|reason: Reason| reason as u32).collect()
            }
        }
    };
}

/// The reason codes of a stage as an enum. A code is the position in the declaration.
#[doc(hidden)]
#[macro_export]
macro_rules! __reason {
    ($($reason:ident = $text:literal),+) => {
        /// Reason for the treatment of a candidate.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Reason {
            $( #[doc = $text] $reason, )+
        }
    };
}

/// Generates `dedup`, `explain` and the component that exports them.
#[doc(hidden)]
#[macro_export]
macro_rules! __deduper {
    ($dedup:path, |$request:ident, $params:ident, $candidates:ident| $reasons:expr) => {
        /// Returns the indices to keep.
        pub fn dedup(
            request: &$crate::Request,
            params: &[f64],
            candidates: &$crate::Candidates<'_>,
        ) -> Vec<u32> {
            $dedup(&Columns::new(candidates), &Params::new(params), request)
        }

        /// Returns one reason code per candidate, which is an index into `describe().explains`.
        pub fn explain(
            $request: &$crate::Request,
            $params: &[f64],
            $candidates: &$crate::Candidates<'_>,
        ) -> Vec<u32> {
            $reasons
        }

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            struct Component;

            impl $crate::wasm::deduper::Guest for Component {
                fn describe() -> $crate::wasm::deduper::Description {
                    describe().into()
                }

                fn dedup(
                    request: $crate::wasm::deduper::Request,
                    params: Vec<f64>,
                    candidates: $crate::wasm::deduper::Candidates,
                ) -> Vec<u32> {
                    dedup(&request.into(), &params, &candidates.as_columns())
                }

                fn explain(
                    request: $crate::wasm::deduper::Request,
                    params: Vec<f64>,
                    candidates: $crate::wasm::deduper::Candidates,
                ) -> Vec<u32> {
                    explain(&request.into(), &params, &candidates.as_columns())
                }
            }

    $crate::wasm::deduper::export_deduper!(Component with_types_in $crate::wasm::deduper);
        };
    };
}

/// Returns 0 for each index in `kept` and 1 for all others.
pub fn reasons_by_membership(len: usize, kept: &[u32]) -> Vec<u32> {
    let mut reasons = vec![1; len];
    for &index in kept {
        // The host reports an index out of range; explaining must not fail because of it.
        if let Some(reason) = reasons.get_mut(index as usize) {
            *reason = 0;
        }
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_kept_or_removed_and_one_out_of_range_is_ignored() {
        assert_eq!(reasons_by_membership(4, &[3, 0, 9]), [0, 1, 1, 0]);
    }
}
