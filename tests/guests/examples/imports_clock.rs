//! A scorer that would be well behaved, if it did not ask its host for the time.
#![cfg(target_arch = "wasm32")]

use nova_policy_sdk::{Request, scorer};

// The linker joins this world with the one that the SDK exports.
wit_bindgen::generate!({ path: "wit", world: "needs-clock" });

scorer! {
    explains { freshness }
    each: freshness
}

fn freshness(post: &Post, _params: &Params, _request: &Request) -> [f64; 1] {
    let age_ms = nova::host::clock::now().saturating_sub(post.created_at_ms);
    [-(age_ms as f64)]
}
