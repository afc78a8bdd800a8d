//! The complete record of one ranking: the same request, candidates, parameters, seed and modules
//! give the same answer. On disk it is a format version, a checksum and the record in postcard.
//!
//! Records are not compressed: their columns already use varints, and a replay should spend its
//! time in policies.

use crate::feed::decision::Decision;
use nova_model::artifact::Digest;
use nova_model::experiments::Assignment;
use nova_model::features::CandidateSet;
use nova_model::snapshot::ServedBy;
use nova_policy::loaded::LoadedPolicy;
use nova_policy::ranking::RankInput;
use nova_policy_sdk::Request;
use nova_stores::records::Encoded;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// Format version. It is raised when a reader of the previous format would misread the new one.
const FORMAT: u8 = 1;
/// Length of the truncated sha256, which is enough to detect damage.
const CHECKSUM_BYTES: usize = 8;

/// Reason for recording a ranking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The routed policy did not serve the request; another step of the fallback chain did.
    Failure,
    /// All rankings of this viewer are recorded.
    Viewer,
    Sampled,
}

impl Why {
    pub fn as_str(self) -> &'static str {
        match self {
            Why::Failure => "failure",
            Why::Viewer => "viewer",
            Why::Sampled => "sampled",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub why: Why,
    pub ranking_id: Uuid,
    pub request_id: String,
    pub user_id: u64,
    pub now_ms: u64,
    pub seed: u64,
    pub limit: u32,
    /// The routed policy. `None` if no policy was in service.
    pub routed: Option<PolicyIdentity>,
    /// Experiment and variation.
    pub assignment: Option<(String, String)>,
    pub answer: Answer,
    pub candidates: CandidateSet,
    /// One flag per candidate.
    pub seen: Vec<bool>,
}

/// The order that was shown, the policy that decided it and the step of the fallback chain that
/// used it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    pub served_by: ServedBy,
    pub policy: PolicyIdentity,
    /// Rows of the candidate set, in the order shown.
    pub rows: Vec<u32>,
    /// Scores, parallel to `rows`.
    pub scores: Vec<f32>,
}

/// A policy as it ran. The effective digest covers its modules, parameter values and limits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyIdentity {
    /// `name@version`, or `native`.
    pub label: String,
    pub effective_digest: Digest,
}

