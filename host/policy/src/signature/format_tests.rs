//! A stored proof and the stored form of a signed policy, in `tests/fixtures/formats`.

use super::*;
use nova_model::artifact::{InstanceMode, Limits, StageSpec};

macro_rules! stored {
    ($name:literal) => {
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/formats/v1/policy/",
            $name
        ))
    };
}
/// The public key whose secret key made the signature and was deleted.
const KEY: &str = "RWQgGPul0JwqvJVCRGog8mbeM+pwK3MFhLPly2fx3j/BaOEYTovYqW64";

#[test]
fn a_stored_proof_is_read_verified_and_encoded_again_to_the_same_bytes() {
    let proof = Proof::from_bytes(stored!("proof.json").as_bytes()).unwrap();
    let keys = TrustedKeys::parse(&[KEY.to_owned()]).unwrap();
    let sums = proof.signed_sums(&keys).unwrap();
    let manifest = Digest::from_content(proof.manifest.as_bytes());
    assert_eq!(sums, BTreeMap::from([(MANIFEST_FILE.to_owned(), manifest)]));
    let policy = Manifest::parse(&proof.manifest).unwrap().policy_ref();
    assert_eq!(policy.to_string(), "signed@1.0.0");
    let bytes = String::from_utf8(proof.to_bytes()).unwrap();
    assert_eq!(bytes, stored!("proof.json"));
}

#[test]
fn a_stored_signed_policy_is_read_and_encoded_again_to_the_same_bytes() {
    let stage = |module: &[u8], params: &[(&str, f64)]| StageSpec {
        module: Digest::from_content(module),
        params: params
            .iter()
            .map(|(name, value)| ((*name).to_owned(), *value))
            .collect(),
    };
    let expected = PolicySpec {
        policy: "signed@1.0.0-rc.1".parse().unwrap(),
        description: "Größer.".into(),
        stages: PerStage {
            dedup: stage(b"dedup", &[("min_results", 50.0)]),
            score: stage(b"score", &[("w_affinity", 0.3), ("w_freshness", 0.7)]),
            saturation: stage(b"saturation", &[]),
        },
        limits: Limits {
            deadline_ms: 35,
            memory_mb: 64,
            instance: InstanceMode::Reuse,
        },
        signature: Some(Digest::from_content(b"proof")),
    };
    let stored: PolicySpec = serde_json::from_str(stored!("spec.json")).unwrap();
    assert_eq!(stored, expected);
    let encoded = serde_json::to_string(&expected).unwrap();
    assert_eq!(encoded, stored!("spec.json"));
}
