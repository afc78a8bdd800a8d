//! Admission in a child process. The child is this program again, with limits on its memory and
//! its processor time that it sets before it reads anything; the parent limits the time on the
//! clock. Bytes that nobody has admitted are compiled and run only there, so what they do to the
//! compiler or to the sandbox happens to a process that serves nobody.

mod child;
mod wire;

pub use child::serve;

use crate::reason::{Reason, Refusal};
use crate::settings::Allocation;
use nova_model::artifact::Digest;
use nova_model::measured::Record;
use rustix::process::Signal;
use std::collections::HashMap;
use std::io::{BufWriter, Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Code of the reason if the check could not be made. It says nothing about the policy.
pub const NOT_CHECKED: &str = "not_checked";
/// Interval at which the parent looks at the clock and asks if the answer is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Bytes of the child's error output that are kept.
const STDERR_BYTES_MAX: u64 = 8 << 10;
/// Messages of a process that was refused memory, by Rust and by a call of the system.
const OUT_OF_MEMORY: [&str; 2] = ["memory allocation of", REFUSED_BY_THE_SYSTEM];
const REFUSED_BY_THE_SYSTEM: &str = "Cannot allocate memory";

/// Limits of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerLimits {
    /// Memory of the process.
    pub memory_mb: u64,
    /// Processor time of all its threads together.
    pub cpu_s: u64,
    /// Time on the clock.
    pub wall_s: u64,
}

impl Default for WorkerLimits {
    fn default() -> Self {
        Self {
            memory_mb: 2_048,
            cpu_s: 240,
            wall_s: 600,
        }
    }
}

/// The limits that the child sets itself, as the argument of the command.
impl std::fmt::Display for WorkerLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},{}", self.memory_mb, self.cpu_s)
    }
}

impl FromStr for WorkerLimits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (memory_mb, cpu_s) = text.split_once(',')?;
            Some(Self {
                memory_mb: memory_mb.parse().ok()?,
                cpu_s: cpu_s.parse().ok()?,
                ..Self::default()
            })
        };
        read().ok_or_else(|| "write MEMORY_MB,CPU_S".to_owned())
    }
}

/// Starts a child for each check.
#[derive(Debug, Clone)]
pub struct Worker {
    program: PathBuf,
    limits: WorkerLimits,
}

/// The files that the child checks.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// `None` to check one module alone.
    pub manifest: Option<&'a str>,
    /// Files by name, or the module alone.
    pub files: &'a [(&'a str, &'a [u8])],
    /// Published modules that the manifest names by digest.
    pub published: &'a [&'a [u8]],
    pub allocation: Allocation,
}

/// The child's answer: compiled modules, then the verdict.
#[derive(Debug)]
pub struct Checked {
    pub compiled: HashMap<Digest, Compiled>,
    /// The cost of the policy.
    pub record: Record,
}

/// A module that the child compiled before it ran any of its code.
#[derive(Debug)]
pub struct Compiled {
    pub code: Vec<u8>,
    pub took: Duration,
}

impl Worker {
    /// # Errors
    /// Fails if the path of this program is unknown.
    pub fn of_this_program(limits: WorkerLimits) -> std::io::Result<Self> {
        // On Linux the link names the running program even after an upgrade replaced its file.
        let program = match cfg!(target_os = "linux") {
            true => PathBuf::from("/proc/self/exe"),
            false => std::env::current_exe()?,
        };
        Ok(Self { program, limits })
    }

