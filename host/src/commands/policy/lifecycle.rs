//! Lifecycle commands of a published policy: shadow, canary, retire, quarantine and lift. Also
//! chooses
//! the default policy of canary and activate.

use super::{name_of, print, text_of, where_of};
use crate::commands::block_on;
use crate::commands::remote::{ChangeArguments, Step, TargetArguments};
use anyhow::bail;
use clap::Args;
use nova_model::artifact::PolicyRef;

/// Puts a policy into shadow: it ranks the same candidates as the active policy, but serves no
/// viewer.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nova policy shadow fresh-first@0.1.0\n  nova policy shadow fresh-first@0.1.0 --end"
)]
pub struct Shadow {
    /// name@version
    policy: PolicyRef,
    /// Ends the shadow state.
    #[arg(long)]
    end: bool,
    #[command(flatten)]
    target: ChangeArguments,
}

/// Serves a policy to a share of the viewers; 0 ends a canary or a shadow.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nova policy canary 5 fresh-first@0.1.0\n  nova policy canary 20"
)]
pub struct Canary {
    /// Share of the viewers who are in no experiment, 0 … 100.
    percent: f64,
    /// name@version [default: the canary, else the only policy in shadow]
    policy: Option<PolicyRef>,
    #[command(flatten)]
    target: ChangeArguments,
}

/// Retires a version permanently; rollbacks skip it.
#[derive(Debug, Args)]
#[command(after_help = "Example: nova policy retire fresh-first@0.1.0")]
pub struct Retire {
    /// name@version
    policy: PolicyRef,
    #[command(flatten)]
    target: ChangeArguments,
}

/// Takes a policy out of service until it is lifted; if it is active, rolls back.
#[derive(Debug, Args)]
#[command(after_help = "Example: nova policy quarantine fresh-first@0.1.0 --reason 'empty feeds'")]
pub struct Quarantine {
    /// name@version
    policy: PolicyRef,
    /// Reason, for the audit log.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    target: ChangeArguments,
}

/// Lets a policy serve again that was quarantined, or that hosts took out of their service.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: nova policy lift fresh-first@0.1.0 --reason 'host b had a bad disk'"
)]
pub struct Lift {
    /// name@version
    policy: PolicyRef,
    /// Reason, for the audit log.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    target: ChangeArguments,
}

/// Returns the named policy. Without a name, returns the policy closest to activation: the
/// canary, else the only policy in shadow.
pub async fn on_trial(
    target: &TargetArguments,
    named: Option<PolicyRef>,
) -> anyhow::Result<PolicyRef> {
    if let Some(named) = named {
        return Ok(named);
    }
    let list = target.target().await?.list().await?;
    let entries = list["policies"].as_array().into_iter().flatten();
    let in_state = |state: &str| -> Vec<String> {
        let entries = entries.clone().filter(|entry| entry["state"] == state);
        entries.map(name_of).collect()
    };
    match (&in_state("canary")[..], &in_state("shadow")[..]) {
        ([policy], _) | ([], [policy]) => policy.parse().map_err(anyhow::Error::msg),
        (_, []) => bail!("no policy is canary or in shadow; name one: name@version"),
        (_, several) => bail!(
            "several policies are in shadow: {}; name one of them",
            several.join(", ")
        ),
    }
}

fn take(
    target: &ChangeArguments,
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
            format!(
                "{} is {state}{share}{}\n",
                name_of(&answer),
                where_of(&answer)
            ),
        )
    })
}

impl Shadow {
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let step = if self.end {
            Step::EndShadow
        } else {
            Step::Shadow
        };
        take(&self.target, &self.policy, &step, json)
    }
}

impl Canary {
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let percent = self.percent;
        let policy = block_on(on_trial(&self.target.target, self.policy))?;
        take(&self.target, &policy, &Step::Canary { percent }, json)
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

impl Lift {
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        let reason = self.reason;
        take(&self.target, &self.policy, &Step::Lift { reason }, json)
    }
}
