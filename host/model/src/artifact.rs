//! Data model of a policy: the manifest that an author writes, the immutable published version,
//! and the digests that identify behaviour.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A sha256 digest, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    pub fn from_content(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|_| format!("`{text}` is not a sha256 digest (64 hexadecimal digits)"))?;
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// The three decisions that a policy makes, in the order in which they are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Dedup,
    Score,
    Saturation,
}

impl Stage {
    pub const ALL: [Stage; 3] = [Stage::Dedup, Stage::Score, Stage::Saturation];

    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Dedup => "dedup",
            Stage::Score => "score",
            Stage::Saturation => "saturation",
        }
    }

    /// Returns the exported interface that makes a component a module of this stage.
    pub fn interface(self) -> &'static str {
        match self {
            Stage::Dedup => "nova:policy/dedup@1.0.0",
            Stage::Score => "nova:policy/score@1.0.0",
            Stage::Saturation => "nova:policy/saturation@1.0.0",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One value for each stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PerStage<T> {
    pub dedup: T,
    pub score: T,
    pub saturation: T,
}

impl<T> PerStage<T> {
    pub fn get(&self, stage: Stage) -> &T {
        match stage {
            Stage::Dedup => &self.dedup,
            Stage::Score => &self.score,
            Stage::Saturation => &self.saturation,
        }
    }

    pub fn get_mut(&mut self, stage: Stage) -> &mut T {
        match stage {
            Stage::Dedup => &mut self.dedup,
            Stage::Score => &mut self.score,
            Stage::Saturation => &mut self.saturation,
        }
    }

    pub fn try_build<E>(mut make: impl FnMut(Stage) -> Result<T, E>) -> Result<Self, E> {
        Ok(Self {
            dedup: make(Stage::Dedup)?,
            score: make(Stage::Score)?,
            saturation: make(Stage::Saturation)?,
        })
    }
}

/// Name and version of a policy, written `name@version`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyRef {
    pub name: String,
    pub version: semver::Version,
}

impl fmt::Display for PolicyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

impl FromStr for PolicyRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed =
            || format!("`{text}` does not name a policy: write name@version, e.g. baseline@1.0.0");
        let (name, version) = text.split_once('@').ok_or_else(malformed)?;
        let version = semver::Version::parse(version).map_err(|_| malformed())?;
        check_name(name).map_err(|_| malformed())?;
        Ok(Self {
            name: name.to_owned(),
            version,
        })
    }
}

impl Serialize for PolicyRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PolicyRef {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Checks a policy name: lower-case letters, digits and inner hyphens, at most 64. The rule is
/// strict because the name appears in URLs, labels and file names.
pub fn check_name(name: &str) -> Result<(), String> {
    let plain = !name.is_empty()
        && name.len() <= 64
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if plain {
        Ok(())
    } else {
        Err(format!(
            "name `{name}`: use 1–64 of a–z, 0–9 and inner hyphens"
        ))
    }
}

/// Content of `policy.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub name: String,
    pub version: semver::Version,
    #[serde(default)]
    pub description: String,
    pub dedup: StageManifest,
    pub score: StageManifest,
    pub saturation: StageManifest,
    #[serde(default)]
    pub limits: Limits,
    /// Development only: every valid change becomes active at once.
    #[serde(default)]
    pub follow: bool,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageManifest {
    pub module: ModuleSource,
    #[serde(default)]
    pub params: BTreeMap<String, f64>,
}

/// Maximum size of `policy.toml`, in bytes.
pub const MANIFEST_BYTES_MAX: usize = 64 << 10;
/// Maximum size of a manifest's description, in bytes.
const DESCRIPTION_BYTES_MAX: usize = 4 << 10;
/// Maximum size of a version, in bytes. It is in the label of every series of the policy.
const VERSION_BYTES_MAX: usize = 64;
/// Maximum size of a file name or of a parameter's name, in bytes.
const KEY_BYTES_MAX: usize = 100;
/// Maximum number of parameters of a stage. A module declares no more.
const PARAMETERS_MAX: usize = 256;

impl Manifest {
    pub fn parse(text: &str) -> Result<Self, String> {
        let named = |reason: String| format!("policy.toml: {reason}");
        // The text is not read if it is too long, because an error would quote it.
        fits("the manifest", text.len(), MANIFEST_BYTES_MAX).map_err(named)?;
        let manifest: Self = toml::from_str(text).map_err(|error| named(error.to_string()))?;
        check_name(&manifest.name).map_err(named)?;
        manifest.check_sizes().map_err(named)?;
        Ok(manifest)
    }