    /// Checks a policy in a child process. Blocks until the child answers, exceeds a limit, or
    /// `wanted` returns false; the child has ended by then.
    ///
    /// # Errors
    /// Returns every reason that the child found, or the limit that it exceeded.
    pub fn check(
        &self,
        question: Question<'_>,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Checked, Refusal> {
        let started = Instant::now();
        let mut child = self.start().map_err(|error| not_checked(&error))?;
        let (Some(input), Some(output), Some(errors)) = (
            child.0.stdin.take(),
            child.0.stdout.take(),
            child.0.stderr.take(),
        ) else {
            return Err(not_checked(&"the child has no pipes"));
        };
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // If the child died, its exit says more than the broken pipe.
                let mut input = BufWriter::new(input);
                let _ = wire::write_question(&mut input, question).and_then(|()| input.flush());
            });
            let errors = scope.spawn(move || {
                let mut text = Vec::new();
                let mut errors = errors;
                let _ = errors
                    .by_ref()
                    .take(STDERR_BYTES_MAX)
                    .read_to_end(&mut text);
                // The rest is read as well, so that the child does not wait for a reader.
                let _ = std::io::copy(&mut errors, &mut std::io::sink());
                String::from_utf8_lossy(&text).into_owned()
            });
            let (send, answer) = channel();
            scope.spawn(move || {
                let _ = send.send(wire::read_answer(output));
            });
            let answer = loop {
                match answer.recv_timeout(LOOK_EVERY) {
                    Ok(answer) => break answer,
                    Err(RecvTimeoutError::Disconnected) => break Err(wire::Garbled),
                    Err(RecvTimeoutError::Timeout) => {}
                }
                if started.elapsed() > Duration::from_secs(self.limits.wall_s) {
                    child.kill();
                    return Err(self.too_slow());
                }
                if !wanted() {
                    child.kill();
                    return Err(not_checked(&"nobody waits for the answer any more"));
                }
            };
            // A child that has answered has nothing left to do.
            if answer.is_ok() {
                child.kill();
            }
            let ended = child.0.wait().map_err(|error| not_checked(&error))?;
            let errors = errors.join().unwrap_or_default();
            match answer {
                Ok(answer) => self.verdict(answer),
                Err(wire::Garbled) => Err(self.died(ended, &errors)),
            }
        })
    }

    fn start(&self) -> std::io::Result<Killed> {
        let mut command = Command::new(&self.program);
        command
            .args(["policy", "check", "--worker"])
            .arg(self.limits.to_string())
            // The child needs nothing from the environment, and secrets may be in it.
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().map(Killed)
    }

    fn verdict(&self, answer: wire::Answer) -> Result<Checked, Refusal> {
        let wire::Answer { compiled, verdict } = answer;
        match verdict {
            Ok(record) => Ok(Checked { compiled, record }),
            Err(reasons) => {
                let refused = |reason: &Reason| reason.message.contains(REFUSED_BY_THE_SYSTEM);
                Err(match reasons.iter().any(refused) {
                    true => self.too_large(),
                    false => Refusal { reasons },
                })
            }
        }
    }

    /// Returns the reason why a child ended without an answer.
    fn died(&self, ended: ExitStatus, errors: &str) -> Refusal {
        if lacks_memory(errors) {
            return self.too_large();
        }
        if ended.signal() == Some(Signal::XCPU.as_raw()) {
            return refused(
                "admission_cpu",
                format!(
                    "compiling and trying the policy took more than {} s of processor time, the limit of this host (policy.admission_cpu_s); make the modules smaller, or do less work",
                    self.limits.cpu_s
                ),
            );
        }
        tracing::warn!(
            %ended,
            stderr = errors,
            "a process that checked an upload ended without an answer; the upload is refused"
        );
        refused(
            "admission_died",
            format!(
                "the process that compiled and tried the policy ended without an answer ({ended})"
            ),
        )
    }

    fn too_large(&self) -> Refusal {
        refused(
            "admission_memory",
            format!(
                "compiling and trying the policy took more than {} MiB of memory, the limit of this host (policy.admission_memory_mb); make the modules smaller",
                self.limits.memory_mb
            ),
        )
    }

    fn too_slow(&self) -> Refusal {
        refused(
            "admission_time",
            format!(
                "compiling and trying the policy was not finished within {} s, the limit of this host (policy.admission_wall_s); make the modules smaller, or try again when the host is less busy",
                self.limits.wall_s
            ),
        )
    }
}

fn lacks_memory(text: &str) -> bool {
    OUT_OF_MEMORY.iter().any(|message| text.contains(message))
}

fn refused(code: &'static str, message: String) -> Refusal {
    Refusal {
        reasons: vec![Reason::whole(code, message)],
    }
}

fn not_checked(cause: &dyn std::fmt::Display) -> Refusal {
    tracing::warn!(%cause, "an upload could not be checked");
    refused(
        NOT_CHECKED,
        "this host could not check the policy; try again in a minute".to_owned(),
    )
}

/// A child that is killed and waited for when the value is dropped, so that no process and no
/// zombie remains.
struct Killed(Child);

impl Killed {
    fn kill(&mut self) {
        // It fails only if the child has ended already.
        let _ = self.0.kill();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn of(shell: &str, limits: WorkerLimits) -> (tempfile::TempDir, Worker) {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::write(&program, format!("#!/bin/sh\n{shell}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        (dir, Worker { program, limits })
    }

    const LIMITS: WorkerLimits = WorkerLimits {
        memory_mb: 64,
        cpu_s: 5,
        wall_s: 60,
    };

    fn code(worker: &Worker, wanted: &dyn Fn() -> bool) -> String {
        let question = Question {
            manifest: Some("name = \"x\""),
            files: &[("x.wasm", &[0; 1 << 20])],
            published: &[],
            allocation: Allocation::Pooled,
        };
        let refusal = worker.check(question, wanted).unwrap_err();
        refusal.reasons[0].code.clone().into_owned()
    }

    #[test]
    fn a_child_that_fails_is_a_refusal_that_says_how() {
        let cases = [
            ("kill -XCPU $$", "admission_cpu"),
            ("kill -KILL $$", "admission_died"),
            ("exit 0", "admission_died"),
            ("head -c 100000 /dev/zero", "admission_died"),
            (
                "echo 'memory allocation of 7 bytes failed' >&2; kill -ABRT $$",
                "admission_memory",
            ),
        ];
        for (shell, expected) in cases {
            let (_dir, worker) = of(shell, LIMITS);
            assert_eq!(code(&worker, &|| true), expected, "{shell}");
        }
    }

    #[test]
    fn a_child_that_takes_too_long_or_that_nobody_waits_for_is_killed() {
        let never = WorkerLimits {
            wall_s: 0,
            ..LIMITS
        };
        let (_dir, worker) = of("exec sleep 600", never);
        assert_eq!(code(&worker, &|| true), "admission_time");
        let (_dir, worker) = of("exec sleep 600", LIMITS);
        assert_eq!(code(&worker, &|| false), NOT_CHECKED);
    }

    #[test]
    fn a_program_that_does_not_start_is_no_fault_of_the_policy() {
        let worker = Worker {
            program: PathBuf::from("/nonexistent/nova"),
            limits: LIMITS,
        };
        assert_eq!(code(&worker, &|| true), NOT_CHECKED);
    }
}
