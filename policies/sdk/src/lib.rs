//! Write a ranking policy for Nova: declare what it reads, then write the rule as a plain function.
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
//! [`scorer!`], [`deduper!`] and [`saturator!`] generate, in the module where they stand:
//!
//! - `Params`, the declared parameters as `f64` fields, and `Columns`, the declared features as
//!   `&[f32]` fields beside `post_ids`, `author_ids`, `created_at_ms` (and `scores` after scoring);
//!   a scorer also gets `Post`, one candidate with its features as `f64` fields;
//! - `describe`, from the declarations and the crate's own name and version;
//! - the stage function (`score`, `dedup` or `saturate`) and `explain`, callable from native code;
//! - on wasm32 the component's exports. No other target sees them, nor the unsafe code they need.
//!
//! [`math`] has `exp` and `ln_1p` that become SIMD code, [`Groups`] groups candidates by author.
//!
//! Names become column positions when the policy is compiled, so nothing is looked up while ranking.
//!
//! A policy is pure. It imports nothing; time and randomness come with the [`Request`]. So it must
//! not keep state in statics, and not use `std`'s `HashMap`, whose seed cannot be drawn here.

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

/// What the macros call. Not for authors.
#[doc(hidden)]
pub mod support {
    pub use crate::deduper::reasons_by_membership;
    pub use crate::saturator::reasons_by_movement;
    pub use crate::scorer::{columns_of_parts, total};
}
