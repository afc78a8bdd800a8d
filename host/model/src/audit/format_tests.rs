//! Stored entries, in `tests/fixtures/formats`: a log with every kind of change, and the entries
//! of two reconciled local changes, which continue its chain.

use super::*;
use crate::artifact::PolicyRef;
use crate::local_change::{Intent, LocalChange};
use serde_json::json;
use uuid::Uuid;

macro_rules! stored {
    ($name:literal) => {
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/formats/v1/audit/",
            $name
        ))
    };
}
const HOST: &str = "5b0c3f9e-6a55-4b6e-9d0a-0f3f0a9d1c11";

fn read(lines: &str) -> Vec<AuditEntry> {
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn digest(text: &str) -> Option<Digest> {
    Some(text.parse().unwrap())
}

#[test]
fn stored_entries_are_read_and_encoded_again_to_the_same_bytes() {
    for stored in [
        stored!("entries.jsonl"),
        stored!("reconciled.jsonl"),
        stored!("authenticated.jsonl"),
    ] {
        let lines = read(stored).into_iter().map(|entry| {
            let line = serde_json::to_string(&entry).unwrap();
            format!("{line}\n")
        });
        assert_eq!(lines.collect::<String>(), stored);
    }
}

#[test]
fn a_stored_entry_has_all_its_fields() {
    let entry = AuditEntry {
        id: 10,
        at: crate::time::utc(1_796_054_149_159),
        actor: "1".into(),
        action: "rollback".into(),
        subject: "timeline@1.0.0".into(),
        detail: json!({"reason": "complaints", "to": "baseline@1.0.0"}),
        previous_hash: digest("8315615e4bd54f1b8dc5f59ff2bf77d327be2ee3173893f0aab9248a916775f0"),
        hash: digest("003d417d6206a39958ba1b86bcf8ef7b539c826f37eacbc87d3a5454f4d79ffd"),
        mac: None,
    };
    assert_eq!(read(stored!("entries.jsonl"))[9], entry);
}

#[test]
fn a_stored_log_has_an_unbroken_chain_and_names_every_action() {
    let mut log = read(stored!("entries.jsonl"));
    log.extend(read(stored!("reconciled.jsonl")));
    let verified = verify(&log).unwrap();
    assert_eq!((verified.entries, verified.unattested), (23, 0));
    let mut actions: Vec<&str> = log.iter().map(|entry| entry.action.as_str()).collect();
    actions.sort_unstable();
    actions.dedup();
    assert_eq!(
        actions,
        [
            "activate",
            "canary",
            "dropped",
            "publish",
            "put_cohort",
            "put_experiment",
            "quarantine",
            "retire",
            "rollback",
            "set_flag",
            "shadow"
        ]
    );
}

#[test]
fn a_stored_authenticated_entry_continues_the_chain_and_is_authentic() {
    let keys = AuditKeys::new([[7; 32]]);
    let mut verifier = Verifier::new(keys.clone());
    let log = [
        stored!("entries.jsonl"),
        stored!("reconciled.jsonl"),
        stored!("authenticated.jsonl"),
    ];
    let log: Vec<AuditEntry> = log.into_iter().flat_map(read).collect();
    for entry in &log {
        verifier.push(entry).unwrap();
    }
    let verified = verifier.finish().unwrap();
    assert_eq!(
        (verified.authenticated, verified.before_authentication),
        (1, 23)
    );
    let change = Change::SetFlag {
        name: "enable_caching".into(),
        enabled: true,
    };
    let (last, previous) = (&log[23], log[22].hash);
    let made = AuditEntry::new(&change, "ada", 24, 1_750_000_200_000, previous, &keys);
    assert_eq!(made.unwrap(), *last);
}

fn local(id: u8, intent: Intent) -> LocalChange {
    LocalChange {
        id: Uuid::from_u128(0x0197_a000_0000_7000_8000_0000_0000_0000 + u128::from(id)),
        host: HOST.into(),
        intent,
        actor: "ada".into(),
        made_at_ms: 1_750_000_000_000 + u64::from(id - 1) * 1_000,
        base_revision: 21,
        base_head: None,
    }
}

fn changes() -> [Change; 2] {
    let (from, to) = ("timeline@1.0.0", "baseline@1.0.0");
    let [from, to] = [from, to].map(|policy| policy.parse::<PolicyRef>().unwrap());
    let reason = "complaints".to_owned();
    let rollback = Intent::Rollback {
        from: from.clone(),
        to: to.clone(),
        reason: reason.clone(),
    };
    let stop = Intent::StopExperiment {
        key: "recency".into(),
    };
    [
        Change::Reconciled {
            change: Box::new(Change::Rollback { from, to, reason }),
            local: local(1, rollback),
        },
        Change::Dropped {
            local: local(2, stop),
            why: "it is stopped already".into(),
        },
    ]
}

#[test]
fn the_entries_of_reconciled_changes_are_made_again_with_the_same_hashes() {
    let stored = read(stored!("reconciled.jsonl"));
    let mut previous = read(stored!("entries.jsonl")).pop().unwrap().hash;
    let made = [("ada", 1_750_000_100_123), ("ben", 1_750_000_100_456)];
    for ((change, (actor, at_ms)), entry) in changes().iter().zip(made).zip(&stored) {
        let made = AuditEntry::new(
            change,
            actor,
            entry.id,
            at_ms,
            previous,
            &AuditKeys::default(),
        )
        .unwrap();
        assert_eq!(made, *entry);
        previous = made.hash;
    }
}
