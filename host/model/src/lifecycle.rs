//! Lifecycle of a policy: the allowed steps from each state. The order is published → shadow →
//! canary → active → retired, and every state can go to quarantine. All functions are pure: a
//! decision is a list of changes, and other code carries them out.
//!
//! A rollback returns to the version that was active before and is in service
//! ([`rollback_targets`]).
//!
//! A host that takes a digest out of its own service reports a withdrawal. It becomes a quarantine
//! when a second host withdraws the digest too, or at once if the host is the only one. The
//! bundled baseline is excepted: it is the policy of last resort, so automation takes it out of
//! service host by host only.
//!
//! A quarantine is one change. From then on no viewer is routed to the digest. Its consequences
//! are separate changes, so that each has its own audit entry: the active policy rolls back, and
//! experiments pause. They are derived from the state alone ([`complete_quarantines`]). So any
//! host can complete what another host began, and two hosts that do it at the same time do it only
//! once.

use super::artifact::{Digest, PolicyRef};
use super::quarantine::{Quarantine, Withdrawal};
use super::registry::{Change, Experiment, HOST, RegistryState};
use crate::artifact::baseline;
use crate::experiments::spec::{ExperimentState, VariationSpec};
use std::collections::{BTreeMap, BTreeSet};

/// Maximum number of shadow policies. Each costs as much computation as the active policy,
/// outside the viewers' requests.
pub const SHADOWS_MAX: usize = 4;

/// Number of former policies that stay compiled for rollback. This is enough for two operators
/// who each change their mind.
pub const WARM_POLICIES: usize = 3;

/// Number of hosts that must withdraw a digest before it is quarantined on every host. One host
/// may be slow or broken; that two are at the same time, for one policy, is improbable.
pub const AGREEING_HOSTS: usize = 2;

/// State of a policy.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum PolicyState {
    Published,
    /// Ranks the same requests as the active policy, but is served to no viewer.
    Shadow,
    /// Serves a share of the viewers.
    Canary,
    Active,
    Retired,
    /// Serves no viewer, under any name.
    Quarantined,
}

impl PolicyState {
    pub fn as_str(self) -> &'static str {
        match self {
            PolicyState::Published => "published",
            PolicyState::Shadow => "shadow",
            PolicyState::Canary => "canary",
            PolicyState::Active => "active",
            PolicyState::Retired => "retired",
            PolicyState::Quarantined => "quarantined",
        }
    }
}

#[derive(Debug, Clone)]
pub enum Event {
    Shadow(PolicyRef),
    /// A percentage of 0 ends a canary or a shadow.
    Canary {
        policy: PolicyRef,
        percent: f64,
    },
    Activate(PolicyRef),
    Rollback {
        reason: String,
        expected_active: Option<PolicyRef>,
    },
    Retire(PolicyRef),
    Quarantine {
        digest: Digest,
        quarantine: Quarantine,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("no policy {0} is published")]
    Unknown(PolicyRef),
    #[error("must be within 0 … 100")]
    Percent,
    /// The text says what to do instead.
    #[error("{0}")]
    Conflict(String),
}

fn conflict<T>(reason: String) -> Result<T, Refused> {
    Err(Refused::Conflict(reason))
}

/// Takes one step. Returns the state after it and the changes that lead there: first the
/// requested change, then its consequences. Returns no changes if the state is reached already.
///
/// # Errors
/// Fails if the policy may not take this step from its current state. Nothing is changed then.
pub fn step(state: &RegistryState, event: &Event) -> Result<(RegistryState, Vec<Change>), Refused> {
    let mut next = state.clone();
    let mut changes: Vec<Change> = decide(state, event)?.into_iter().collect();
    for change in &changes {
        next.apply(change);
    }
    changes.extend(complete_quarantines(&mut next));
    Ok((next, changes))
}

