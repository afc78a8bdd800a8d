//! Signatures of policies, required if the configuration has `policy.trusted_keys`.
//!
//! An author signs one list that names all files of the policy:
//!
//! ```sh
//! sha256sum policy.toml *.wasm > SHA256SUMS && minisign -Sm SHA256SUMS
//! ```
//!
//! There is one signature over all digests and not one per file. Otherwise an old signed module
//! could be combined with a new signed manifest. The manifest itself names modules from other
//! sources (`sha256:`, `builtin:`).
//!
//! The list, the manifest and the signature are stored in the registry with the modules, because
//! a policy is checked again at every load. So a person with write access to the registry's
//! database can break a policy, but cannot create one. For the remaining gap with `builtin:`
//! modules see [`super::bundled`].

use super::bundled::Bundled;
use super::files::PolicyFiles;
use super::loaded::resolve;
use super::module::Module;
use minisign_verify::{PublicKey, Signature};
use nova_model::artifact::{Digest, Manifest, ModuleSource, PerStage, PolicySpec, Stage};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Name of the list, in the format of `sha256sum`.
pub const SUMS_FILE: &str = "SHA256SUMS";
/// Name of the signature file, as `minisign` chooses it.
pub const SIGNATURE_FILE: &str = "SHA256SUMS.minisig";
pub const MANIFEST_FILE: &str = "policy.toml";

/// Trusted publishers' keys. If empty, the role alone suffices to publish. Policies bundled with
/// a program need no signature.
#[derive(Debug, Clone, Default)]
pub struct TrustedKeys {
    keys: Vec<PublicKey>,
    pub bundled: Bundled,
}

impl TrustedKeys {
    /// Parses public keys in base64, as minisign prints them.
    ///
    /// # Errors
    /// Fails if one of them is not a public key.
    pub fn parse(keys: &[String]) -> anyhow::Result<Self> {
        let parse = |key: &String| {
            PublicKey::from_base64(key).map_err(|error| {
                anyhow::anyhow!("policy.trusted_keys: `{key}` is not a minisign public key ({error}); it is the second line of minisign.pub")
            })
        };
        Ok(Self {
            keys: keys.iter().map(parse).collect::<anyhow::Result<_>>()?,
            bundled: Bundled::here(),
        })
    }

    /// Adds the bundles of the programs that ran on `data_dir` before.
    ///
    /// # Errors
    /// Fails if this program's bundle cannot be saved there. Without keys this is only logged,
    /// because the record is then not needed.
    pub async fn remembering(self, data_dir: &Path) -> anyhow::Result<Self> {
        match Bundled::remembered(data_dir).await {
            Ok(bundled) => Ok(Self { bundled, ..self }),
            Err(error) if self.is_empty() => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "could not save the record of this program's bundled policies; without trusted keys it is not needed"
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

/// Signed data of a policy that is stored with its modules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    manifest: String,
    sums: String,
    signature: String,
}

impl Proof {
    /// Returns `None` if the list or its signature is missing.
    pub fn from_files(files: &PolicyFiles) -> Option<Self> {
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

    /// Reads the stored form.
    ///
    /// # Errors
    /// Fails if the bytes are not a proof.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| format!("its signature is damaged: {error}"))
    }

    /// Checks that one of the keys signed exactly this policy.
    ///
    /// # Errors
    /// Returns the part that differs from the signed policy.
    pub fn proves(
        &self,
        keys: &TrustedKeys,
        spec: &PolicySpec,
        modules: &PerStage<Arc<Module>>,
    ) -> Result<(), String> {
        let sums = self.signed_sums(keys)?;
        require(
            &sums,
            MANIFEST_FILE,
            Digest::from_content(self.manifest.as_bytes()),
        )?;
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
        if !keys.bundled.has_modules(&builtins) {
            return Err(
                "its `builtin:` modules were not all bundled with one program that ran on this host"
                    .to_owned(),
            );
        }
        let signed = resolve(&manifest, modules);
        if signed.policy != spec.policy || !signed.behaves_as(spec) {
            return Err("it differs from the signed manifest".to_owned());
        }
        Ok(())
    }

    fn signed_sums(&self, keys: &TrustedKeys) -> Result<BTreeMap<String, Digest>, String> {
        let signature = Signature::decode(&self.signature)
            .map_err(|error| format!("{SIGNATURE_FILE}: {error}"))?;
        let is_good = |key: &PublicKey| key.verify(self.sums.as_bytes(), &signature, false).is_ok();
        if !keys.keys.iter().any(is_good) {
            return Err(format!(
                "{SIGNATURE_FILE}: none of the trusted keys made this signature for this {SUMS_FILE}"
            ));
        }
        self.sums.lines().map(parse_line).collect()
    }
}

/// Parses `DIGEST  NAME`. There is an asterisk before the name if `sha256sum` read the file in
/// binary mode.
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
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod format_tests;