    fn check_sizes(&self) -> Result<(), String> {
        fits("description", self.description.len(), DESCRIPTION_BYTES_MAX)?;
        fits("version", self.version.to_string().len(), VERSION_BYTES_MAX)?;
        for stage in Stage::ALL {
            let StageManifest { module, params } = self.stage(stage);
            if let ModuleSource::File(name) | ModuleSource::Builtin(name) = module {
                fits(&format!("{stage}.module"), name.len(), KEY_BYTES_MAX)?;
            }
            if params.len() > PARAMETERS_MAX {
                return Err(format!(
                    "{stage}.params: {} parameters, but at most {PARAMETERS_MAX} are allowed",
                    params.len()
                ));
            }
            for name in params.keys() {
                let field = format!("the name of a parameter in {stage}.params");
                fits(&field, name.len(), KEY_BYTES_MAX)?;
            }
        }
        Ok(())
    }

    pub fn stage(&self, stage: Stage) -> &StageManifest {
        match stage {
            Stage::Dedup => &self.dedup,
            Stage::Score => &self.score,
            Stage::Saturation => &self.saturation,
        }
    }

    pub fn policy_ref(&self) -> PolicyRef {
        PolicyRef {
            name: self.name.clone(),
            version: self.version.clone(),
        }
    }
}

fn fits(field: &str, bytes: usize, bytes_max: usize) -> Result<(), String> {
    match bytes > bytes_max {
        true => Err(format!(
            "{field}: {bytes} bytes, but at most {bytes_max} are allowed"
        )),
        false => Ok(()),
    }
}

/// Source of a stage's module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModuleSource {
    /// A file in the directory of the manifest.
    File(String),
    /// A module that the registry has already.
    Published(Digest),
    /// A module compiled into the host.
    Builtin(String),
}

impl<'de> Deserialize<'de> for ModuleSource {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let text = String::deserialize(deserializer)?;
        if let Some(digest) = text.strip_prefix("sha256:") {
            return digest
                .parse()
                .map(Self::Published)
                .map_err(D::Error::custom);
        }
        if let Some(name) = text.strip_prefix("builtin:") {
            return Ok(Self::Builtin(name.to_owned()));
        }
        let plain =
            text.ends_with(".wasm") && !text.contains(['/', '\\']) && !text.starts_with('.');
        if !plain {
            return Err(D::Error::custom(format!(
                "module `{text}`: use a .wasm file in the directory of policy.toml, \"sha256:<digest>\" or \"builtin:<name>\""
            )));
        }
        Ok(Self::File(text))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Milliseconds for the three stages together.
    pub deadline_ms: u32,
    /// MiB of linear memory for each instance.
    pub memory_mb: u32,
    pub instance: InstanceMode,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline_ms: 20,
            memory_mb: 16,
            instance: InstanceMode::Fresh,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum InstanceMode {
    /// A new instance for every call, so that no data leaks from one viewer to the next.
    Fresh,
    /// Instances serve many calls. This is faster, but data is only as private as the module's
    /// code keeps it.
    Reuse,
}

/// One stage of a published policy: a module and the values of all its parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageSpec {
    pub module: Digest,
    pub params: BTreeMap<String, f64>,
}

/// A published policy version. `stages` and `limits` contain everything that determines
/// behaviour.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicySpec {
    pub policy: PolicyRef,
    pub description: String,
    pub stages: PerStage<StageSpec>,
    pub limits: Limits,
    /// Digest of the proof that a trusted key signed the policy. The proof is stored with the
    /// modules. It does not affect behaviour, so no digest includes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Digest>,
}

