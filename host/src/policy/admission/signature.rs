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
//! then break a policy, and cannot make one. (What `builtin:` leaves open: [`super::shipped`].)

use super::shipped::Shipped;
use super::{PolicyFiles, resolve};
use crate::policy::artifact::{Digest, Manifest, ModuleSource, PerStage, PolicySpec, Stage};
use crate::policy::module::Module;
use minisign_verify::{PublicKey, Signature};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// As `sha256sum` writes it.
pub const SUMS_FILE: &str = "SHA256SUMS";
/// As `minisign` names it.
pub const SIGNATURE_FILE: &str = "SHA256SUMS.minisig";
pub const MANIFEST_FILE: &str = "policy.toml";

/// Keys whose owners may publish; none: everybody may who has the role. Programs may publish what they ship.
#[derive(Debug, Clone, Default)]
pub struct TrustedKeys {
    keys: Vec<PublicKey>,
    pub shipped: Shipped,
}

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
        Ok(Self {
            keys: keys.iter().map(parse).collect::<anyhow::Result<_>>()?,
            shipped: Shipped::here(),
        })
    }

    /// The same, with what programs shipped that ran on `data_dir` before.
    ///
    /// # Errors
    /// When this program cannot be remembered there, and there are keys, so that it matters.
    pub async fn remembering(self, data_dir: &Path) -> anyhow::Result<Self> {
        match Shipped::remembered(data_dir).await {
            Ok(shipped) => Ok(Self { shipped, ..self }),
            Err(error) if self.is_empty() => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "what this program ships cannot be remembered"
                );
                Ok(self)
            }
            Err(error) => Err(error),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
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
        let mut builtins = Vec::new();
        for stage in Stage::ALL {
            let module = spec.stages.get(stage).module;
            match &manifest.stage(stage).module {
                ModuleSource::File(name) => require(&sums, name, module)?,
                ModuleSource::Published(digest) if *digest == module => {}
                ModuleSource::Builtin(name) => builtins.push((name.as_str(), module)),
                ModuleSource::Published(_) => {
                    return Err(format!(
                        "{stage}: {module} is not the module that the signed manifest names"
                    ));
                }
            }
        }
        if !keys.shipped.has_modules(&builtins) {
            return Err(
                "its `builtin:` modules are not what one program shipped that ran on this host"
                    .to_owned(),
            );
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
        if !keys.keys.iter().any(is_good) {
            return Err(format!(
                "{SIGNATURE_FILE}: none of the trusted keys made this signature of this {SUMS_FILE}"
            ));
        }
        self.sums.lines().map(parse_line).collect()
    }
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
