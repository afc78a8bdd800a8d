//! `scorer!` and the arithmetic that it uses.

/// Declares a scorer.
///
/// The rule returns the *parts* of each candidate's score, one `f64` per name under `explains`. The
/// score is their sum as `f32`, so what `explain` shows always adds up to the score.
///
/// - `each: rule` with `fn rule(&Post, &Params, &Request) -> [f64; N]` is called per candidate.
/// - `batch: rule` with `fn rule(&Columns, &Params, &Request) -> Vec<[f64; N]>` gets all of them,
///   for scores that depend on the others.
///
/// The host counts a score that is not finite as a failure of the policy. Scores are not clamped,
/// because that would hide the bug.
#[macro_export]
macro_rules! scorer {
    (
        $(features { $($feature:ident),* $(,)? })?
        $(parameters { $(
            $(#[doc = $doc:literal])+
            $parameter:ident: $default:literal in $min:literal ..= $max:literal
        ),* $(,)? })?
        explains { $($part:ident),+ $(,)? }
        each: $each:path $(,)?
    ) => {
        $crate::__declare! {
            input: Candidates {}
            features { $($($feature),*)? }
            parameters { $($( [$($doc)+] $parameter: $default in $min ..= $max ),*)? }
            explains { $( stringify!($part) ),+ }
        }

        /// One candidate.
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub struct Post {
            pub post_id: u64,
            pub author_id: u64,
            /// Milliseconds since the Unix epoch, UTC.
            pub created_at_ms: u64,
            $($( pub $feature: f64, )*)?
        }

        impl Columns<'_> {
            // Inlined, so that columns which the rule does not read are never loaded.
            #[inline(always)]
            fn post(&self, index: usize) -> Post {
                Post {
                    post_id: self.post_ids[index],
                    author_id: self.author_ids[index],
                    created_at_ms: self.created_at_ms[index],
                    $($( $feature: f64::from(self.$feature[index]), )*)?
                }
            }
        }

        /// Returns one score per candidate. Higher is better.
        pub fn score(
            request: &$crate::Request,
            params: &[f64],
            candidates: &$crate::Candidates<'_>,
        ) -> Vec<f32> {
            let (columns, params) = (Columns::new(candidates), Params::new(params));
            (0..columns.len)
                .map(|index| $crate::support::total(&$each(&columns.post(index), &params, request)))
                .collect()
        }

        /// Returns the score parts, column by column, in the order of `describe().explains`.
        pub fn explain(
            request: &$crate::Request,
            params: &[f64],
            candidates: &$crate::Candidates<'_>,
        ) -> Vec<f32> {
            let (columns, params) = (Columns::new(candidates), Params::new(params));
            $crate::support::columns_of_parts(
                (0..columns.len).map(|index| $each(&columns.post(index), &params, request)).collect(),
                [$( stringify!($part) ),+],
            )
        }

        $crate::__export_scorer!();
    };
    (
        $(features { $($feature:ident),* $(,)? })?
        $(parameters { $(
            $(#[doc = $doc:literal])+
            $parameter:ident: $default:literal in $min:literal ..= $max:literal
        ),* $(,)? })?
        explains { $($part:ident),+ $(,)? }
        batch: $batch:path $(,)?
    ) => {
        $crate::__declare! {
            input: Candidates {}
            features { $($($feature),*)? }
            parameters { $($( [$($doc)+] $parameter: $default in $min ..= $max ),*)? }
            explains { $( stringify!($part) ),+ }
        }

        /// Returns one score per candidate. Higher is better.
        pub fn score(
            request: &$crate::Request,
            params: &[f64],
            candidates: &$crate::Candidates<'_>,
        ) -> Vec<f32> {
            let rows = $batch(&Columns::new(candidates), &Params::new(params), request);
            rows.iter().map($crate::support::total).collect()
        }

        /// Returns the score parts, column by column, in the order of `describe().explains`.
        pub fn explain(
            request: &$crate::Request,
            params: &[f64],
            candidates: &$crate::Candidates<'_>,
        ) -> Vec<f32> {
            $crate::support::columns_of_parts(
                $batch(&Columns::new(candidates), &Params::new(params), request),
                [$( stringify!($part) ),+],
            )
        }

        $crate::__export_scorer!();
    };
}

/// Exports `describe`, `score` and `explain` of the calling module as a component.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_scorer {
    () => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            struct Component;

            impl $crate::wasm::scorer::Guest for Component {
                fn describe() -> $crate::wasm::scorer::Description {
                    describe().into()
                }

                fn score(
                    request: $crate::wasm::scorer::Request,
                    params: Vec<f64>,
                    candidates: $crate::wasm::scorer::Candidates,
                ) -> Vec<f32> {
                    score(&request.into(), &params, &candidates.as_columns())
                }

                fn explain(
                    request: $crate::wasm::scorer::Request,
                    params: Vec<f64>,
                    candidates: $crate::wasm::scorer::Candidates,
                ) -> Vec<f32> {
                    explain(&request.into(), &params, &candidates.as_columns())
                }
            }

    $crate::wasm::scorer::export_scorer!(Component with_types_in $crate::wasm::scorer);
        };
    };
}

/// Returns the score, which is the sum of its parts.
#[inline]
pub fn total<const PARTS: usize>(parts: &[f64; PARTS]) -> f32 {
    parts.iter().sum::<f64>() as f32
}

/// Turns one row of parts per candidate into one column per part. The names fix the length of a
/// row: a rule with a part too many or too few does not compile.
pub fn columns_of_parts<const PARTS: usize>(
    rows: Vec<[f64; PARTS]>,
    _names: [&str; PARTS],
) -> Vec<f32> {
    (0..PARTS)
        .flat_map(|part| rows.iter().map(move |row| row[part] as f32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_columns_and_their_sum_is_the_score() {
        let rows = vec![[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]];
        assert_eq!(total(&rows[1]), 22.0);
        assert_eq!(
            columns_of_parts(rows, ["ones", "tens"]),
            [1.0, 2.0, 3.0, 10.0, 20.0, 30.0]
        );
    }
}
