//! Who vouches for a policy, where the configuration asks for it (`policy.trusted_keys`).
//!
//! An author signs one list that names everything which makes the policy:
//!
//! ```sh
//! sha256sum policy.toml *.wasm > SHA256SUMS && minisign -Sm SHA256SUMS
//! ```
//!
//! One signature over digests, not one for each file: otherwise an old, signed module could be put
//! beside a new, signed manifest. What a manifest takes from elsewhere (`sha256:`, `builtin:`) it names
//! itself. The list, the manifest and the signature stay in the registry with the modules, because
//! a policy is checked again whenever it is loaded: whoever can write to the registry's database can
//! then break a policy, and cannot make one.

use super::{PolicyFiles, resolve};
use crate::policy::artifact::{Digest, Manifest, ModuleSource, PerStage, PolicySpec, Stage};
use crate::policy::builtin;
use crate::policy::module::Module;
use minisign_verify::{PublicKey, Signature};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// As `sha256sum` writes it.
pub const SUMS_FILE: &str = "SHA256SUMS";
/// As `minisign` names it.
pub const SIGNATURE_FILE: &str = "SHA256SUMS.minisig";
pub const MANIFEST_FILE: &str = "policy.toml";

/// Keys whose owners may publish; empty: everybody may who has the role.
#[derive(Debug, Clone, Default)]
pub struct TrustedKeys(Vec<PublicKey>);

impl TrustedKeys {
    /// Public keys as minisign prints them, in base64.
    ///
    /// # Errors
    /// When one is not a key.
    pub fn parse(keys: &[String]) -> anyhow::Result<Self> {
        let parse = |key: &String| {
            PublicKey::from_base64(key).map_err(|error| {
                anyhow::anyhow!("policy.trusted_keys: `{key}` is not a minisign public key ({error}); it is the second line of minisign.pub")
            })
        };
        keys.iter()
            .map(parse)
            .collect::<anyhow::Result<_>>()
            .map(Self)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What is kept of a signed policy beside its modules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    manifest: String,
    sums: String,
    signature: String,
}

impl Proof {
    /// `None` when the list or its signature is missing.
    pub fn of(files: &PolicyFiles) -> Option<Self> {
        let text = |name: &str| {
            let bytes = files.modules.get(name)?;
            String::from_utf8(bytes.clone()).ok()
        };
        Some(Self {
            manifest: files.manifest.clone(),
            sums: text(SUMS_FILE)?,
            signature: text(SIGNATURE_FILE)?,
        })
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        // Serialising plain text to memory cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// # Errors
    /// When the bytes are something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| format!("its signature is damaged: {error}"))
    }

    /// Whether one of the keys signed exactly this policy.
    ///
    /// # Errors
    /// What is not as it was signed.
    pub fn proves(
        &self,
        keys: &TrustedKeys,
        spec: &PolicySpec,
        modules: &PerStage<Arc<Module>>,
    ) -> Result<(), String> {
        let sums = self.signed_sums(keys)?;
        require(&sums, MANIFEST_FILE, Digest::of(self.manifest.as_bytes()))?;
        let manifest = Manifest::parse(&self.manifest)?;
        for stage in Stage::ALL {
            let module = spec.stages.get(stage).module;
            match &manifest.stage(stage).module {
                ModuleSource::File(name) => require(&sums, name, module)?,
                ModuleSource::Published(digest) if *digest == module => {}
                ModuleSource::Builtin(name)
                    if builtin::module(name).map(Digest::of) == Some(module) => {}
                ModuleSource::Published(_) | ModuleSource::Builtin(_) => {
                    return Err(format!(
                        "{stage}: {module} is not the module that the signed manifest names"
                    ));
                }
            }
        }
        let signed = resolve(&manifest, modules);
        if signed.policy != spec.policy || signed.digest() != spec.digest() {
            return Err("it is not what the signed manifest says".to_owned());
        }
        Ok(())
    }

