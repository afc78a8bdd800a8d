//! The compiled policies of a replay: those that made the recorded rankings, and those to compare
//! them with. They come from the file of records, the registry, the bundled recipes, a policy
//! directory or a `.wasm` file.

use super::record::PolicyIdentity;
use anyhow::{Context, anyhow, bail, ensure};
use nova_control::watcher::read_policy_directory;
use nova_model::artifact::{Digest, PerStage, PolicyRef, PolicySpec, Stage};
use nova_model::snapshot::{Algo, ServedPolicy};
use nova_policy::admission::{KnownModules, MODULE_BYTES_MAX, PolicyFiles, Reason, admit};
use nova_policy::builtin;
use nova_policy::class::{Class, MEMORY_MB_MAX};
use nova_policy::engine::Engine;
use nova_policy::loaded::LoadedPolicy;
use nova_policy::module::Module;
use nova_policy::native::Native;
use nova_stores::ports::registry::Registry;
use nova_stores::records::RecordStore;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

/// Maximum number of modules that a replay compiles.
const MODULES_MAX: usize = 256;

/// A policy to compare with the one that served.
#[derive(Debug, Clone)]
pub struct Contender {
    /// The text by which the user named it, or `name@version` for a directory.
    pub label: String,
    pub policy: Arc<LoadedPolicy>,
}

/// The policy or native copy that made a recorded ranking.
#[derive(Debug)]
pub enum Server {
    Policy(Arc<LoadedPolicy>),
    Native(&'static Native),
}

#[derive(Debug)]
pub struct Library {
    engine: Engine,
    registry: Option<Arc<dyn Registry>>,
    modules: HashMap<Digest, Arc<Module>>,
    bytes: HashMap<Digest, Vec<u8>>,
    served: HashMap<Digest, Arc<LoadedPolicy>>,
    /// Reasons why policies named by the records cannot run here, by label.
    unavailable: BTreeMap<String, String>,
}

impl Library {
    /// Compiles the policies that made the recorded rankings.
    ///
    /// # Errors
    /// Fails if the file cannot be read. A policy that cannot run is not an error: it is listed
    /// by [`Library::unavailable`], and its records are not checked.
    pub async fn open(
        engine: Engine,
        store: &mut RecordStore,
        registry: Option<Arc<dyn Registry>>,
    ) -> anyhow::Result<Self> {
        let mut library = Self {
            engine,
            registry,
            modules: HashMap::new(),
            bytes: HashMap::new(),
            served: HashMap::new(),
            unavailable: BTreeMap::new(),
        };
        for spec in store.policies().await? {
            let label = spec.policy.to_string();
            match library.bind(store, spec).await {
                Ok(policy) => drop(
                    library
                        .served
                        .insert(policy.effective_digest, Arc::new(policy)),
                ),
                Err(error) => {
                    library.unavailable.insert(label, format!("{error:#}"));
                }
            }
        }
        Ok(library)
    }

    pub fn unavailable(&self) -> &BTreeMap<String, String> {
        &self.unavailable
    }

    /// Returns `None` if the policy cannot run here: its modules are missing, or it is the native
    /// copy of another version.
    pub fn served(&self, identity: &PolicyIdentity) -> Option<Server> {
        if let Some(policy) = self.served.get(&identity.effective_digest) {
            return Some(Server::Policy(policy.clone()));
        }
        let native = ServedPolicy::native(Algo::Ranked).effective_digest;
        (identity.effective_digest == native).then(|| Server::Native(Native::get()))
    }

    /// Returns a policy to compare with, given as `name@version`, a policy directory or a `.wasm`
    /// file.
    ///
    /// # Errors
    /// Fails if there is no such policy or admission would refuse it.
    pub async fn contender(
        &mut self,
        store: &mut RecordStore,
        text: &str,
    ) -> anyhow::Result<Contender> {
        let path = Path::new(text);
        let policy = if path.is_dir() {
            let files = read_policy_directory(path).map_err(anyhow::Error::msg)?;
            self.admit(text, &files)?
        } else if path.is_file() {
            let bytes = std::fs::read(path).with_context(|| text.to_owned())?;
            self.around(text, bytes)?
        } else {
            let policy: PolicyRef = text.parse().map_err(|error| {
                anyhow!("{error}; or give an existing policy directory or .wasm file")
            })?;
            let policy = self.published(store, &policy).await?;
            return Ok(Contender {
                label: text.to_owned(),
                policy,
            });
        };
        let label = if path.is_dir() {
            policy.spec.policy.to_string()
        } else {
            text.to_owned()
        };
        Ok(Contender { label, policy })
    }

    /// Compiles a policy from [`Library::served`] or [`Library::contender`] so that its calls
    /// count fuel.
    ///
    /// # Errors
    /// Fails if a module cannot be compiled for metering.
    pub fn metered(&self, policy: &LoadedPolicy) -> anyhow::Result<LoadedPolicy> {
        let module = |stage: Stage| {
            let bytes = self.bytes.get(&policy.modules.get(stage).digest);
            let bytes = bytes.with_context(|| format!("{stage}: no module bytes"))?;
            anyhow::Ok(Arc::new(self.engine.load_metered(bytes)?))
        };
        let modules = PerStage::try_build(module)?;
        LoadedPolicy::bind(policy.digest, policy.spec.clone(), modules)
            .map_err(|reasons| anyhow!("{}", texts(&reasons)))
    }

