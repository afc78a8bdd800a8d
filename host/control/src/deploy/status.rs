//! Status of the serving policies, for people.

use super::{Deploy, Serving};
use chrono::{DateTime, Utc};
use nova_model::artifact::{Digest, PolicyRef};
use nova_model::budget::{Counts, Thresholds};
use nova_model::quarantine::Quarantine;
use nova_model::registry::{HOST, RegistryState};
use nova_model::time::utc;
use nova_policy::loaded::LoadedPolicy;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Calls in the window of the error budgets, by policy.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ServingStatus {
    pub window_s: u64,
    /// Memory of the instances of all policies on this host.
    pub memory: MemoryStatus,
    /// The active policy first, former ones last.
    pub policies: Vec<PolicyStatus>,
    /// What is out of service, on every host or on one.
    pub out_of_service: Vec<OutOfService>,
}

/// A digest that serves no viewer, on every host or on one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct OutOfService {
    /// `name@version` under which it failed or was quarantined.
    #[schema(value_type = String)]
    pub policy: PolicyRef,
    /// The effective digest.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Id of the host that took it out of its own service. Null for a quarantine, which holds on
    /// every host.
    pub host: Option<String>,
    /// True for the host that answers.
    pub is_this_host: bool,
    pub since: DateTime<Utc>,
    pub reason: String,
    /// The token's subject, `cli`, or `host`.
    pub by: String,
}

/// Returns what is out of service by the shared state: the quarantines, then the withdrawals of
/// each host.
fn out_of_service(state: &RegistryState, this_host: &str) -> Vec<OutOfService> {
    let quarantined = state.quarantined.iter().map(|(digest, quarantine)| {
        let Quarantine {
            policy,
            reason,
            by,
            at_ms,
        } = quarantine.clone();
        OutOfService {
            policy,
            digest: *digest,
            host: None,
            is_this_host: false,
            since: utc(at_ms),
            reason,
            by,
        }
    });
    let withdrawn = state.withdrawals.iter().flat_map(|(digest, by_host)| {
        by_host.iter().map(|(host, withdrawal)| OutOfService {
            policy: withdrawal.policy.clone(),
            digest: *digest,
            host: Some(host.clone()),
            is_this_host: host == this_host,
            since: utc(withdrawal.at_ms),
            reason: withdrawal.reason.clone(),
            by: HOST.to_owned(),
        })
    });
    quarantined.chain(withdrawn).collect()
}

#[derive(Debug, Clone, Copy, Serialize, utoipa::ToSchema)]
pub struct MemoryStatus {
    /// Upper limit, in bytes.
    pub budget_bytes: u64,
    /// Reserved by running and idle instances.
    pub used_bytes: u64,
    /// The part of `used_bytes` that idle instances hold.
    pub idle_bytes: u64,
}

#[derive(Debug, Clone, Copy, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Active,
    Canary,
    Variation,
    /// A former policy that stays compiled. Rollbacks return to it, and it ranks if the active
    /// policy fails.
    Former,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PolicyStatus {
    /// `name@version`.
    #[schema(value_type = String)]
    pub policy: PolicyRef,
    /// The effective digest. Policies with equal behaviour share their numbers.
    #[schema(value_type = String)]
    pub digest: Digest,
    pub role: Role,
    /// `experiment/variation`.
    pub variation: Option<String>,
    /// Share of the viewers in percent, if the policy is a canary.
    pub percent: Option<f64>,
    /// Rankings in the window.
    pub calls: u32,
    /// Fraction of all policies' calls, 0 … 1.
    pub share: f64,
    pub ok: u32,
    /// Number of failures by kind.
    pub failures: BTreeMap<&'static str, u32>,
    /// Processor time of a ranking; null without calls.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Number of further failures until the policy is taken out of service, at the current
    /// number of calls.
    pub failures_left: u32,
    /// Memory that the instances of its modules have reserved. Policies that share a module each
    /// include it.
    pub memory_bytes: u64,
}

impl Deploy {
    pub fn status(&self, thresholds: &Thresholds, now: Instant) -> ServingStatus {
        let serving = self.serving();
        let mut policies: Vec<PolicyStatus> = in_use(&serving)
            .into_iter()
            .map(|used| used.status(thresholds, now))
            .collect();
        let calls: BTreeMap<Digest, u32> = policies.iter().map(|p| (p.digest, p.calls)).collect();
        let total = f64::from(calls.values().sum::<u32>().max(1));
        for policy in &mut policies {
            policy.share = f64::from(policy.calls) / total;
        }
        let memory = self.engine().memory().usage();
        ServingStatus {
            window_s: thresholds.window_s,
            memory: MemoryStatus {
                budget_bytes: memory.budget,
                used_bytes: memory.used,
                idle_bytes: memory.idle,
            },
            policies,
            out_of_service: out_of_service(&serving.state, self.offline.withdrawals.host()),
        }
    }
}

struct InUse<'a> {
    policy: &'a LoadedPolicy,
    role: Role,
    variation: Option<String>,
    percent: Option<f64>,
}

fn in_use(serving: &Serving) -> Vec<InUse<'_>> {
    let plain = |policy, role| InUse {
        policy,
        role,
        variation: None,
        percent: None,
    };
    let mut used = vec![plain(&serving.active, Role::Active)];
    used.extend(serving.canary.iter().map(|canary| InUse {
        percent: Some(canary.percent),
        ..plain(&canary.policy, Role::Canary)
    }));
    for experiment in &serving.experiments {
        used.extend(experiment.variations().iter().map(|variation| InUse {
            variation: Some(format!("{}/{}", experiment.key, variation.key)),
            ..plain(&variation.policy, Role::Variation)
        }));
    }
    used.extend(serving.warm.iter().map(|p| plain(p, Role::Former)));
    used
}

impl InUse<'_> {
    fn status(self, thresholds: &Thresholds, now: Instant) -> PolicyStatus {
        let counts: Counts = self.policy.outcomes.counts(now, thresholds.window_s);
        let ms = |share| {
            counts
                .quantile(share)
                .map(|took: Duration| took.as_secs_f64() * 1e3)
        };
        let failures = counts.failures();
        PolicyStatus {
            policy: self.policy.spec.policy.clone(),
            digest: self.policy.effective_digest,
            role: self.role,
            variation: self.variation,
            percent: self.percent,
            calls: counts.calls,
            share: 0.0,
            ok: counts.calls - counts.failed(),
            failures: failures.map(|(kind, n)| (kind.as_str(), n)).collect(),
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            failures_left: counts
                .failures_allowed(thresholds)
                .saturating_sub(counts.failed()),
            memory_bytes: self.policy.instance_bytes(),
        }
    }
}
