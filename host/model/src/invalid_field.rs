//! The form in which the rules report an invalid field.

/// The path of a field, such as `events[1].action`, and the error in it.
pub type InvalidField = (String, String);
