//! The child's side: limits first, then the question, the compiled modules, and the verdict.

use super::wire::{self, Asked};
use super::{Compiled, WorkerLimits};
use crate::admission::{KnownModules, PolicyFiles, admit, admit_module};
use crate::compiler::lower_priority;
use crate::engine::Engine;
use crate::module::Module;
use crate::reason::Reason;
use anyhow::Context as _;
use nova_model::artifact::{Digest, PerStage};
use nova_model::measured::Record;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::collections::HashMap;
use std::io::{BufReader, BufWriter, Read, Write};
use std::sync::Arc;

/// Addresses beyond the memory limit. Compiled code expects 4 GiB of them for each instance, and
/// a trial has a few instances at once. The limit on data is what bounds memory: addresses that
/// cannot be written do not count there.
const RESERVED_BYTES: u64 = 96 << 30;

/// Answers one question, within `limits`.
///
/// # Errors
/// Fails if a limit cannot be set, or if the question or the answer breaks off.
pub fn serve(limits: WorkerLimits, from: impl Read, to: impl Write) -> anyhow::Result<()> {
    limit(limits)?;
    let asked = wire::read_question(BufReader::new(from)).context("reading the question")?;
    let mut to = BufWriter::new(to);
    let mut engine = Engine::start_for_admission(asked.allocation)?;
    let modules = asked.files.iter().map(|(_, bytes)| bytes);
    let compiled = modules
        .chain(&asked.published)
        .filter_map(|bytes| engine.compile_ahead(bytes))
        .collect::<HashMap<Digest, Compiled>>();
    // The modules are sent before any of their code runs, so that no policy can change them.
    wire::write_compiled(&mut to, &compiled)?;
    drop(compiled);
    wire::write_verdict(&mut to, &check(&engine, asked))?;
    Ok(())
}

fn check(engine: &Engine, asked: Asked) -> Result<Record, Vec<Reason>> {
    let Some(manifest) = asked.manifest else {
        let (_, bytes) = asked.files.into_iter().next().unwrap_or_default();
        let (module, record) = admit_module(engine, &bytes).map_err(|refusal| refusal.reasons)?;
        let mut stages = PerStage::default();
        *stages.get_mut(module.stage) = record;
        return Ok(Record {
            fuel: 0,
            fuel_allowed: 0,
            stages,
        });
    };
    let files = PolicyFiles {
        manifest,
        modules: asked.files.into_iter().collect(),
    };
    let published = asked.published.into_iter();
    let known = Sent(published.map(|b| (Digest::from_content(&b), b)).collect());
    let admitted = admit(engine, &known, &files).map_err(|refusal| refusal.reasons)?;
    let untried = || vec![Reason::whole("refused", "the policy was not tried")];
    admitted.record.ok_or_else(untried)
}

/// The published modules that were sent with the question.
struct Sent(HashMap<Digest, Vec<u8>>);

impl KnownModules for Sent {
    fn compiled(&self, _digest: Digest) -> Option<Arc<Module>> {
        None
    }

    fn bytes(&self, digest: Digest) -> Option<Vec<u8>> {
        self.0.get(&digest).cloned()
    }

    fn is_tried(&self, _policy: Digest) -> bool {
        false
    }
}

/// Limits this process. A limit that is lower already stays.
fn limit(limits: WorkerLimits) -> anyhow::Result<()> {
    lower_priority();
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("binding to the parent")?;
    let memory = limits.memory_mb << 20;
    let wanted = [
        (Resource::Data, memory),
        (Resource::As, memory.saturating_add(RESERVED_BYTES)),
        (Resource::Cpu, limits.cpu_s),
        (Resource::Core, 0),
    ];
    for (resource, wanted) in wanted {
        let now = rustix::process::getrlimit(resource);
        let lower = |limit: Option<u64>| Some(limit.map_or(wanted, |limit| limit.min(wanted)));
        // The hard limit of processor time is higher, so that the signal tells it from a kill.
        let maximum = match resource {
            Resource::Cpu => now.maximum,
            _ => lower(now.maximum),
        };
        let new = Rlimit {
            current: lower(now.current),
            maximum,
        };
        setrlimit(resource, new).with_context(|| format!("limiting {resource:?}"))?;
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::builtin;
    use crate::settings::{Allocation, EngineSettings};

    #[test]
    fn a_host_loads_what_a_child_compiled_for_it_and_compiles_nothing() {
        let bytes = builtin::module("weighted-scorer").unwrap();
        let addresses = [
            (None, Allocation::Pooled),
            (Some(64 << 30), Allocation::OnDemand),
        ];
        for (address_space_bytes, allocation) in addresses {
            let host = Engine::start_with(EngineSettings {
                address_space_bytes,
                ..EngineSettings::for_commands()
            });
            let dir = tempfile::tempdir().unwrap();
            let host = host.unwrap().with_cache(dir.path()).unwrap();
            assert_eq!(host.allocation(), allocation);
            let mut child = Engine::start_for_admission(allocation).unwrap();
            let (digest, compiled) = child.compile_ahead(bytes).unwrap();
            let module = host.load_compiled(bytes, &compiled).unwrap();
            assert_eq!(module.description.name, "weighted-scorer");
            // The next start finds the code in the cache.
            assert_eq!(module.digest, digest);
            assert_eq!(host.load(bytes).unwrap().compiled_in, None);
        }
    }
}
