//! Policies that misbehave, each in one way: see `examples/`, one file a guest.
//!
//! They are compiled to components beside the shipped policies and exist for the host's tests only.
//! All but `panic_in_describe` and `imports_clock` can be published.