impl PolicyIdentity {
    pub fn from_policy(policy: &LoadedPolicy) -> Self {
        Self {
            label: policy.spec.policy.to_string(),
            effective_digest: policy.effective_digest,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("written in format {0}; this program reads format {FORMAT}")]
    Format(u8),
    #[error("damaged: {0}")]
    Damaged(&'static str),
}

impl Record {
    pub fn from_decision(why: Why, decision: &Decision) -> Self {
        let Decision {
            ranking_id,
            request_id,
            routed,
            assignment,
            task,
            ranked,
            ..
        } = decision;
        let pair =
            |Assignment {
                 experiment,
                 variation,
             }: &Assignment| (experiment.to_string(), variation.to_string());
        Self {
            why,
            ranking_id: *ranking_id,
            request_id: request_id.to_string(),
            user_id: task.request.user_id,
            now_ms: task.request.now_ms,
            seed: task.request.seed,
            limit: task.request.limit,
            routed: routed.as_deref().map(PolicyIdentity::from_policy),
            assignment: assignment.as_ref().map(pair),
            answer: Answer {
                served_by: ranked.served_by,
                policy: PolicyIdentity {
                    label: ranked.policy.label(),
                    effective_digest: ranked.policy.effective_digest,
                },
                rows: ranked.ranking.rows.clone(),
                scores: ranked.ranking.scores.clone(),
            },
            candidates: task.set.as_ref().clone(),
            seen: task.seen.clone(),
        }
    }

    pub fn request(&self) -> Request {
        Request {
            user_id: self.user_id,
            now_ms: self.now_ms,
            seed: self.seed,
            limit: self.limit,
        }
    }

    pub fn input<'a>(&'a self, request: &'a Request) -> RankInput<'a> {
        RankInput {
            request,
            set: &self.candidates,
            seen: &self.seen,
        }
    }

    /// The record as it is stored, with the columns that it is found by.
    pub fn to_encoded(&self) -> Encoded {
        let served = &self.answer.policy;
        let routed = self.routed.as_ref().unwrap_or(served);
        Encoded {
            recorded_ms: self.now_ms,
            user_id: self.user_id,
            why: self.why.as_str(),
            routed: routed.effective_digest,
            served: served.effective_digest,
            bytes: self.encode(),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT];
        bytes.extend([0; CHECKSUM_BYTES]);
        // Serialization of plain data into memory cannot fail. If it did, the record would be
        // refused when it is read, because it would lack a valid checksum.
        let mut bytes = postcard::to_extend(self, bytes).unwrap_or_default();
        if let Some((head, body)) = bytes.split_at_mut_checked(1 + CHECKSUM_BYTES) {
            head[1..].copy_from_slice(&checksum(body));
        }
        bytes
    }

    /// # Errors
    /// Fails if the bytes have another format or are damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (format, rest) = bytes.split_first().ok_or(RecordError::Damaged("empty"))?;
        if *format != FORMAT {
            return Err(RecordError::Format(*format));
        }
        let (sum, body) = rest
            .split_at_checked(CHECKSUM_BYTES)
            .ok_or(RecordError::Damaged("truncated"))?;
        if sum != checksum(body) {
            return Err(RecordError::Damaged("its checksum does not match"));
        }
        let record: Record =
            postcard::from_bytes(body).map_err(|_| RecordError::Damaged("not a record"))?;
        record.check()?;
        Ok(record)
    }

    /// Checks the lengths and rows that all readers of a record index by.
    fn check(&self) -> Result<(), RecordError> {
        let (set, n) = (&self.candidates, self.candidates.len());
        if !set.has_even_columns() || self.seen.len() != n {
            return Err(RecordError::Damaged("columns of different lengths"));
        }
        let Answer { rows, scores, .. } = &self.answer;
        if rows.len() != scores.len() || rows.iter().any(|&row| row as usize >= n) {
            return Err(RecordError::Damaged(
                "an answer with rows outside its candidates",
            ));
        }
        Ok(())
    }
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    std::array::from_fn({
        let digest = Sha256::digest(body);
        move |at| digest[at]
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod format_tests;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
pub mod tests {
    use super::*;
    use nova_model::features::Sources;
    use nova_model::post::Counters;
    use proptest::prelude::*;

    /// Returns a record of `n` candidates, shown in their own order.
    pub fn record(n: u32) -> Record {
        let policy = PolicyIdentity {
            label: "baseline@1.0.0".to_owned(),
            effective_digest: Digest::from_content(b"baseline"),
        };
        let ids = |base: u64| (0..u64::from(n)).map(|at| base + at).collect::<Vec<u64>>();
        Record {
            why: Why::Sampled,
            ranking_id: Uuid::from_u128(7),
            request_id: "r".to_owned(),
            user_id: 42,
            now_ms: 1_750_000_000_000,
            seed: u64::MAX,
            limit: 50,
            routed: Some(policy.clone()),
            assignment: Some(("recency".to_owned(), "fresh".to_owned())),
            answer: Answer {
                served_by: ServedBy::Policy,
                policy,
                rows: (0..n).collect(),
                scores: (0..n).map(|at| 1.0 / (1.0 + at as f32)).collect(),
            },
            candidates: CandidateSet {
                post_ids: ids(1),
                author_ids: ids(9),
                created_at_ms: ids(1_749_000_000_000),
                sources: vec![Sources::TRENDING; n as usize],
                counters: vec![Counters::default(); n as usize],
                affinity: ids(0),
                author_recent_impressions: ids(0),
            },
            seen: vec![false; n as usize],
        }
    }

    #[test]
    fn a_stored_record_is_found_by_its_viewer_reason_and_policies() {
        let mut routed = record(2);
        routed.why = Why::Failure;
        routed.answer.policy.effective_digest = Digest::from_content(b"native");
        let encoded = routed.to_encoded();
        assert_eq!((encoded.user_id, encoded.why), (42, "failure"));
        assert_eq!(encoded.routed, Digest::from_content(b"baseline"));
        assert_eq!(encoded.served, Digest::from_content(b"native"));
        assert_eq!(Record::decode(&encoded.bytes).unwrap(), routed);
        routed.routed = None;
        assert_eq!(routed.to_encoded().routed, encoded.served);
    }

    #[test]
    fn decoding_restores_every_bit_of_a_score() {
        let mut written = record(4);
        let odd = [-0.0, f32::MIN_POSITIVE / 2.0, f32::MAX, 0.1];
        written.answer.scores = odd.to_vec();
        let read = Record::decode(&written.encode()).unwrap();
        let bits = |scores: &[f32]| scores.iter().map(|s| s.to_bits()).collect::<Vec<u32>>();
        assert_eq!(bits(&read.answer.scores), bits(&odd));
        assert_eq!(read, written);
    }

    #[test]
    fn another_format_and_damage_are_different_errors() {
        let mut bytes = record(1).encode();
        bytes[0] = 9;
        assert_eq!(Record::decode(&bytes), Err(RecordError::Format(9)));
        assert!(matches!(Record::decode(&[]), Err(RecordError::Damaged(_))));
    }

    #[test]
    fn an_answer_with_rows_outside_the_candidates_is_refused() {
        let mut foreign = record(3);
        foreign.answer.rows[1] = 3;
        assert!(Record::decode(&foreign.encode()).is_err());
        let mut uneven = record(3);
        uneven.seen.pop();
        assert!(Record::decode(&uneven.encode()).is_err());
    }

    proptest! {
        #[test]
        fn every_changed_byte_and_every_truncation_is_detected(n in 0_u32..20, at in any::<prop::sample::Index>(), flip in 1_u8..=255) {
            let bytes = record(n).encode();
            let at = at.index(bytes.len());
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            prop_assert!(Record::decode(&changed).is_err());
            prop_assert!(Record::decode(&bytes[..at]).is_err());
        }
    }
}
