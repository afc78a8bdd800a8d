//! Tests of the reconciliation of local changes after changes by others.

use super::*;
use crate::artifact::{Digest, PolicyRef};
use crate::audit_key::AuditKeys;
use crate::registry::PublishedPolicy;
use proptest::prelude::*;
use uuid::Uuid;

/// Model of the registry for activations: a state and the log that led to it.
#[derive(Debug, Clone, Default)]
struct Model {
    state: RegistryState,
    log: Vec<AuditEntry>,
}

impl Model {
    fn new() -> Self {
        let mut model = Self::default();
        let policies = (1..4).map(|n| published(format!("p@{n}.0.0").parse().unwrap()));
        model.state.policies = policies.collect();
        model
    }

    fn apply(&mut self, change: &Change, actor: &str) {
        self.state.apply(change);
        self.state.revision += 1;
        let at_ms = 1_750_000_000_000;
        let (id, keys) = (self.state.revision, AuditKeys::default());
        let entry = AuditEntry::new(change, actor, id, at_ms, self.state.head, &keys).unwrap();
        self.state.head = entry.hash;
        self.log.push(entry);
    }

    fn activate(&mut self, policy: &PolicyRef, actor: &str) {
        if self.state.activations.last() != Some(policy) {
            let policy = policy.clone();
            self.apply(&Change::Activate { policy }, actor);
        }
    }

    fn reconcile(&mut self, local: &LocalChange) {
        let mut since = Since::new(local);
        let from = since.revision;
        let entries = self.log.iter().filter(|entry| entry.id > from);
        entries.for_each(|entry| since.read(local, entry));
        if !since.is_reconciled {
            let change = reconciled(local, &self.state, &since);
            self.apply(&change, &local.actor);
        }
    }
}

fn rollback_of(state: &RegistryState) -> Option<Change> {
    let event = Event::Rollback {
        reason: "bad".into(),
        expected_active: None,
    };
    step(state, &event).ok()?.1.into_iter().next()
}

fn published(policy: PolicyRef) -> PublishedPolicy {
    let stage = serde_json::json!({"module": Digest::from_content(b"module"), "params": {}});
    let spec = serde_json::json!({
        "policy": policy,
        "description": "",
        "stages": {"dedup": stage, "score": stage, "saturation": stage},
        "limits": {"deadline_ms": 20, "memory_mb": 16, "instance": "fresh"},
    });
    PublishedPolicy {
        spec: serde_json::from_value(spec).unwrap(),
        digest: Digest::from_content(policy.to_string().as_bytes()),
        published_at_ms: 1,
    }
}

/// Rollbacks that a host makes without the registry, and the state that it serves after them.
fn made_alone(base: &RegistryState, host: &str, count: usize) -> (Vec<LocalChange>, RegistryState) {
    let mut state = base.clone();
    let mut changes = Vec::new();
    while changes.len() < count
        && let Some(change) = rollback_of(&state)
    {
        changes.push(LocalChange {
            id: Uuid::now_v7(),
            host: host.into(),
            intent: Intent::from_change(&change).unwrap(),
            actor: "ada".into(),
            made_at_ms: 1,
            base_revision: base.revision,
            base_head: base.head,
        });
        state.apply(&change);
    }
    (changes, state)
}

fn policy() -> impl Strategy<Value = PolicyRef> {
    (1_u64..4).prop_map(|n| format!("p@{n}.0.0").parse().unwrap())
}

#[derive(Debug, Clone)]
enum Elsewhere {
    Activate(PolicyRef),
    RollBack,
    SetFlag,
}

fn elsewhere() -> impl Strategy<Value = Elsewhere> {
    prop_oneof![
        policy().prop_map(Elsewhere::Activate),
        Just(Elsewhere::RollBack),
        Just(Elsewhere::SetFlag),
    ]
}

proptest! {
    #[test]
    fn offline_rollbacks_all_apply_unless_another_operator_moved_the_active_policy_and_then_none_do(
        activations in prop::collection::vec(policy(), 1..6),
        alone in 1_usize..4,
        meanwhile in prop::collection::vec(elsewhere(), 0..5),
        reconciled_twice in any::<bool>(),
    ) {
        let mut registry = Model::new();
        for policy in &activations {
            registry.activate(policy, "ada");
        }
        let (local, served) = made_alone(&registry.state, "here", alone);
        let known = registry.log.len();
        for step in meanwhile {
            match step {
                Elsewhere::Activate(policy) => registry.activate(&policy, "bob"),
                Elsewhere::RollBack => {
                    if let Some(change) = rollback_of(&registry.state) {
                        registry.apply(&change, "bob");
                    }
                }
                Elsewhere::SetFlag => {
                    registry.apply(&Change::SetFlag { name: "f".into(), enabled: true }, "bob");
                }
            }
        }
        let was_moved = registry.log[known..].iter().any(|entry| entry.action != "set_flag");
        let others = registry.state.activations.clone();
        for change in &local {
            registry.reconcile(change);
            if reconciled_twice {
                registry.reconcile(change);
            }
        }
        let expected = if was_moved { others } else { served.activations };
        prop_assert_eq!(&registry.state.activations, &expected);
        let marked = registry.log.iter().filter(|entry| entry.detail["local"].is_object());
        prop_assert_eq!(marked.count(), local.len(), "each change is in the log once");
    }
}

#[test]
fn local_changes_are_dropped_if_the_registry_was_restored_to_an_older_state() {
    let mut registry = Model::new();
    let one = "p@1.0.0".parse().unwrap();
    registry.activate(&one, "ada");
    let backup = registry.clone();
    registry.activate(&"p@2.0.0".parse().unwrap(), "ada");
    let (local, _) = made_alone(&registry.state, "here", 1);
    let mut registry = backup;
    registry.reconcile(&local[0]);
    assert_eq!(registry.state.activations, [one]);
    let entry = registry.log.last().unwrap();
    assert_eq!(entry.action, Change::DROPPED);
    assert!(
        entry.detail["why"]
            .as_str()
            .unwrap()
            .contains("older state")
    );
}

#[test]
fn local_changes_are_dropped_if_a_restored_registry_reached_the_same_revision_with_other_changes() {
    let mut registry = Model::new();
    let [one, two, three] = ["1", "2", "3"].map(|n| format!("p@{n}.0.0").parse().unwrap());
    registry.activate(&one, "ada");
    let backup = registry.clone();
    registry.activate(&two, "ada");
    let (local, _) = made_alone(&registry.state, "here", 1);
    let mut registry = backup;
    registry.activate(&three, "bob");
    registry.activate(&two, "bob");
    registry.reconcile(&local[0]);
    assert_eq!(registry.state.activations, [one, three, two]);
    assert_eq!(registry.log.last().unwrap().action, Change::DROPPED);
    // A change of an older version knows no hash.
    let older = LocalChange {
        base_head: None,
        ..local[0].clone()
    };
    assert_eq!(Since::new(&older).revision, older.base_revision);
}