impl PolicySpec {
    /// Returns the sha256 of the canonical form: modules by digest, every parameter resolved,
    /// and limits. Name and version are not included, so policies with equal behaviour have
    /// equal digests.
    ///
    /// The canonical form is JSON without white space. Its keys are in the order of these
    /// structs, its parameters are sorted by name, and its numbers have the shortest form that
    /// reads back exactly.
    pub fn digest(&self) -> Digest {
        #[derive(Serialize)]
        struct Canonical<'a> {
            stages: &'a PerStage<StageSpec>,
            limits: &'a Limits,
        }
        let canonical = Canonical {
            stages: &self.stages,
            limits: &self.limits,
        };
        // Serialising plain data to memory cannot fail. Even the digest of an empty form would
        // be valid.
        Digest::from_content(&serde_json::to_vec(&canonical).unwrap_or_default())
    }

    /// Returns the same policy with 0 in place of every -0. The two behave alike in every
    /// comparison and sum of a module, but JSON writes them differently, so they would have two
    /// digests. What is published from now on has no -0. What was published before keeps it,
    /// because its digest is stored in activations, quarantines and records.
    #[must_use]
    pub fn without_negative_zero(mut self) -> Self {
        for stage in Stage::ALL {
            let params = &mut self.stages.get_mut(stage).params;
            params.values_mut().for_each(remove_negative_zero);
        }
        self
    }

    /// Reports if both policies would have the same digest if they were published now.
    pub fn behaves_as(&self, other: &Self) -> bool {
        let digest = |spec: &Self| spec.clone().without_negative_zero().digest();
        self.digest() == other.digest() || digest(self) == digest(other)
    }

    /// Returns the same policy with an experiment's parameter values. Its digest is the
    /// effective digest.
    pub fn with_overrides(&self, overrides: &PerStage<BTreeMap<String, f64>>) -> Self {
        let mut spec = self.clone();
        spec.stages.dedup.params.extend(overrides.dedup.clone());
        spec.stages.score.params.extend(overrides.score.clone());
        spec.stages
            .saturation
            .params
            .extend(overrides.saturation.clone());
        spec
    }
}

/// Replaces -0 by 0, and changes no other number.
pub fn remove_negative_zero(value: &mut f64) {
    if *value == 0.0 {
        *value = 0.0;
    }
}