    fn signed_sums(&self, keys: &TrustedKeys) -> Result<BTreeMap<String, Digest>, String> {
        let signature = Signature::decode(&self.signature)
            .map_err(|error| format!("{SIGNATURE_FILE}: {error}"))?;
        let is_good = |key: &PublicKey| key.verify(self.sums.as_bytes(), &signature, false).is_ok();
        if !keys.0.iter().any(is_good) {
            return Err(format!(
                "{SIGNATURE_FILE}: none of the trusted keys made this signature of this {SUMS_FILE}"
            ));
        }
        self.sums.lines().map(parse_line).collect()
    }
}

/// Whether a published policy is one that this binary ships, unchanged.
pub fn is_shipped(spec: &PolicySpec, modules: &PerStage<Arc<Module>>) -> bool {
    builtin::recipes().any(|files| {
        let Ok(manifest) = Manifest::parse(&files.manifest) else {
            return false;
        };
        let shipped = |stage| match &manifest.stage(stage).module {
            ModuleSource::File(name) => files.modules.get(name).map(|bytes| Digest::of(bytes)),
            ModuleSource::Builtin(name) => builtin::module(name).map(Digest::of),
            ModuleSource::Published(_) => None,
        };
        let same_modules = Stage::ALL
            .into_iter()
            .all(|stage| shipped(stage) == Some(spec.stages.get(stage).module));
        let resolved = resolve(&manifest, modules);
        same_modules && resolved.policy == spec.policy && resolved.digest() == spec.digest()
    })
}

/// `DIGEST  NAME`, with an asterisk before the name where it was read as binary.
fn parse_line(line: &str) -> Result<(String, Digest), String> {
    let parsed = line.split_once(' ').and_then(|(digest, name)| {
        let name = name.strip_prefix([' ', '*'])?;
        Some((name.to_owned(), digest.parse().ok()?))
    });
    parsed.ok_or_else(|| format!("{SUMS_FILE}: `{line}` is not a line of sha256sum"))
}

fn require(sums: &BTreeMap<String, Digest>, name: &str, digest: Digest) -> Result<(), String> {
    match sums.get(name) {
        Some(signed) if *signed == digest => Ok(()),
        Some(_) => Err(format!("{name} is not the file that was signed")),
        None => Err(format!("{SUMS_FILE} does not list {name}")),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::policy::admission::{NothingKnown, admit};
    use crate::policy::deploy::{Deploy, DeployError};
    use crate::policy::engine::Engine;
    use crate::policy::registry::Registry;
    use crate::stores::embedded::EmbeddedStore;
    use crate::stores::embedded::registry::SqliteRegistry;
    use minisign::KeyPair;

    fn key_pair() -> KeyPair {
        KeyPair::generate_unencrypted_keypair().unwrap()
    }

    fn trusting(keys: &KeyPair) -> Engine {
        let keys = TrustedKeys::parse(&[keys.pk.to_base64()]).unwrap();
        Engine::start().unwrap().with_trusted_keys(keys)
    }

    /// A policy with one module of its own.
    fn policy(version: &str) -> PolicyFiles {
        let bytes = builtin::module("weighted-scorer").unwrap().to_vec();
        PolicyFiles {
            manifest: format!(
                "name = \"signed\"\nversion = \"{version}\"\n\
                 [dedup]\nmodule = \"builtin:seen-dedup\"\n\
                 [score]\nmodule = \"scorer.wasm\"\n\
                 [saturation]\nmodule = \"builtin:author-saturation\"\n"
            ),
            modules: BTreeMap::from([("scorer.wasm".to_owned(), bytes)]),
        }
    }

    fn signed(mut files: PolicyFiles, keys: &KeyPair) -> PolicyFiles {
        let module = Digest::of(&files.modules["scorer.wasm"]);
        let manifest = Digest::of(files.manifest.as_bytes());
        let sums = format!("{manifest}  {MANIFEST_FILE}\n{module} *scorer.wasm\n");
        let signature = minisign::sign(None, &keys.sk, sums.as_bytes(), None, None).unwrap();
        let texts = [(SUMS_FILE, sums), (SIGNATURE_FILE, signature.into_string())];
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
    fn what_a_trusted_key_signed_is_admitted_and_nothing_else() {
        let (ours, theirs) = (key_pair(), key_pair());
        let engine = trusting(&ours);
        let good = signed(policy("1.0.0"), &ours);
        let spec = &admit(&engine, &NothingKnown, &good).unwrap().loaded.spec;
        assert!(spec.signature.is_some());

        let message = refused(&engine, &policy("1.0.0"));
        assert!(message.contains("minisign -Sm SHA256SUMS"), "{message}");
        let message = refused(&engine, &signed(policy("1.0.0"), &theirs));
        assert!(message.contains("none of the trusted keys"), "{message}");

        let mut edited = good.clone();
        edited.manifest = edited.manifest.replace("1.0.0", "1.0.1");
        let message = refused(&engine, &edited);
        assert!(
            message.contains("policy.toml is not the file that was signed"),
            "{message}"
        );
        let mut swapped = good.clone();
        let other = [builtin::module("weighted-scorer").unwrap(), &[0, 2, 0, 7]].concat();
        swapped.modules.insert("scorer.wasm".to_owned(), other);
        let message = refused(&engine, &swapped);
        assert!(
            message.contains("scorer.wasm is not the file that was signed"),
            "{message}"
        );
        let mut relisted = good;
        relisted
            .modules
            .insert(SUMS_FILE.to_owned(), b"nothing\n".to_vec());
        refused(&engine, &relisted);
    }

    #[test]
    fn a_key_that_is_none_is_named() {
        let error = TrustedKeys::parse(&["RWnonsense".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("RWnonsense"), "{error}");
    }

    async fn host(data_dir: &std::path::Path, engine: Engine) -> Arc<Deploy> {
        let store = EmbeddedStore::open(data_dir).await.unwrap();
        let registry: Arc<dyn Registry> = Arc::new(SqliteRegistry::open(&store).await.unwrap());
        Deploy::start(engine, registry, false).await.unwrap()
    }

    fn active(host: &Deploy) -> String {
        host.serving().active.spec.policy.to_string()
    }

    #[tokio::test]
    async fn what_is_in_the_registry_unsigned_is_not_loaded_once_signatures_are_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let keys = key_pair();
        let careless = host(dir.path(), Engine::start().unwrap()).await;
        let unsigned = careless
            .publish(policy("1.0.0"), "ada")
            .await
            .unwrap()
            .policy;
        let signed = signed(policy("2.0.0"), &keys);
        let signed = careless.publish(signed, "ada").await.unwrap().policy;
        careless.activate(&unsigned, "ada").await.unwrap();
        drop(careless);

        let careful = host(dir.path(), trusting(&keys)).await;
        assert_eq!(active(&careful), "baseline@1.0.0");
        careful.activate(&signed, "ada").await.unwrap();
        assert_eq!(active(&careful), "signed@2.0.0");
        let again = careful.activate(&unsigned, "ada").await;
        assert!(again.is_err(), "{again:?}");
    }

    #[tokio::test]
    async fn a_lower_signed_version_comes_back_by_a_rollback_alone() {
        let dir = tempfile::tempdir().unwrap();
        let keys = key_pair();
        let host = host(dir.path(), trusting(&keys)).await;
        let mut versions = Vec::new();
        for version in ["1.0.0", "2.0.0"] {
            let files = signed(policy(version), &keys);
            versions.push(host.publish(files, "ada").await.unwrap().policy);
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
}
