//! Withdrawals: a host takes a digest out of its own service, because the policy failed there.
//!
//! A host decides for itself alone. It may be slow, throttled or broken, and then the policy is
//! good. The whole fleet follows when a second host agrees, when the host is the only one, or when
//! an operator quarantines the policy ([`super::lifecycle::complete_quarantines`]).

use super::artifact::{Digest, PolicyRef};
use super::lifecycle::complete_quarantines;
use super::quarantine::{Quarantine, Withdrawal};
use super::registry::{Change, HOST, RegistryState};
use super::time::UnixMs;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A withdrawal on the host that made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnWithdrawal {
    pub digest: Digest,
    pub policy: PolicyRef,
    pub reason: String,
    pub at_ms: UnixMs,
    /// Newest revision of the registry that this host knew.
    pub base_revision: i64,
}

impl OwnWithdrawal {
    /// Reports if the registry knows enough that the host need not remember this withdrawal: it
    /// was lifted, or the digest is in quarantine everywhere.
    pub fn is_settled(&self, state: &RegistryState) -> bool {
        let lift = state.lifts.get(&self.digest);
        lift.is_some_and(|lift| lift.base_revision >= self.base_revision)
            || state.quarantined.contains_key(&self.digest)
    }

    /// Returns the change that reports this withdrawal to the registry. Returns `None` if the
    /// registry has it, or if it is settled.
    pub fn report(&self, host: &str, is_only_host: bool, state: &RegistryState) -> Option<Change> {
        let by_host = state.withdrawals.get(&self.digest);
        let is_known = by_host.is_some_and(|by_host| by_host.contains_key(host));
        (!is_known && !self.is_settled(state)).then(|| Change::Withdraw {
            digest: self.digest,
            host: host.to_owned(),
            withdrawal: Withdrawal {
                policy: self.policy.clone(),
                reason: self.reason.clone(),
                at_ms: self.at_ms,
                is_only_host,
            },
        })
    }

    fn as_quarantine(&self) -> Quarantine {
        Quarantine {
            policy: self.policy.clone(),
            reason: self.reason.clone(),
            by: HOST.to_owned(),
            at_ms: self.at_ms,
        }
    }
}

/// Returns the digests that `host` took out of its own service: those that it remembers in `own`,
/// and those that the registry remembers for it, should its disk have been lost.
pub fn withdrawn_on(
    host: &str,
    own: &[OwnWithdrawal],
    state: &RegistryState,
) -> BTreeMap<Digest, Quarantine> {
    let reported = state.withdrawals.iter().filter_map(|(digest, by_host)| {
        let Withdrawal {
            policy,
            reason,
            at_ms,
            ..
        } = by_host.get(host)?.clone();
        let by = HOST.to_owned();
        let quarantine = Quarantine {
            policy,
            reason,
            by,
            at_ms,
        };
        Some((*digest, quarantine))
    });
    let own = own.iter().filter(|own| !own.is_settled(state));
    reported
        .chain(own.map(|own| (own.digest, own.as_quarantine())))
        .collect()
}

/// Returns the state by which a host serves: the registry's, in which the digests that this host
/// withdrew are in quarantine, with all consequences.
pub fn served_state(
    state: &RegistryState,
    withdrawn: &BTreeMap<Digest, Quarantine>,
) -> RegistryState {
    let mut served = state.clone();
    for (digest, quarantine) in withdrawn {
        served.apply(&Change::Quarantine {
            digest: *digest,
            quarantine: quarantine.clone(),
        });
    }
    complete_quarantines(&mut served);
    served
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