/// Returns the policy that a host ranks with until another one is activated.
pub fn baseline() -> PolicyRef {
    PolicyRef {
        name: "baseline".to_owned(),
        version: semver::Version::new(1, 0, 0),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        name = "fresh-first"
        version = "1.0.0"
        [dedup]
        module = "builtin:seen-dedup"
        [score]
        module = "weighted_scorer.wasm"
        params = { w_freshness = 0.60 }
        [saturation]
        module = "builtin:author-saturation"
    "#;

    #[test]
    fn every_text_of_a_manifest_has_a_bound_and_the_refusal_names_the_field() {
        let long = |bytes: usize| "x".repeat(bytes);
        let manifest = |description: &str, version: &str, module: &str, params: &str| {
            format!(
                "name = \"a\"\nversion = \"{version}\"\ndescription = \"{description}\"\n\
                 [dedup]\nmodule = \"{module}.wasm\"\nparams = {{ {params} }}\n\
                 [score]\nmodule = \"builtin:b\"\n[saturation]\nmodule = \"builtin:c\"\n"
            )
        };
        let pre = |bytes: usize| format!("1.0.0-{}", long(bytes - 6));
        let many = |count: usize| {
            let all: Vec<String> = (0..count).map(|n| format!("p{n} = 1.0")).collect();
            all.join(", ")
        };
        let param = |bytes: usize| format!("{} = 1.0", long(bytes));
        let cases = [
            (manifest(&long(4_096), "1.0.0", "m", ""), None),
            (
                manifest(&long(4_097), "1.0.0", "m", ""),
                Some("description"),
            ),
            (manifest("", &pre(64), "m", ""), None),
            (manifest("", &pre(65), "m", ""), Some("version")),
            (manifest("", "1.0.0", &long(95), ""), None),
            (manifest("", "1.0.0", &long(96), ""), Some("dedup.module")),
            (manifest("", "1.0.0", "m", &param(100)), None),
            (
                manifest("", "1.0.0", "m", &param(101)),
                Some("dedup.params"),
            ),
            (manifest("", "1.0.0", "m", &many(256)), None),
            (manifest("", "1.0.0", "m", &many(257)), Some("dedup.params")),
            (manifest(&long(1 << 20), "1.0.0", "m", ""), Some("manifest")),
        ];
        for (text, field) in cases {
            let parsed = Manifest::parse(&text).map(drop);
            match field {
                None => assert_eq!(parsed, Ok(())),
                Some(field) => {
                    let reason = parsed.unwrap_err();
                    assert!(reason.contains(field) && reason.len() < 200, "{reason}");
                }
            }
        }
    }

    #[test]
    fn an_unknown_key_is_refused_and_named() {
        let error = Manifest::parse(&format!("{MINIMAL}\n[limits]\ndeadline = 3")).unwrap_err();
        assert!(error.contains("unknown field `deadline`"), "{error}");
    }

    #[test]
    fn a_module_path_cannot_leave_the_directory() {
        for path in ["../x.wasm", "/etc/x.wasm", "a/b.wasm", "x.txt", ".x.wasm"] {
            let text = MINIMAL.replace("weighted_scorer.wasm", path);
            assert!(Manifest::parse(&text).is_err(), "{path}");
        }
    }

    fn spec(w_freshness: f64, version: &str) -> PolicySpec {
        let stage = |value| StageSpec {
            module: Digest::from_content(b"m"),
            params: BTreeMap::from([("w".to_owned(), value)]),
        };
        PolicySpec {
            policy: format!("p@{version}").parse().unwrap(),
            description: String::new(),
            stages: PerStage {
                dedup: stage(1.0),
                score: stage(w_freshness),
                saturation: stage(2.0),
            },
            limits: Limits::default(),
            signature: None,
        }
    }

    #[test]
    fn equal_behaviour_has_an_equal_digest_in_every_version() {
        assert_eq!(spec(0.3, "1.0.0").digest(), spec(0.3, "2.0.0").digest());
        assert_ne!(spec(0.3, "1.0.0").digest(), spec(0.6, "1.0.0").digest());
    }

    /// Numbers whose text or value a JSON library may change: more than 15 digits, the limits of
    /// exponents, integers as floats, and halves that round.
    const HARD_NUMBERS: [f64; 10] = [
        0.1 + 0.2,
        1e300,
        5e-324,
        1.7976931348623157e308,
        1e16,
        1e21,
        123456789012345680.0,
        0.000001,
        9007199254740993.0,
        -1.0,
    ];

    fn with_hard_numbers() -> PolicySpec {
        let mut hard = spec(1.0, "1.0.0");
        let numbers = HARD_NUMBERS.iter().enumerate();
        hard.stages.score.params = numbers
            .map(|(n, value)| (format!("p{n}"), *value))
            .collect();
        hard
    }

    /// This fails if a feature of serde_json, which any dependency can switch on or off for the
    /// whole program, changes how numbers are read or written, or the order of keys.
    #[test]
    fn a_digest_is_the_same_whatever_features_of_serde_json_are_on() {
        let hard = with_hard_numbers();
        let text = serde_json::to_string(&hard).unwrap();
        let read: PolicySpec = serde_json::from_str(&text).unwrap();
        assert_eq!(read, hard);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::from_value::<PolicySpec>(value).unwrap(), hard);
        assert_eq!(
            hard.digest().to_string(),
            "696e3ebee7831feeb300f29c4ab8c9c899bcfafb545f982ac1b6dba384c33873"
        );
    }

    #[test]
    fn negative_zero_gives_the_digest_of_zero_and_published_digests_stay() {
        let (negative, zero) = (spec(-0.0, "1.0.0"), spec(0.0, "1.0.0"));
        assert_ne!(negative.digest(), zero.digest(), "as published before");
        let normal = negative.clone().without_negative_zero();
        assert_eq!(normal.digest(), zero.digest());
        assert!(negative.behaves_as(&zero));
        assert!(!negative.behaves_as(&spec(1e-300, "1.0.0")));
        let hard = with_hard_numbers();
        assert_eq!(hard.clone().without_negative_zero(), hard);
    }

    #[test]
    fn overrides_change_the_effective_digest_as_a_new_version_would() {
        let mut overrides = PerStage::<BTreeMap<String, f64>>::default();
        overrides.score.insert("w".to_owned(), 0.6);
        assert_eq!(
            spec(0.3, "1.0.0").with_overrides(&overrides).digest(),
            spec(0.6, "1.0.0").digest()
        );
    }
}
