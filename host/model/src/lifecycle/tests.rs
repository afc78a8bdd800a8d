//! Tests of the lifecycle against a table of the allowed steps, and of cases that the table
//! cannot express.

use super::*;
use crate::registry::PublishedPolicy;
use PolicyState::{Active, Canary, Published, Quarantined, Retired, Shadow};
use proptest::prelude::*;
use serde_json::json;

/// `baseline@1.0.0` and three more policies, each with its own digest.
const POLICIES: [&str; 4] = ["baseline@1.0.0", "a@1.0.0", "b@1.0.0", "c@1.0.0"];

fn reference(name: &str) -> PolicyRef {
    name.parse().unwrap()
}

fn publish(name: &str, behaviour: &str) -> PublishedPolicy {
    let stage = json!({"module": Digest::from_content(behaviour.as_bytes()), "params": {}});
    let spec = json!({
        "policy": name, "description": "",
        "stages": {"dedup": stage, "score": stage, "saturation": stage},
        "limits": {"deadline_ms": 20, "memory_mb": 16, "instance": "fresh"},
    });
    let spec: crate::artifact::PolicySpec = serde_json::from_value(spec).unwrap();
    PublishedPolicy {
        digest: spec.digest(),
        spec,
        published_at_ms: 0,
    }
}

fn state_with(names: &[&str]) -> RegistryState {
    RegistryState {
        policies: names.iter().map(|name| publish(name, name)).collect(),
        ..RegistryState::default()
    }
}

fn digest(state: &RegistryState, name: &str) -> Digest {
    state.policy(&reference(name)).unwrap().digest
}

fn quarantine(state: &RegistryState, name: &str) -> Event {
    Event::Quarantine {
        digest: digest(state, name),
        quarantine: Quarantine {
            policy: reference(name),
            reason: "trapped".into(),
            by: "host".into(),
            at_ms: 1,
        },
    }
}

fn take(state: &RegistryState, event: Event) -> RegistryState {
    step(state, &event).unwrap().0
}

fn experiment(variations: serde_json::Value, state: ExperimentState) -> Experiment {
    Experiment {
        spec: serde_json::from_value(json!({ "variations": variations })).unwrap(),
        state,
    }
}

/// State of each policy, and the stack of activations, by index.
#[derive(Debug, Clone)]
struct Model {
    stands: [PolicyState; 4],
    stack: Vec<usize>,
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Shadow(usize),
    Canary(usize, u8),
    Activate(usize),
    Retire(usize),
    Quarantine(usize),
    Rollback,
}

impl Model {
    fn new() -> Self {
        Self {
            stands: [Published; 4],
            stack: Vec::new(),
        }
    }

    /// Returns the model after the step, or `None` if the step is refused.
    fn after(&self, act: Act) -> Option<Self> {
        let mut next = self.clone();
        let other_canary = |p| (0..4).any(|q| q != p && self.stands[q] == Canary);
        match act {
            Act::Shadow(p) => match self.stands[p] {
                Published | Shadow => next.stands[p] = Shadow,
                _ => return None,
            },
            Act::Canary(p, 0) => {
                if [Shadow, Canary].contains(&self.stands[p]) {
                    next.stands[p] = Published;
                }
            }
            Act::Canary(p, _) => match self.stands[p] {
                Published | Shadow | Canary if !other_canary(p) => next.stands[p] = Canary,
                _ => return None,
            },
            Act::Activate(p) => match self.stands[p] {
                Published | Shadow | Canary => next.push(p),
                Active => {}
                _ => return None,
            },
            Act::Retire(p) => match self.stands[p] {
                Published | Shadow | Canary | Retired => next.stands[p] = Retired,
                _ => return None,
            },
            Act::Rollback => next.pop_to(next.former()?),
            Act::Quarantine(p) => {
                let was = std::mem::replace(&mut next.stands[p], Quarantined);
                match next.former() {
                    _ if was != Active => {}
                    Some(at) => next.pop_to(at),
                    None if next.serves(0) => next.push(0),
                    None => {}
                }
            }
        }
        Some(next)
    }

