//! Policies that misbehave, each in one way: see `examples/`, one file a guest.
//!
//! They are compiled to components beside the shipped policies and exist for the host's tests only.
//! Admission finds out whoever misbehaves at once (`misbehaves_as_told`, `panic_in_describe`,
//! `imports_clock`). The others behave until they are in service, as what breaks in service does.

use nova_policy_sdk::Request;

/// Whether somebody is being served. Admission shows a policy a viewer who is nobody, with an id
/// near the end of the range; that much a guest that wants to deceive it can know.
pub fn in_service(request: &Request) -> bool {
    request.user_id < 1 << 52
}
