//! The common part of the three stage macros: typed columns, typed parameters and `describe`.

/// Generates `Params`, `Columns` and `describe` from declarations that a stage macro has parsed.
#[doc(hidden)]
#[macro_export]
macro_rules! __declare {
    (
        input: $input:ident { $($given:ident: $given_type:ty),* }
        features { $($feature:ident),* }
        parameters { $( [$($doc:literal)+] $parameter:ident: $default:literal in $min:literal ..= $max:literal ),* }
        explains { $($explains:expr),* }
    ) => {
        /// The declared parameters.
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub struct Params {
            $( $(#[doc = $doc])+ pub $parameter: f64, )*
        }

        impl Params {
            /// Takes the values in declared order.
            ///
            /// # Panics
            /// If there are more or fewer values than parameters.
            pub fn new(params: &[f64]) -> Self {
                let &[$($parameter),*] = params else {
                    panic!(
                        "{} takes {} parameters, not {}",
                        env!("CARGO_PKG_NAME"),
                        describe().parameters.len(),
                        params.len()
                    );
                };
                Self { $($parameter),* }
            }
        }

        $(
            const _: () = assert!(
                $min as f64 <= $default as f64 && $default as f64 <= $max as f64,
                concat!("the default of `", stringify!($parameter), "` is outside its range")
            );
        )*

        /// The candidates: one slice per column, all of the same length.
        #[derive(Debug, Clone, Copy)]
        pub struct Columns<'a> {
            /// Length of every column.
            pub len: usize,
            pub post_ids: &'a [u64],
            pub author_ids: &'a [u64],
            /// Milliseconds since the Unix epoch, UTC.
            pub created_at_ms: &'a [u64],
            $( pub $given: &'a [$given_type], )*
            $( pub $feature: &'a [f32], )*
        }

        impl<'a> Columns<'a> {
            /// Splits the feature matrix into its columns.
            ///
            /// # Panics
            /// If the columns do not all have the same length.
            // Inlined, so that the compiler knows the lengths in a caller's loop over `0..len`.
            #[inline(always)]
            pub fn new(input: &$crate::$input<'a>) -> Self {
                let len = input.post_ids.len();
                // Every slice is cut to `len` by name, so that the compiler knows that their
                // lengths are equal and omits the bounds checks in a loop over `0..len`.
                let rest = input.features;
                $( let ($feature, rest) = rest.split_at(len); )*
                assert!(rest.is_empty(), "more feature columns than declared");
                Self {
                    len,
                    post_ids: input.post_ids,
                    author_ids: &input.author_ids[..len],
                    created_at_ms: &input.created_at_ms[..len],
                    $( $given: &input.$given[..len], )*
                    $( $feature, )*
                }
            }
        }

        /// Returns the module's description.
        pub fn describe() -> $crate::Description {
            const DESCRIPTION: $crate::Description = $crate::Description {
                name: env!("CARGO_PKG_NAME"),
                version: env!("CARGO_PKG_VERSION"),
                features: &[$( stringify!($feature) ),*],
                parameters: &[$(
                    $crate::Parameter {
                        name: stringify!($parameter),
                        default: $default as f64,
                        min: $min as f64,
                        max: $max as f64,
                        doc: concat!($($doc),+).trim_ascii(),
                    }
                ),*],
                explains: &[$( $explains ),*],
            };
            DESCRIPTION
        }
    };
}
