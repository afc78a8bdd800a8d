//! Reasons for the refusal of a policy, for people and programs.

use nova_model::artifact::Stage;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;

/// One problem of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Stable code that programs may compare.
    pub code: Cow<'static, str>,
    /// `None` if the reason applies to the whole policy.
    pub stage: Option<Stage>,
    /// One line of text. It says what to do if that is not obvious.
    pub message: String,
}

impl Reason {
    pub fn new(code: &'static str, stage: Stage, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            stage: Some(stage),
            message: message.into(),
        }
    }

    pub fn whole(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            stage: None,
            message: message.into(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// All problems of a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy refused: {}", self.text())]
pub struct Refusal {
    pub reasons: Vec<Reason>,
}

impl Refusal {
    /// Creates a refusal of the whole policy for a reason that has no code of its own.
    pub fn one(message: impl Into<String>) -> Self {
        Self {
            reasons: vec![Reason::whole("refused", message)],
        }
    }

    pub fn messages(&self) -> Vec<String> {
        self.reasons.iter().map(ToString::to_string).collect()
    }

    /// Returns all reasons in one line.
    pub fn text(&self) -> String {
        self.messages().join("; ")
    }
}
