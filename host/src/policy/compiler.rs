//! Where components are compiled: threads of their own, below everything that serves.
//!
//! The compiler is not built to withstand hostile input: a few megabytes can be made to take minutes.
//! So what was uploaded is looked at before ([`Shape::too_complex`](super::shape::Shape::too_complex)),
//! waits in a short queue, is compiled one at a time, and refused when it takes too long. A compiler
//! cannot be stopped half-way; the thread finishes what nobody waits for, and the bounds on the
//! component see to it that it does. What is published already was compiled before, so it goes past
//! that queue: nobody can hold up an activation by uploading.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use wasmtime::Engine;
use wasmtime::component::Component;

/// A policy with an interpreter in it takes ten seconds on two idle cores, and forty on busy ones.
pub const COMPILE_TIME_MAX: Duration = Duration::from_secs(180);
/// Uploads that wait for the one that is being compiled.
const QUEUE_LENGTH: usize = 8;
/// Serving threads have 0. At 19 a compilation would never end on a busy host, and an activation
/// may wait for it; at 10 it gets a tenth of what a serving thread gets.
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
        "not compiled within {} s, queue included; make it smaller, or try again when the host has less to do",
        .0.as_secs()
    )]
    TimedOut(Duration),
    #[error("{QUEUE_LENGTH} other uploads wait to be compiled; try again in a minute")]
    Busy,
}

impl Compiler {
    /// # Errors
    /// When the threads cannot be started.
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

    /// Compiles what is known to compile, for as long as it takes.
    pub fn compile(&self, engine: &Engine, bytes: &[u8]) -> wasmtime::Result<Component> {
        self.threads.install(|| Component::new(engine, bytes))
    }

    /// Compiles what somebody sent.
    ///
    /// # Errors
    /// When it is no component, takes longer than `time_max`, or too many others wait.
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
                wasmtime::Error::msg("the compiler panicked on it"),
            )),
        }
    }
}

/// Of the calling thread. A system that will not lower a priority works at the ordinary one.
pub(super) fn lower_priority() {
    let _ = rustix::process::nice(NICENESS);
}

/// Ends with the last handle to the queue.
fn compile_uploads(threads: &rayon::ThreadPool, queue: &Receiver<Upload>) {
    for upload in queue {
        if upload.given_up.load(Ordering::Relaxed) {
            continue;
        }
        let compile = || Component::new(&upload.engine, &upload.bytes);
        // A panic is this upload's end, not the queue's: its sender is dropped, which its waiter hears.
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
    use crate::policy::builtin;

    #[test]
    fn what_takes_too_long_is_refused_and_the_next_one_is_compiled() {
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
        // Nobody waits for these, so all but the one in work are still queued or already skipped.
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
