//! The kinds of policy failure. A failure is counted by its kind, and the next step of the
//! fallback chain answers instead, so a failure never produces an invalid page.

use super::artifact::Stage;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    Trap,
    Deadline,
    Memory,
    ContractLength,
    ContractRange,
    ContractRepeat,
    ContractNonfinite,
    ContractEmpty,
    /// No instance or worker was free in time.
    Pool,
    /// The policy has used its share of processor time, so it was not called.
    CpuShare,
}

impl FailureKind {
    /// All kinds, in the order of their discriminants.
    pub const ALL: [Self; 10] = [
        Self::Trap,
        Self::Deadline,
        Self::Memory,
        Self::ContractLength,
        Self::ContractRange,
        Self::ContractRepeat,
        Self::ContractNonfinite,
        Self::ContractEmpty,
        Self::Pool,
        Self::CpuShare,
    ];

    /// Returns the value of the `outcome` label of `policy_calls_total`.
    pub fn as_str(self) -> &'static str {
        match self {
            FailureKind::Trap => "trap",
            FailureKind::Deadline => "deadline",
            FailureKind::Memory => "memory",
            FailureKind::ContractLength => "contract_length",
            FailureKind::ContractRange => "contract_range",
            FailureKind::ContractRepeat => "contract_repeat",
            FailureKind::ContractNonfinite => "contract_nonfinite",
            FailureKind::ContractEmpty => "contract_empty",
            FailureKind::Pool => "pool",
            FailureKind::CpuShare => "cpu_share",
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{stage}: {}: {detail}", kind.as_str())]
pub struct PolicyFailure {
    pub stage: Stage,
    pub kind: FailureKind,
    pub detail: String,
}

impl PolicyFailure {
    pub fn new(stage: Stage, kind: FailureKind, detail: impl Into<String>) -> Self {
        Self {
            stage,
            kind,
            detail: detail.into(),
        }
    }
}
