//! What becomes of local changes, whatever others did meanwhile.

use super::*;
use crate::clock::unix_ms;
use proptest::prelude::*;

/// The registry, as far as activations go: a state, and a log of what made it.
#[derive(Debug, Clone, Default)]
struct Model {
    state: RegistryState,
    log: Vec<AuditEntry>,
}

impl Model {
    fn apply(&mut self, change: &Change, actor: &str) {
        self.state.apply(change);
        self.state.revision += 1;
        let entry = AuditEntry::of(change, actor, self.state.revision, unix_ms(), None);
        self.log.push(entry.unwrap());
    }

    fn activate(&mut self, policy: &PolicyRef, actor: &str) {
        if self.state.activations.last() != Some(policy) {
            let policy = policy.clone();
            self.apply(&Change::Activate { policy }, actor);
        }
    }

    fn settle(&mut self, local: &LocalChange) {
        let mut since = Since::new(local.base_revision);
        let entries = self
            .log
            .iter()
            .filter(|entry| entry.id > local.base_revision);
        entries.for_each(|entry| since.read(local, entry));
        if !since.is_settled {
            let change = reconciled(local, &self.state, &since);
            self.apply(&change, &local.actor);
        }
    }
}

fn rollback_of(state: &RegistryState) -> Option<Change> {
    let (from, former) = state.activations.split_last()?;
    Some(Change::Rollback {
        from: from.clone(),
        to: former.last()?.clone(),
        reason: "bad".into(),
    })
}

/// Rollbacks of a host that is alone from now on, and what it serves by then.
fn made_alone(base: &RegistryState, host: &str, count: usize) -> (Vec<LocalChange>, RegistryState) {
    let mut state = base.clone();
    let mut changes = Vec::new();
    while changes.len() < count
        && let Some(change) = rollback_of(&state)
    {
        changes.push(LocalChange {
            id: Uuid::now_v7(),
            host: host.into(),
            intent: Intent::of(&change, &state).unwrap(),
            actor: "ada".into(),
            made_at_ms: 1,
            base_revision: base.revision,
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
    fn what_was_made_alone_holds_unless_somebody_moved_the_active_policy_and_then_nothing_of_it_does(
        activations in prop::collection::vec(policy(), 1..6),
        alone in 1_usize..4,
        meanwhile in prop::collection::vec(elsewhere(), 0..5),
        settled_twice in any::<bool>(),
    ) {
        let mut registry = Model::default();
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
            registry.settle(change);
            if settled_twice {
                registry.settle(change);
            }
        }
        let expected = if was_moved { others } else { served.activations };
        prop_assert_eq!(&registry.state.activations, &expected);
        let marked = registry.log.iter().filter(|entry| entry.detail["local"].is_object());
        prop_assert_eq!(marked.count(), local.len(), "each is in the log once");
    }
}

#[test]
fn nothing_holds_in_a_registry_that_was_put_back_to_an_older_state() {
    let mut registry = Model::default();
    let one = "p@1.0.0".parse().unwrap();
    registry.activate(&one, "ada");
    let backup = registry.clone();
    registry.activate(&"p@2.0.0".parse().unwrap(), "ada");
    let (local, _) = made_alone(&registry.state, "here", 1);
    let mut registry = backup;
    registry.settle(&local[0]);
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
