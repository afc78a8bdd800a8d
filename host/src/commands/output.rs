//! What commands print.
//!
//! A reader may close the pipe before it has read everything, as in `nova policy list | head -1`.
//! `println!` panics then. A command ends quietly instead, with the status that a shell reports for
//! a program that SIGPIPE ended. Any other failure, such as a full disk, is an error like others.

use anyhow::Context as _;
use std::fmt::Display;
use std::io::{ErrorKind, Write, stderr, stdout};
use std::process::ExitCode;

/// 128 + 13, the number of SIGPIPE.
const NOBODY_READS_STATUS: u8 = 141;

/// The reader of the output has closed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody reads the output")]
struct NobodyReads;

/// Prints a line.
///
/// # Errors
/// The output is closed or cannot be written.
pub fn line(line: impl Display) -> anyhow::Result<()> {
    write(&mut stdout().lock(), format_args!("{line}\n"))
}

/// Prints text that ends with a line break.
///
/// # Errors
/// The output is closed or cannot be written.
pub fn text(text: impl Display) -> anyhow::Result<()> {
    write(&mut stdout().lock(), format_args!("{text}"))
}

/// Prints a remark on standard error. If nobody reads it, nothing is lost but the remark.
pub fn note(line: impl Display) {
    let _ = writeln!(stderr().lock(), "{line}");
}

fn write(out: &mut impl Write, text: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    let written = out.write_fmt(text).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(NobodyReads.into()),
        written => written.context("could not write the output"),
    }
}

/// Reports the failure of a command, in one line, and returns the status to exit with.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| cause.is::<NobodyReads>()) {
        return ExitCode::from(NOBODY_READS_STATUS);
    }
    note(format_args!("nova: {error:#}"));
    ExitCode::FAILURE
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use std::io;

    struct Failing(ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_a_closed_pipe_is_no_failure_and_no_other_broken_pipe_is_taken_for_it() {
        let failed = |kind| write(&mut Failing(kind), format_args!("x")).unwrap_err();
        let status = |error: &anyhow::Error| format!("{:?}", fail(error));
        let quiet = format!("{:?}", ExitCode::from(NOBODY_READS_STATUS));
        let loud = format!("{:?}", ExitCode::FAILURE);
        let closed = failed(ErrorKind::BrokenPipe);
        assert_eq!(status(&closed), quiet);
        assert_eq!(status(&closed.context("in a command")), quiet);
        let full = failed(ErrorKind::StorageFull);
        assert_eq!(full.to_string(), "could not write the output");
        assert_eq!(status(&full), loud);
        let connection = io::Error::from(ErrorKind::BrokenPipe);
        assert_eq!(status(&connection.into()), loud);
    }
}
