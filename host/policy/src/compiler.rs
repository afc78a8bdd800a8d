//! The compiler of components: low-priority threads of its own, and a bounded queue for uploads.
//!
//! The compiler is not built to withstand hostile input: a few megabytes can be made to take
//! minutes. So an upload is checked first
//! ([`Shape::too_complex`](super::shape::Shape::too_complex)), waits in a short queue, is
//! compiled one at a time and is refused if it takes too long. A compilation cannot be stopped
//! half-way. The thread finishes it even if its caller has given up, and the bounds on the
//! component guarantee that it does finish. Published components were compiled before, so they
//! bypass that queue, and no upload can hold up an activation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use wasmtime::Engine;
use wasmtime::component::Component;

/// Time limit of an upload, including its time in the queue. A policy with an interpreter takes
/// ten seconds to compile on two idle cores and forty on busy ones.
pub const COMPILE_TIME_MAX: Duration = Duration::from_secs(180);
/// Maximum number of uploads that wait for the one being compiled.
const QUEUE_LENGTH: usize = 8;
/// Niceness of the compiler threads; serving threads have 0. At 19 a compilation would never end
/// on a busy host, and an activation may wait for it. At 10 it gets a tenth of a serving thread's
/// share.
const NICENESS: i32 = 10;

#[derive(Debug)]
pub struct Compiler {
    threads: Arc<rayon::ThreadPool>,
    uploads: SyncSender<Upload>,
}

struct Upload {
    engine: Engine,
    bytes: Vec<u8>,
    given_up: Arc<AtomicBool>,
    done: Sender<wasmtime::Result<Component>>,
}

#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error(transparent)]
    Invalid(wasmtime::Error),
    #[error(
        "compilation did not finish within {} s, including the time in the queue; make the component smaller, or try again when the host is less busy",
        .0.as_secs()
    )]
    TimedOut(Duration),
    #[error("{QUEUE_LENGTH} other uploads are waiting to be compiled; try again in a minute")]
    Busy,
}

impl Compiler {
    /// # Errors
    /// Fails if the threads cannot be started.
    pub fn start() -> anyhow::Result<Self> {
        let threads = rayon::ThreadPoolBuilder::new()
            .thread_name(|index| format!("compiler-{index}"))
            .start_handler(|_| lower_priority())
            .build()?;
        let threads = Arc::new(threads);
        let (uploads, queue) = sync_channel(QUEUE_LENGTH);
        let on = threads.clone();
        std::thread::Builder::new()
            .name("uploads".into())
            .spawn(move || compile_uploads(&on, &queue))?;
        Ok(Self { threads, uploads })
    }

    /// Compiles a component that is known to compile, without a time limit.
    pub fn compile(&self, engine: &Engine, bytes: &[u8]) -> wasmtime::Result<Component> {
        self.threads.install(|| Component::new(engine, bytes))
    }

    /// Compiles an uploaded component.
    ///
    /// # Errors
    /// Fails if the bytes are not a component, compilation takes longer than `time_max`, or the
    /// queue is full.
    pub fn compile_upload(
        &self,
        engine: &Engine,
        bytes: &[u8],
        time_max: Duration,
    ) -> Result<Component, CompileError> {
        let started = Instant::now();
        let (done, answer) = std::sync::mpsc::channel();
        let given_up = Arc::new(AtomicBool::new(false));
        let upload = Upload {
            engine: engine.clone(),
            bytes: bytes.to_vec(),
            given_up: given_up.clone(),
            done,
        };
        self.uploads
            .try_send(upload)
            .map_err(|_| CompileError::Busy)?;
        match answer.recv_timeout(time_max.saturating_sub(started.elapsed())) {
            Ok(compiled) => compiled.map_err(CompileError::Invalid),
            Err(RecvTimeoutError::Timeout) => {
                given_up.store(true, Ordering::Relaxed);
                Err(CompileError::TimedOut(time_max))
            }
            Err(RecvTimeoutError::Disconnected) => Err(CompileError::Invalid(
                wasmtime::Error::msg("the compiler panicked on this component"),
            )),
        }
    }
}

/// Lowers the priority of the calling thread. If the system refuses, the thread keeps its normal
/// priority.
pub fn lower_priority() {
    let _ = rustix::process::nice(NICENESS);
}

/// Compiles queued uploads one at a time. Returns when the last handle to the queue is dropped.
fn compile_uploads(threads: &rayon::ThreadPool, queue: &Receiver<Upload>) {
    for upload in queue {
        if upload.given_up.load(Ordering::Relaxed) {
            continue;
        }
        let compile = || Component::new(&upload.engine, &upload.bytes);
        // A panic fails only this upload and not the queue: its sender is dropped, so its caller
        // gets an error.
        let compiled =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| threads.install(compile)));
        if let Ok(compiled) = compiled {
            let _ = upload.done.send(compiled);
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::builtin;

    #[test]
    fn an_upload_that_takes_too_long_is_refused_and_the_next_one_is_compiled() {
        let (compiler, engine) = (Compiler::start().unwrap(), Engine::default());
        let bytes = builtin::module("weighted-scorer").unwrap();
        let slow = compiler.compile_upload(&engine, bytes, Duration::ZERO);
        assert!(matches!(slow, Err(CompileError::TimedOut(_))), "{slow:?}");
        let next = compiler.compile_upload(&engine, bytes, COMPILE_TIME_MAX);
        assert!(next.is_ok(), "{next:?}");
    }

    #[test]
    fn a_full_queue_refuses_instead_of_growing() {
        let (compiler, engine) = (Compiler::start().unwrap(), Engine::default());
        let bytes = builtin::module("weighted-scorer").unwrap();
        // The caller gives up on each of these at once, so all but the one being compiled are
        // either still queued or already skipped.
        let answers: Vec<_> = (0..100 * QUEUE_LENGTH)
            .map(|_| compiler.compile_upload(&engine, bytes, Duration::ZERO))
            .collect();
        assert!(
            answers
                .iter()
                .any(|answer| matches!(answer, Err(CompileError::Busy)))
        );
        assert!(answers.iter().all(Result::is_err));
    }
}