    fn admit(&mut self, name: &str, files: &PolicyFiles) -> anyhow::Result<Arc<LoadedPolicy>> {
        match admit(&self.engine, &*self, files) {
            Ok(admitted) => {
                self.bytes.extend(admitted.module_bytes);
                Ok(admitted.loaded)
            }
            Err(refusal) => bail!("{name} would be refused: {}", refusal.text()),
        }
    }

    /// Builds a policy from one module, with bundled modules in the other two stages.
    fn around(&mut self, name: &str, bytes: Vec<u8>) -> anyhow::Result<Arc<LoadedPolicy>> {
        const FILE: &str = "module.wasm";
        let module = self
            .engine
            .load_upload(&bytes)
            .map_err(|error| anyhow!("{name}: {error}"))?;
        let source = |stage: Stage| match stage {
            own if own == module.stage => FILE,
            Stage::Dedup => "builtin:seen-dedup",
            Stage::Score => "builtin:weighted-scorer",
            Stage::Saturation => "builtin:author-saturation",
        };
        let stages: String = Stage::ALL
            .map(|stage| format!("[{stage}]\nmodule = \"{}\"\n", source(stage)))
            .concat();
        let limits = match module.shape.class() {
            Class::Standard => String::new(),
            Class::Large => format!("[limits]\nmemory_mb = {MEMORY_MB_MAX}\n"),
        };
        let files = PolicyFiles {
            manifest: format!("name = \"replayed\"\nversion = \"0.0.0\"\n{stages}{limits}"),
            modules: BTreeMap::from([(FILE.to_owned(), bytes)]),
        };
        self.modules.insert(module.digest, Arc::new(module));
        self.admit(name, &files)
    }

    /// Looks for a published policy in the registry, then in this binary, then in the records.
    /// The records come last, because they contain a policy as it ran, possibly with parameters
    /// overridden by an experiment.
    async fn published(
        &mut self,
        store: &mut RecordStore,
        policy: &PolicyRef,
    ) -> anyhow::Result<Arc<LoadedPolicy>> {
        if let Some(registry) = self.registry.clone() {
            let state = registry.load().await?;
            if let Some(published) = state.policy(policy) {
                return Ok(Arc::new(self.bind(store, published.spec.clone()).await?));
            }
        }
        let name = policy.to_string();
        for files in builtin::recipes() {
            let shipped = self.admit(&name, &files)?;
            if shipped.spec.policy == *policy {
                return Ok(shipped);
            }
        }
        let mut recorded = self.served.values().filter(|p| p.spec.policy == *policy);
        match (recorded.next(), recorded.next()) {
            (Some(only), None) => Ok(only.clone()),
            (Some(_), Some(_)) => bail!(
                "the records contain {policy} with several sets of parameter values; give its directory, or use --data-dir"
            ),
            (None, _) => bail!(
                "the policy {policy} is not in the records, the registry or this program; to see what there is, run: nova policy list"
            ),
        }
    }

    async fn bind(
        &mut self,
        store: &mut RecordStore,
        spec: PolicySpec,
    ) -> anyhow::Result<LoadedPolicy> {
        let modules = PerStage {
            dedup: self.module(store, spec.stages.dedup.module).await?,
            score: self.module(store, spec.stages.score.module).await?,
            saturation: self.module(store, spec.stages.saturation.module).await?,
        };
        LoadedPolicy::bind(spec.digest(), spec, modules)
            .map_err(|reasons| anyhow!("{}", texts(&reasons)))
    }

    async fn module(
        &mut self,
        store: &mut RecordStore,
        digest: Digest,
    ) -> anyhow::Result<Arc<Module>> {
        if let Some(module) = self.modules.get(&digest) {
            return Ok(module.clone());
        }
        let mut bytes = store.module(digest).await?;
        if let (None, Some(registry)) = (&bytes, &self.registry) {
            bytes = registry.module(digest).await?;
        }
        let bytes = bytes.with_context(|| format!("module {digest} is missing"))?;
        // A file of records may come from anybody.
        ensure!(
            bytes.len() <= MODULE_BYTES_MAX,
            "module {digest} has {} bytes; {MODULE_BYTES_MAX} are allowed",
            bytes.len()
        );
        ensure!(
            self.modules.len() < MODULES_MAX,
            "the records name more than {MODULES_MAX} modules"
        );
        let module = Arc::new(self.engine.load_upload(&bytes)?);
        self.modules.insert(digest, module.clone());
        self.bytes.insert(digest, bytes);
        Ok(module)
    }
}

fn texts(reasons: &[Reason]) -> String {
    let texts: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// Knows every module of the replay and treats every policy as tried, because an author may want
/// to see how a policy ranks before admission would accept it.
impl KnownModules for Library {
    fn compiled(&self, digest: Digest) -> Option<Arc<Module>> {
        self.modules.get(&digest).cloned()
    }

    fn bytes(&self, digest: Digest) -> Option<Vec<u8>> {
        self.bytes.get(&digest).cloned()
    }

    fn is_tried(&self, _policy: Digest) -> bool {
        true
    }
}