    fn serves(&self, p: usize) -> bool {
        ![Retired, Quarantined].contains(&self.stands[p])
    }

    fn former(&self) -> Option<usize> {
        let (top, below) = self.stack.split_last()?;
        below.iter().rposition(|p| p != top && self.serves(*p))
    }

    fn leave(&mut self) {
        if let Some(&top) = self.stack.last()
            && self.stands[top] == Active
        {
            self.stands[top] = Published;
        }
    }

    fn push(&mut self, p: usize) {
        self.leave();
        self.stack.push(p);
        self.stands[p] = Active;
    }

    fn pop_to(&mut self, at: usize) {
        self.leave();
        self.stack.truncate(at + 1);
        self.stands[self.stack[at]] = Active;
    }
}

fn event(state: &RegistryState, act: Act) -> Event {
    let policy = |p: usize| reference(POLICIES[p]);
    match act {
        Act::Shadow(p) => Event::Shadow(policy(p)),
        Act::Canary(p, percent) => Event::Canary {
            policy: policy(p),
            percent: percent.into(),
        },
        Act::Activate(p) => Event::Activate(policy(p)),
        Act::Retire(p) => Event::Retire(policy(p)),
        Act::Quarantine(p) => quarantine(state, POLICIES[p]),
        Act::Rollback => Event::Rollback {
            reason: "try".into(),
            expected_active: None,
        },
    }
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let p = 0usize..4;
    let act = prop_oneof![
        3 => p.clone().prop_map(Act::Activate),
        2 => p.clone().prop_map(Act::Shadow),
        2 => (p.clone(), 0u8..=100).prop_map(|(p, percent)| Act::Canary(p, percent / 20 * 20)),
        1 => p.clone().prop_map(Act::Retire),
        1 => p.prop_map(Act::Quarantine),
        2 => Just(Act::Rollback),
    ];
    proptest::collection::vec(act, 0..40)
}

proptest! {
    #[test]
    fn every_sequence_of_steps_follows_the_table_of_allowed_steps(acts in acts()) {
        let mut state = state_with(&POLICIES);
        let mut model = Model::new();
        for act in acts {
            match (step(&state, &event(&state, act)), model.after(act)) {
                (Ok((next, changes)), Some(expected)) => {
                    prop_assert_eq!(changes.is_empty(), next == state, "{:?}", act);
                    state = next;
                    model = expected;
                }
                (Err(_), None) => {}
                (got, expected) => prop_assert!(false, "{act:?}: {got:?}, not {expected:?}"),
            }
            let stands = POLICIES.map(|p| state_of(&state, &reference(p)).unwrap());
            prop_assert_eq!(stands, model.stands, "{:?}", act);
            let stack: Vec<PolicyRef> = model.stack.iter().map(|&p| reference(POLICIES[p])).collect();
            prop_assert_eq!(&state.activations, &stack, "{:?}", act);
            prop_assert!(complete_quarantines(&mut state.clone()).is_empty(), "a consequence was missing");
        }
    }
}

#[test]
fn a_rollback_skips_what_is_out_of_service_and_never_returns_to_itself() {
    let mut state = state_with(&POLICIES);
    for name in ["b@1.0.0", "a@1.0.0", "c@1.0.0", "a@1.0.0"] {
        state = take(&state, Event::Activate(reference(name)));
    }
    state = take(&state, quarantine(&state, "c@1.0.0"));
    let rollback = Event::Rollback {
        reason: "try".into(),
        expected_active: None,
    };
    state = take(&state, rollback.clone());
    assert_eq!(state.activations, [reference("b@1.0.0")]);
    assert!(matches!(step(&state, &rollback), Err(Refused::Conflict(_))));
}

