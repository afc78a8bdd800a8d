//! The SDK for ranking policies of Nova: declare the inputs, then write the rule as a function.
//!
//! ```
//! use nova_policy_sdk::{Request, scorer};
//!
//! scorer! {
//!     features { age_hours, likes }
//!     parameters {
//!         /// Hours after which a post is worth half.
//!         half_life_hours: 12.0 in 0.1..=720.0,
//!     }
//!     explains { freshness, likes }
//!     each: parts
//! }
//!
//! fn parts(post: &Post, params: &Params, _request: &Request) -> [f64; 2] {
//!     [(-post.age_hours / params.half_life_hours).exp2(), 0.1 * post.likes.max(0.0).ln_1p()]
//! }
//! # fn main() {}
//! ```
//!
//! [`scorer!`], [`deduper!`] and [`saturator!`] generate these items in the module that calls them:
//!
//! - `Params`, the declared parameters as `f64` fields, and `Columns`, the declared features as
//!   `&[f32]` fields, plus `post_ids`, `author_ids`, `created_at_ms` (and `scores` after scoring);
//!   for a scorer also `Post`, one candidate with its features as `f64` fields;
//! - `describe`, from the declarations and the crate's own name and version;
//! - the stage function (`score`, `dedup` or `saturate`) and `explain`, callable from native code;
//! - on wasm32 only, the component's exports and the unsafe code that they need.
//!
//! [`math`] has `exp` and `ln_1p` that become SIMD code. [`Groups`] groups candidates by author.
//!
//! Names become column positions at compile time, so ranking needs no look-up.
//!
//! A policy is pure. It imports nothing; time and randomness come with the [`Request`]. So it must
//! not keep state in statics, nor use `std`'s `HashMap`, which needs a random seed from the system.

mod declare;
mod deduper;
mod group;
pub mod math;
mod saturator;
mod scorer;
pub mod testing;
mod types;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod wasm;

pub use group::Groups;
pub use types::{Candidates, Description, Parameter, Ranked, Request};

/// Functions that the macros call. Authors do not call them.
#[doc(hidden)]
pub mod support {
    pub use crate::deduper::reasons_by_membership;
    pub use crate::saturator::reasons_by_movement;
    pub use crate::scorer::{columns_of_parts, total};
}