fn decide(state: &RegistryState, event: &Event) -> Result<Option<Change>, Refused> {
    match event {
        Event::Shadow(policy) => shadow(state, policy),
        Event::Canary { policy, percent } => canary(state, policy, *percent),
        Event::Activate(policy) => activate(state, policy),
        Event::Rollback {
            reason,
            expected_active,
        } => rollback(state, reason, expected_active.as_ref()).map(Some),
        Event::Retire(policy) => retire(state, policy),
        Event::Quarantine { digest, quarantine } => {
            known(state, &quarantine.policy)?;
            let new = !state.quarantined.contains_key(digest);
            Ok(new.then(|| Change::Quarantine {
                digest: *digest,
                quarantine: quarantine.clone(),
            }))
        }
    }
}

fn shadow(state: &RegistryState, policy: &PolicyRef) -> Result<Option<Change>, Refused> {
    match in_service(state, policy)? {
        PolicyState::Active => conflict(format!(
            "{policy} is active and sees every ranking already; shadow another policy"
        )),
        PolicyState::Canary => conflict(format!(
            "{policy} is the canary; end the canary first with canary 0"
        )),
        PolicyState::Shadow => Ok(None),
        _ if state.shadows.len() >= SHADOWS_MAX => conflict(format!(
            "{SHADOWS_MAX} policies are in shadow already; end one with canary 0, or retire it"
        )),
        _ => Ok(Some(Change::Shadow {
            policy: policy.clone(),
        })),
    }
}

fn canary(
    state: &RegistryState,
    policy: &PolicyRef,
    percent: f64,
) -> Result<Option<Change>, Refused> {
    if !(0.0..=100.0).contains(&percent) {
        return Err(Refused::Percent);
    }
    let change = Change::Canary {
        policy: policy.clone(),
        percent,
    };
    if percent == 0.0 {
        let on_trial = [PolicyState::Shadow, PolicyState::Canary].contains(&known(state, policy)?);
        return Ok(on_trial.then_some(change));
    }
    if in_service(state, policy)? == PolicyState::Active {
        return conflict(format!(
            "{policy} is active and serves all viewers already; make another policy the canary"
        ));
    }
    not_withdrawn(state, policy)?;
    match &state.canary {
        Some(current) if current.policy != *policy => conflict(format!(
            "{} is the canary at {} %; activate it, or end it with canary 0, and then start this one",
            current.policy, current.percent
        )),
        Some(current) if current.percent == percent => Ok(None),
        _ => Ok(Some(change)),
    }
}

fn activate(state: &RegistryState, policy: &PolicyRef) -> Result<Option<Change>, Refused> {
    Ok(match in_service(state, policy)? {
        PolicyState::Active => None,
        _ => {
            not_withdrawn(state, policy)?;
            Some(Change::Activate {
                policy: policy.clone(),
            })
        }
    })
}

/// Refuses a policy that a host took out of its own service, because it would serve on the other
/// hosts only. A rollback is not refused: it is needed at once, and each host that withdrew the
/// target goes one step further.
fn not_withdrawn(state: &RegistryState, policy: &PolicyRef) -> Result<(), Refused> {
    let published = state.policy(policy);
    let by_host = published.and_then(|published| state.withdrawals.get(&published.digest));
    match by_host.and_then(|by_host| by_host.iter().next()) {
        None => Ok(()),
        Some((host, withdrawal)) => conflict(format!(
            "host {host} took {policy} out of its service ({}); lift that with `nova policy lift` first",
            withdrawal.reason
        )),
    }
}

fn rollback(
    state: &RegistryState,
    reason: &str,
    expected_active: Option<&PolicyRef>,
) -> Result<Change, Refused> {
    let Some(active) = state.activations.last() else {
        return conflict("no policy was ever activated".into());
    };
    if let Some(expected) = expected_active
        && expected != active
    {
        return conflict(format!(
            "{active} is active, not {expected}; nothing was changed"
        ));
    }
    match rollback_targets(state).next() {
        Some(to) => Ok(Change::Rollback {
            from: active.clone(),
            to: to.clone(),
            reason: reason.to_owned(),
        }),
        None => conflict(format!(
            "no other policy that was active before {active} is in service; activate one instead"
        )),
    }
}

