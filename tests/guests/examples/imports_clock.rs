//! A scorer whose only fault is that it imports a clock from its host.
#![cfg(target_arch = "wasm32")]

use nova_policy_sdk::{Request, scorer};

// The linker merges this world with the one that the SDK exports.
wit_bindgen::generate!({ path: "wit", world: "needs-clock" });

scorer! {
    explains { freshness }
    each: freshness
}

fn freshness(post: &Post, _params: &Params, _request: &Request) -> [f64; 1] {
    let age_ms = nova::host::clock::now().saturating_sub(post.created_at_ms);
    [-(age_ms as f64)]
}
