//! Why a policy is refused, for a person and for a program.

use crate::policy::artifact::Stage;
use serde::Serialize;
use std::fmt;

/// One thing that is wrong with a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// Stable: programs may compare it.
    pub code: &'static str,
    /// `None`: of the policy as a whole.
    pub stage: Option<Stage>,
    /// One line that says what to do where that is not plain.
    pub message: String,
}

impl Reason {
    pub fn new(code: &'static str, stage: Stage, message: impl Into<String>) -> Self {
        Self {
            code,
            stage: Some(stage),
            message: message.into(),
        }
    }

    pub fn whole(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
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

/// Everything that is wrong with a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy refused: {}", self.text())]
pub struct Refusal {
    pub reasons: Vec<Reason>,
}

impl Refusal {
    /// Of the policy as a whole, for a cause that has no code of its own.
    pub fn one(message: impl Into<String>) -> Self {
        Self {
            reasons: vec![Reason::whole("refused", message)],
        }
    }

    pub fn messages(&self) -> Vec<String> {
        self.reasons.iter().map(ToString::to_string).collect()
    }

    /// All of them in one line.
    pub fn text(&self) -> String {
        self.messages().join("; ")
    }
}