fn retire(state: &RegistryState, policy: &PolicyRef) -> Result<Option<Change>, Refused> {
    match known(state, policy)? {
        PolicyState::Active => {
            return conflict(format!("{policy} is active; activate another policy first"));
        }
        PolicyState::Quarantined => {
            return conflict(format!(
                "{policy} is quarantined and serves no viewers, so it need not be retired"
            ));
        }
        PolicyState::Retired => return Ok(None),
        PolicyState::Published | PolicyState::Shadow | PolicyState::Canary => {}
    }
    let uses = |experiment: &Experiment| {
        let assigns = [ExperimentState::Running, ExperimentState::Paused];
        let variations = &experiment.spec.variations;
        assigns.contains(&experiment.state) && variations.iter().any(|v| v.policy == *policy)
    };
    if let Some((key, _)) = state.experiments.iter().find(|(_, e)| uses(e)) {
        return conflict(format!(
            "{policy} is a variation of experiment `{key}`; stop the experiment first"
        ));
    }
    Ok(Some(Change::Retire {
        policy: policy.clone(),
    }))
}

fn known(state: &RegistryState, policy: &PolicyRef) -> Result<PolicyState, Refused> {
    state_of(state, policy).ok_or_else(|| Refused::Unknown(policy.clone()))
}

/// Returns the state of a policy that may serve viewers.
///
/// # Errors
/// Fails if the policy is not published, or is retired or quarantined.
pub fn in_service(state: &RegistryState, policy: &PolicyRef) -> Result<PolicyState, Refused> {
    match known(state, policy)? {
        PolicyState::Retired => conflict(format!(
            "{policy} is retired; publish it again under a new version"
        )),
        PolicyState::Quarantined => {
            let digest = state.policy(policy).map(|published| published.digest);
            let quarantine = digest.and_then(|digest| state.quarantined.get(&digest));
            let why = quarantine.map_or("no reason given", |q| q.reason.as_str());
            conflict(format!(
                "{policy} is quarantined ({why}); lift the quarantine with `nova policy lift`, or publish a changed version: a policy with the same behaviour stays quarantined under every name"
            ))
        }
        stands => Ok(stands),
    }
}

/// Returns the state of a policy, or `None` if it is not published.
pub fn state_of(state: &RegistryState, policy: &PolicyRef) -> Option<PolicyState> {
    let published = state.policy(policy)?;
    Some(if state.quarantined.contains_key(&published.digest) {
        PolicyState::Quarantined
    } else if state.retired.contains(policy) {
        PolicyState::Retired
    } else if state.activations.last() == Some(policy) {
        PolicyState::Active
    } else if state.canary.as_ref().is_some_and(|c| c.policy == *policy) {
        PolicyState::Canary
    } else if state.shadows.contains(policy) {
        PolicyState::Shadow
    } else {
        PolicyState::Published
    })
}

/// Returns the quarantine that takes a variation out of service, if there is one. The quarantine
/// of a policy applies to all its variations, for all their parameters. The quarantine of a
/// variation applies to that variation only.
pub fn variation_quarantine<'a>(
    state: &'a RegistryState,
    variation: &VariationSpec,
) -> Option<&'a Quarantine> {
    if state.quarantined.is_empty() {
        return None;
    }
    let published = state.policy(&variation.policy)?;
    let own = variation.params.clone().map(|params| {
        let overridden = published.spec.with_overrides(&params.into());
        overridden.digest()
    });
    [Some(published.digest), own]
        .into_iter()
        .flatten()
        .find_map(|digest| state.quarantined.get(&digest))
}

/// Returns the policies that rollbacks return to, the next one first.
pub fn rollback_targets(state: &RegistryState) -> impl Iterator<Item = &PolicyRef> {
    let (active, former) = match state.activations.split_last() {
        Some((active, former)) => (Some(active), former),
        None => (None, [].as_slice()),
    };
    former
        .iter()
        .rev()
        .filter(move |policy| Some(*policy) != active && in_service(state, policy).is_ok())
}

/// Applies the consequences of quarantines that are still missing in `state`, and returns them.
pub fn complete_quarantines(state: &mut RegistryState) -> Vec<Change> {
    let mut changes = agreed_quarantines(state);
    for change in &changes {
        state.apply(change);
    }
    if state.quarantined.is_empty() {
        return changes;
    }
    let mut following = paused_experiments(state);
    following.extend(way_out(state));
    for change in &following {
        state.apply(change);
    }
    changes.extend(following);
    changes
}

