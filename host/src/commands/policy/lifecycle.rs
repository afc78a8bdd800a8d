//! The steps of a published policy's life: shadow, canary, activate, rollback, retire, quarantine.

use super::{name_of, print, text_of};
use crate::commands::block_on;
use crate::commands::remote::{Step, TargetArguments};
use crate::policy::PolicyRef;
use clap::Args;

/// Ranks beside the active policy, for nobody
#[derive(Debug, Args)]
#[command(after_help = "Example: nova policy shadow fresh-first@0.1.0")]
pub struct Shadow {
    /// name@version
    policy: PolicyRef,
    #[command(flatten)]
    target: TargetArguments,
}

/// Serves a share of the viewers; 0 ends a canary or a shadow
#[derive(Debug, Args)]
#[command(after_help = "Example: nova policy canary 5 fresh-first@0.1.0")]
pub struct Canary {
    /// Of the viewers whom no experiment takes, 0 … 100
    percent: f64,
    /// name@version
    policy: PolicyRef,
    #[command(flatten)]
    target: TargetArguments,
}

/// Ends a version's life; rollbacks skip it
#[derive(Debug, Args)]
#[command(after_help = "Example: nova policy retire fresh-first@0.1.0")]
pub struct Retire {
    /// name@version
    policy: PolicyRef,
    #[command(flatten)]
    target: TargetArguments,
}

/// Takes a policy out of service for good; when it is active, rolls back
#[derive(Debug, Args)]
#[command(after_help = "Example: nova policy quarantine fresh-first@0.1.0 --reason 'empty feeds'")]
pub struct Quarantine {
    /// name@version
    policy: PolicyRef,
    /// For the audit log
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    target: TargetArguments,
}

fn take(
    target: &TargetArguments,
    policy: &PolicyRef,
    step: &Step,
    json: bool,
) -> anyhow::Result<()> {
    block_on(async {
        let answer = target.target().await?.step(policy, step).await?;
        let share = match answer["percent"].as_f64() {
            Some(percent) => format!(", {percent} % of viewers"),
            None => String::new(),
        };
        let state = text_of(&answer["state"]);
        print(
            json,
            &answer,
            format!("{} is {state}{share}\n", name_of(&answer)),
        );
        Ok(())
    })
}

impl Shadow {
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        take(&self.target, &self.policy, &Step::Shadow, json)
    }
}

impl Canary {
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let percent = self.percent;
        take(&self.target, &self.policy, &Step::Canary { percent }, json)
    }
}

impl Retire {
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        take(&self.target, &self.policy, &Step::Retire, json)
    }
}

impl Quarantine {
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let reason = self.reason;
        take(
            &self.target,
            &self.policy,
            &Step::Quarantine { reason },
            json,
        )
    }
}
