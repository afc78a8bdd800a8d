//! The check of an upload in a child process: what is sent there, and what is taken over.

use super::{KnownModules, MODULE_BYTES_MAX, PolicyFiles};
use crate::builtin;
use crate::engine::Engine;
use crate::module::{Module, ModuleError};
use crate::reason::{Reason, Refusal};
use crate::signature::Proof;
use crate::worker::{Checked, Question, Worker};
use nova_model::artifact::{Digest, Manifest, ModuleSource, Stage};

/// A policy that is checked outside of this process.
pub struct Outside<'a> {
    engine: &'a Engine,
    worker: &'a Worker,
    known: &'a dyn KnownModules,
    submitted: &'a PolicyFiles,
    wanted: &'a dyn Fn() -> bool,
    /// Files that the manifest names.
    files: Vec<(&'a str, &'a [u8])>,
    published: Vec<Vec<u8>>,
}

impl<'a> Outside<'a> {
    /// Returns `None` if the engine has no worker, so that the check is made in this process.
    /// That is so for the bundled policies, too.
    pub fn new(
        engine: &'a Engine,
        known: &'a dyn KnownModules,
        submitted: &'a PolicyFiles,
        manifest: &Manifest,
        wanted: &'a dyn Fn() -> bool,
    ) -> Option<Self> {
        let worker = engine.worker()?;
        if builtin::recipes().any(|bundled| bundled == *submitted) {
            return None;
        }
        let (mut files, mut published) = (Vec::new(), Vec::new());
        for stage in Stage::ALL {
            match &manifest.stage(stage).module {
                ModuleSource::File(name) => {
                    files.extend(submitted.modules.get_key_value(name));
                }
                ModuleSource::Published(digest) => published.extend(known.bytes(*digest)),
                ModuleSource::Builtin(_) => {}
            }
        }
        files.sort();
        files.dedup();
        Some(Self {
            engine,
            worker,
            known,
            submitted,
            wanted,
            files: files
                .into_iter()
                .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
                .collect(),
            published,
        })
    }

    /// Reports if a module would have to be compiled that nobody has admitted.
    pub fn must_compile(&self) -> bool {
        let files = self.files.iter().map(|(_, bytes)| *bytes);
        let mut all = files.chain(self.published.iter().map(Vec::as_slice));
        all.any(|bytes| {
            let digest = Digest::from_content(bytes);
            self.known.compiled(digest).is_none() && !self.engine.is_ready(digest, bytes)
        })
    }

    /// Checks the policy in a child process.
    ///
    /// # Errors
    /// Returns every reason for a refusal.
    pub fn check(&self) -> Result<Checked, Refusal> {
        let too_large = |name: &str| Refusal {
            reasons: vec![Reason::whole(
                "too_large",
                format!(
                    "{name}: at most {MODULE_BYTES_MAX} bytes are allowed; make the module smaller"
                ),
            )],
        };
        if let Some((name, _)) = self
            .files
            .iter()
            .find(|(_, bytes)| bytes.len() > MODULE_BYTES_MAX)
        {
            return Err(too_large(name));
        }
        let published: Vec<&[u8]> = self.published.iter().map(Vec::as_slice).collect();
        let question = Question {
            manifest: Some(&self.submitted.manifest),
            files: &self.files,
            published: &published,
            allocation: self.engine.allocation(),
        };
        self.worker
            .check(question, self.wanted)
            .map_err(|mut refusal| {
                // The child knows no keys. The other findings of signatures need the whole policy.
                let proof = Proof::from_files(self.submitted);
                let keys = self.engine.trusted_keys();
                refusal
                    .reasons
                    .extend(super::unsigned(keys, proof.as_ref(), None, self.submitted));
                refusal
            })
    }
}

/// Checks one module in a child process.
pub fn check_module(engine: &Engine, worker: &Worker, bytes: &[u8]) -> Result<Checked, Refusal> {
    let question = Question {
        manifest: None,
        files: &[("module", bytes)],
        published: &[],
        allocation: engine.allocation(),
    };
    worker.check(question, &|| true)
}

/// Loads a module that a child compiled, or one that needs no child.
pub fn load(engine: &Engine, bytes: &[u8], checked: &Checked) -> Result<Module, ModuleError> {
    match checked.compiled.get(&Digest::from_content(bytes)) {
        Some(compiled) => engine.load_compiled(bytes, compiled),
        None => engine.load(bytes),
    }
}
