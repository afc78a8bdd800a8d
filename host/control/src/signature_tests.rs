//! Tests of signatures with files that minisign itself made.

use crate::deploy::{Deploy, DeployError};
use crate::offline::HostRegistry;
use nova_model::artifact::PerStage;
use nova_model::experiments::spec::{ExperimentSpec, ExperimentState};
use nova_policy::admission::*;
use nova_policy::builtin;
use nova_policy::engine::Engine;
use nova_policy::signature::*;
use nova_stores::embedded::EmbeddedStore;
use nova_stores::embedded::registry::SqliteRegistry;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Two public keys. The secret key of the first made the signatures below and was deleted.
const OURS: &str = "RWQgGPul0JwqvJVCRGog8mbeM+pwK3MFhLPly2fx3j/BaOEYTovYqW64";
const THEIRS: &str = "RWTx5XMVpxyiTlcEhmIl4qKDmlrYY1ZJPse6uAcg8zBYiPv292Z9cGT5";

/// Version, scorer, the sums of policy.toml and of the scorer, the signature, and the signature
/// of the comment.
type Signed = [&'static str; 6];
const FIRST: Signed = [
    "1.0.0",
    "builtin:weighted-scorer",
    "03a88c3a9de4c0000a30737da8098d1dcff931454a54cbad7606d355a79226d9  policy.toml\n",
    "",
    "RUQgGPul0JwqvJxKA287Y89ZfVte2138GVxi0LxBLk6tzxCFm6dYRuMNqBLARkYIMboL7uDRP5uE9IjChwYNO1VwS82I+MWhMww=",
    "SqcM5R0r/mVudE3Hs1ygfGKzKqdLhoO4VC/8aGV8KNDeayHHI4ZcA2C7lnhVUzGksEB+Rz2k/rFp37X93CXeAQ==",
];
const SECOND: Signed = [
    "2.0.0",
    "builtin:weighted-scorer",
    "2e8c91e5dbaa0a1d4fa01f6e318fb87751b8f50720defe7e8ddfd090f1a4c113  policy.toml\n",
    "",
    "RUQgGPul0JwqvG4NmwdAS4CV8MS/JJqhfEM+Jju+ZORYqIyOFq/x/TxdOzR78eqYtNXLrjrtXgR+kjQneqI1EKDq92M9KzQj5g4=",
    "d2mDk1rjOJp5AKibNgM9aj16pf1Fzeym+ONz6boDQwbMAj/BqtXn4FqR0d7hpDJL3ArS09e2a2yN42VoZBqjDQ==",
];
/// A signed policy with its own module. The module was a different one when it was signed.
const WITH_MODULE: Signed = [
    "3.0.0",
    "scorer.wasm",
    "929904f4ac7ff4a44c9b61a001b3803ce807ac015c9812f2e77289611d16b20e  policy.toml\n",
    "d8a2092eecc8e321924e45d56d82025708396883a774402d273d28b6e54198f5 *scorer.wasm\n",
    "RUQgGPul0JwqvFiarhPz3lB+Q5CWN+OZtsK8uf4XLPFQFHQz2O3dW953VK6iS3rtUm/x79UDJVpr7khvFZx2zaQ6muUIGP3R4wo=",
    "l6tnkxmJVAggT7JMBNTdY+5EYviOC5g6bGGJ0kj0Uukw42DBJYKCaWXnXsLJHL3Dz4XbHB5tm17G7s3/NihdDw==",
];

fn trusting(key: &str) -> Engine {
    let keys = TrustedKeys::parse(&[key.to_owned()]).unwrap();
    Engine::start().unwrap().with_trusted_keys(keys)
}

fn unsigned_files(of: Signed) -> PolicyFiles {
    let [version, scorer, ..] = of;
    let bytes = builtin::module("weighted-scorer").unwrap().to_vec();
    PolicyFiles {
        manifest: format!(
            "name = \"signed\"\nversion = \"{version}\"\n\
             [dedup]\nmodule = \"builtin:seen-dedup\"\n\
             [score]\nmodule = \"{scorer}\"\n\
             [saturation]\nmodule = \"builtin:author-saturation\"\n"
        ),
        modules: BTreeMap::from([("scorer.wasm".to_owned(), bytes)]),
    }
}

fn signed_files(of: Signed) -> PolicyFiles {
    let [_, _, manifest, module, signature, comment] = of;
    let mut files = unsigned_files(of);
    let signature =
        format!("untrusted comment: untrusted\n{signature}\ntrusted comment: trusted\n{comment}\n");
    let texts = [
        (SUMS_FILE, format!("{manifest}{module}")),
        (SIGNATURE_FILE, signature),
    ];
    let texts = texts.map(|(name, text)| (name.to_owned(), text.into_bytes()));
    files.modules.extend(texts);
    files
}

fn refused(engine: &Engine, files: &PolicyFiles) -> String {
    let reasons = admit(engine, &NothingKnown, files).unwrap_err().reasons;
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    assert_eq!(reasons[0].code, "signature");
    reasons[0].message.clone()
}

#[test]
fn only_policies_signed_with_a_trusted_key_are_admitted() {
    let engine = trusting(OURS);
    let good = signed_files(FIRST);
    let admitted = admit(&engine, &NothingKnown, &good).unwrap();
    let signature = admitted.loaded.spec.signature.unwrap();
    assert!(
        admitted
            .module_bytes
            .iter()
            .any(|(digest, _)| *digest == signature)
    );

    let message = refused(&engine, &unsigned_files(FIRST));
    assert!(message.contains("minisign -Sm SHA256SUMS"), "{message}");
    let message = refused(&trusting(THEIRS), &good);
    assert!(message.contains("none of the trusted keys"), "{message}");

    let mut edited = good.clone();
    edited.manifest = edited.manifest.replace("1.0.0", "1.0.1");
    let message = refused(&engine, &edited);
    assert!(
        message.contains("policy.toml is not the file that was signed"),
        "{message}"
    );
    let mut relisted = good;
    relisted
        .modules
        .insert(SUMS_FILE.to_owned(), b"nothing\n".to_vec());
    let message = refused(&engine, &relisted);
    assert!(message.contains("none of the trusted keys"), "{message}");
}

#[test]
fn the_module_of_a_signed_manifest_must_be_the_one_that_was_signed() {
    let message = refused(&trusting(OURS), &signed_files(WITH_MODULE));
    assert!(
        message.contains("scorer.wasm is not the file that was signed"),
        "{message}"
    );
}

#[test]
fn an_invalid_trusted_key_is_named_in_the_error() {
    let error = TrustedKeys::parse(&["RWnonsense".to_owned()]).unwrap_err();
    assert!(error.to_string().contains("RWnonsense"), "{error}");
}

async fn host(data_dir: &std::path::Path, engine: Engine) -> Arc<Deploy> {
    let store = EmbeddedStore::open(data_dir).await.unwrap();
    let registry: Arc<dyn HostRegistry> = Arc::new(SqliteRegistry::open(&store).await.unwrap());
    Deploy::start(engine, registry, false).await.unwrap()
}

fn active(host: &Deploy) -> String {
    host.serving().active.spec.policy.to_string()
}

#[tokio::test]
async fn unsigned_policies_in_the_registry_are_not_loaded_once_signatures_are_required() {
    let dir = tempfile::tempdir().unwrap();
    let careless = host(dir.path(), Engine::start().unwrap()).await;
    let unsigned = careless
        .publish(unsigned_files(FIRST), "ada")
        .await
        .unwrap()
        .policy;
    let signed = careless
        .publish(signed_files(SECOND), "ada")
        .await
        .unwrap()
        .policy;
    careless.activate(&unsigned, "ada").await.unwrap();
    drop(careless);

    let careful = host(dir.path(), trusting(OURS)).await;
    assert_eq!(active(&careful), "baseline@1.0.0");
    careful.activate(&signed, "ada").await.unwrap();
    assert_eq!(active(&careful), "signed@2.0.0");
    let again = careful.activate(&unsigned, "ada").await;
    assert!(again.is_err(), "{again:?}");
}

#[tokio::test]
async fn an_older_bundled_policy_serves_after_an_upgrade_and_an_unsigned_upload_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let older = host(dir.path(), Engine::start().unwrap()).await;
    let recipe = unsigned_files(FIRST);
    let other = unsigned_files(SECOND);
    let bundled = older.publish(recipe.clone(), "host").await.unwrap().policy;
    let forged = older.publish(other, "ada").await.unwrap().policy;
    older.activate(&bundled, "host").await.unwrap();
    let digest = |stage| older.serving().active.spec.stages.get(stage).module;
    let modules = PerStage::try_build(|stage| Ok::<_, ()>(digest(stage))).unwrap();
    drop(older);

    let mut keys = TrustedKeys::parse(&[OURS.to_owned()]).unwrap();
    keys.bundled = keys.bundled.with_older(&recipe.manifest, modules);
    let engine = Engine::start().unwrap().with_trusted_keys(keys);
    let newer = host(dir.path(), engine).await;
    assert_eq!(active(&newer), "signed@1.0.0");
    let refused = newer.activate(&forged, "ada").await;
    assert!(refused.is_err(), "{refused:?}");
}