/// Returns the quarantines of digests that enough hosts withdrew.
fn agreed_quarantines(state: &RegistryState) -> Vec<Change> {
    let last_resort = state.policy(&baseline()).map(|published| published.digest);
    let withdrawn = state.withdrawals.iter();
    withdrawn
        .filter(|(digest, _)| {
            Some(**digest) != last_resort && !state.quarantined.contains_key(digest)
        })
        .filter_map(|(digest, by_host)| {
            Some(Change::Quarantine {
                digest: *digest,
                quarantine: agreed(by_host)?,
            })
        })
        .collect()
}

/// Returns the quarantine on which these hosts agree, if they are enough.
fn agreed(by_host: &BTreeMap<String, Withdrawal>) -> Option<Quarantine> {
    let alone = by_host.values().find(|withdrawal| withdrawal.is_only_host);
    let hosts = by_host.len();
    let (latest, reason) = match alone {
        Some(alone) => (alone, alone.reason.clone()),
        None if hosts < AGREEING_HOSTS => return None,
        None => {
            let latest = by_host.values().max_by_key(|withdrawal| withdrawal.at_ms)?;
            (latest, format!("{hosts} hosts agree: {}", latest.reason))
        }
    };
    Some(Quarantine {
        policy: latest.policy.clone(),
        reason,
        by: HOST.to_owned(),
        at_ms: latest.at_ms,
    })
}

/// Returns the digests that a lift of this policy brings back: its own, and those of variations
/// that were quarantined or withdrawn under its name.
///
/// # Errors
/// Fails if the policy is not published, or if none of its digests is out of service.
pub fn digests_to_lift(state: &RegistryState, policy: &PolicyRef) -> Result<Vec<Digest>, Refused> {
    known(state, policy)?;
    let own = state.policy(policy).map(|published| published.digest);
    let quarantined = state
        .quarantined
        .iter()
        .filter(|(digest, quarantine)| Some(**digest) == own || quarantine.policy == *policy)
        .map(|(digest, _)| *digest);
    let withdrawn = state
        .withdrawals
        .iter()
        .filter(|(digest, by_host)| {
            let mut by_host = by_host.values();
            Some(**digest) == own || by_host.any(|withdrawal| withdrawal.policy == *policy)
        })
        .map(|(digest, _)| *digest);
    let digests: BTreeSet<Digest> = quarantined.chain(withdrawn).collect();
    if digests.is_empty() {
        return conflict(format!(
            "{policy} is neither quarantined nor out of service on any host; there is nothing to lift"
        ));
    }
    Ok(digests.into_iter().collect())
}

fn paused_experiments(state: &RegistryState) -> Vec<Change> {
    let hit = |experiment: &Experiment| {
        let mut variations = experiment.spec.variations.iter();
        experiment.state == ExperimentState::Running
            && variations.any(|variation| variation_quarantine(state, variation).is_some())
    };
    let running = state.experiments.iter();
    running
        .filter(|(_, experiment)| hit(experiment))
        .map(|(key, experiment)| Change::PutExperiment {
            key: key.clone(),
            experiment: Experiment {
                spec: experiment.spec.clone(),
                state: ExperimentState::Paused,
            },
        })
        .collect()
}

/// Returns the change that replaces a quarantined active policy. It rolls back to the newest
/// former policy in service, or activates the bundled baseline if there is none. Returns `None`
/// if the baseline is out of service too. Then the native ranking serves, and the stack of
/// activations stays as it is until an operator activates a policy.
fn way_out(state: &RegistryState) -> Option<Change> {
    let active = state.activations.last()?;
    let digest = state.policy(active)?.digest;
    let quarantine = state.quarantined.get(&digest)?;
    if let Some(to) = rollback_targets(state).next() {
        return Some(Change::Rollback {
            from: active.clone(),
            to: to.clone(),
            reason: format!("{active} is quarantined: {}", quarantine.reason),
        });
    }
    let baseline = baseline();
    in_service(state, &baseline)
        .is_ok()
        .then_some(Change::Activate { policy: baseline })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
