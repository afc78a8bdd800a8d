//! Template files of a new JavaScript policy.

use super::Files;
use nova_model::artifact::Stage;

macro_rules! files {
    ($($file:literal from $from:literal),+ $(,)?) => {
        &[$(($file, include_str!(concat!("../../../../policies/sdk-javascript/", $from)))),+]
    };
}

/// Files of the SDK, copied unchanged.
pub const SDK: Files = &[
    (
        "nova-policy/index.js",
        include_str!("../../../../policies/sdk-javascript/nova-policy/index.js"),
    ),
    (
        "nova-policy/testing.js",
        include_str!("../../../../policies/sdk-javascript/nova-policy/testing.js"),
    ),
    (
        "nova-policy/wit/policy.wit",
        include_str!("../../../../wit/policy.wit"),
    ),
];

pub const PROJECT: Files = files![
    "package.json" from "template/package.json",
    "package-lock.json" from "template/package-lock.json",
    "README.md" from "template/README.md",
    ".gitignore" from "template/gitignore",
];

pub const fn template(stage: Stage) -> Files {
    match stage {
        Stage::Score => files![
            "policy.js" from "template/score/policy.js",
            "policy.test.js" from "template/score/policy.test.js",
        ],
        Stage::Dedup => files![
            "policy.js" from "template/dedup/policy.js",
            "policy.test.js" from "template/dedup/policy.test.js",
        ],
        Stage::Saturation => files![
            "policy.js" from "template/saturation/policy.js",
            "policy.test.js" from "template/saturation/policy.test.js",
        ],
    }
}