#[test]
fn the_baseline_is_the_last_rollback_target_and_stays_on_the_stack_when_it_is_quarantined_too() {
    let mut state = state_with(&POLICIES);
    state = take(&state, Event::Activate(reference("a@1.0.0")));
    state = take(&state, quarantine(&state, "a@1.0.0"));
    assert_eq!(state.activations.last(), Some(&baseline()));
    state = take(&state, quarantine(&state, "baseline@1.0.0"));
    assert_eq!(state_of(&state, &baseline()), Some(Quarantined));
    state = take(&state, Event::Activate(reference("b@1.0.0")));
    assert_eq!(state_of(&state, &reference("b@1.0.0")), Some(Active));
}

#[test]
fn a_quarantine_holds_for_equal_behaviour_under_another_name() {
    let mut state = state_with(&POLICIES);
    state.policies.push(publish("twin@2.0.0", "a@1.0.0"));
    state = take(
        &state,
        Event::Canary {
            policy: reference("twin@2.0.0"),
            percent: 5.0,
        },
    );
    state = take(&state, quarantine(&state, "a@1.0.0"));
    assert_eq!(state.canary, None);
    let refused = step(&state, &Event::Activate(reference("twin@2.0.0"))).unwrap_err();
    assert!(refused.to_string().contains("publish a changed version"));
}

#[test]
fn a_quarantined_variation_pauses_its_experiment_and_leaves_its_policy_in_service() {
    let mut state = state_with(&POLICIES);
    let variations = json!([
        {"key": "x", "weight": 0.5, "policy": "a@1.0.0"},
        {"key": "y", "weight": 0.5, "policy": "a@1.0.0", "params": {"score": {"w": 2.0}}},
    ]);
    for (key, stands) in [
        ("running", ExperimentState::Running),
        ("draft", ExperimentState::Draft),
    ] {
        let experiment = experiment(variations.clone(), stands);
        state.experiments.insert(key.into(), experiment);
    }
    let varied = &state.experiments["running"].spec.variations[1];
    let overrides = varied.params.clone().unwrap().into();
    let published = state.policy(&reference("a@1.0.0")).unwrap();
    let effective = published.spec.with_overrides(&overrides).digest();
    let Event::Quarantine { quarantine, .. } = quarantine(&state, "a@1.0.0") else {
        unreachable!()
    };
    let event = Event::Quarantine {
        digest: effective,
        quarantine,
    };
    let (state, changes) = step(&state, &event).unwrap();
    assert_eq!(changes.len(), 2, "{changes:?}");
    assert_eq!(state.experiments["running"].state, ExperimentState::Paused);
    assert_eq!(state.experiments["draft"].state, ExperimentState::Draft);
    assert_eq!(state_of(&state, &reference("a@1.0.0")), Some(Published));
}

#[test]
fn a_policy_in_a_running_experiment_is_not_retired() {
    let mut state = state_with(&POLICIES);
    let variations = json!([{"key": "x", "weight": 1.0, "policy": "a@1.0.0"}]);
    let running = experiment(variations, ExperimentState::Running);
    state.experiments.insert("e".into(), running);
    let refused = step(&state, &Event::Retire(reference("a@1.0.0"))).unwrap_err();
    assert!(refused.to_string().contains("experiment `e`"), "{refused}");
}

#[test]
fn a_percent_out_of_range_and_an_unknown_policy_are_refused() {
    let state = state_with(&POLICIES);
    for percent in [-1.0, 100.5, f64::NAN] {
        let event = Event::Canary {
            policy: reference("a@1.0.0"),
            percent,
        };
        assert_eq!(step(&state, &event).unwrap_err(), Refused::Percent);
    }
    let unknown = reference("nobody@1.0.0");
    assert_eq!(
        step(&state, &Event::Activate(unknown.clone())).unwrap_err(),
        Refused::Unknown(unknown)
    );
}
