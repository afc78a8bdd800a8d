//! Panics in `describe`. It is written against the SDK's bindings, because the `describe` that the
//! macros generate cannot fail.
#![cfg(target_arch = "wasm32")]

use nova_policy_sdk::wasm::scorer::{self, Candidates, Description, Guest, Request};

struct Component;

impl Guest for Component {
    fn describe() -> Description {
        panic!("no description");
    }

    fn score(_: Request, _: Vec<f64>, candidates: Candidates) -> Vec<f32> {
        vec![0.0; candidates.post_ids.len()]
    }

    fn explain(_: Request, _: Vec<f64>, _: Candidates) -> Vec<f32> {
        Vec::new()
    }
}

scorer::export_scorer!(Component with_types_in scorer);
