//! Policies that misbehave, each in one way. There is one guest per file in `examples/`.
//!
//! They are compiled to components next to the bundled policies and are used only by the host's
//! tests. Admission rejects those that misbehave at once (`misbehaves_as_told`, `imports_clock`,
//! `panic_in_describe`). The others behave well until they serve viewers, as real failures do.

use nova_policy_sdk::Request;

/// True if the request is for a real viewer. Admission tests a policy with a viewer id near the end
/// of the range, and a guest that wants to deceive admission can know that much.
pub fn in_service(request: &Request) -> bool {
    request.user_id < 1 << 52
}
