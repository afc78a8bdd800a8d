//! Template files of a new Python policy.

use super::Files;
use nova_model::artifact::Stage;

macro_rules! files {
    ($($file:literal from $from:literal),+ $(,)?) => {
        &[$(($file, include_str!(concat!("../../../../policies/sdk-python/", $from)))),+]
    };
}

/// Files of the SDK, copied unchanged.
pub const SDK: Files = &[
    (
        "nova_policy/__init__.py",
        include_str!("../../../../policies/sdk-python/nova_policy/__init__.py"),
    ),
    (
        "nova_policy/testing.py",
        include_str!("../../../../policies/sdk-python/nova_policy/testing.py"),
    ),
    (
        "nova_policy/wit/policy.wit",
        include_str!("../../../../wit/policy.wit"),
    ),
];

pub const PROJECT: Files = files![
    "pyproject.toml" from "template/pyproject.toml",
    "requirements.txt" from "template/requirements.txt",
    "README.md" from "template/README.md",
    ".gitignore" from "template/gitignore",
];

pub const fn template(stage: Stage) -> Files {
    match stage {
        Stage::Score => files![
            "policy.py" from "template/score/policy.py",
            "test_policy.py" from "template/score/test_policy.py",
        ],
        Stage::Dedup => files![
            "policy.py" from "template/dedup/policy.py",
            "test_policy.py" from "template/dedup/test_policy.py",
        ],
        Stage::Saturation => files![
            "policy.py" from "template/saturation/policy.py",
            "test_policy.py" from "template/saturation/test_policy.py",
        ],
    }
}