#[tokio::test]
async fn an_experiment_does_not_bring_a_lower_signed_version_back() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), trusting(OURS)).await;
    let mut versions = Vec::new();
    for of in [FIRST, SECOND] {
        versions.push(host.publish(signed_files(of), "ada").await.unwrap().policy);
    }
    let spec = serde_json::json!({"seed": "s", "variations": [
        {"key": "old", "weight": 1.0, "policy": versions[0].to_string()}]});
    let spec: ExperimentSpec = serde_json::from_value(spec).unwrap();
    host.put_experiment("e", spec, "ada").await.unwrap();
    host.activate(&versions[1], "ada").await.unwrap();
    let started = host
        .set_experiment_state("e", ExperimentState::Running, "ada")
        .await;
    assert!(
        matches!(started, Err(DeployError::Conflict(_))),
        "{started:?}"
    );
}

#[tokio::test]
async fn a_lower_signed_version_comes_back_only_by_a_rollback() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), trusting(OURS)).await;
    let mut versions = Vec::new();
    for of in [FIRST, SECOND] {
        versions.push(host.publish(signed_files(of), "ada").await.unwrap().policy);
        host.activate(&versions[versions.len() - 1], "ada")
            .await
            .unwrap();
    }
    let back = host.activate(&versions[0], "ada").await;
    assert!(matches!(back, Err(DeployError::Conflict(_))), "{back:?}");
    assert_eq!(active(&host), "signed@2.0.0");
    host.rollback("worse", None, "ada").await.unwrap();
    assert_eq!(active(&host), "signed@1.0.0");
}
