//! Reads of files that somebody else wrote: regular files up to a size, and nothing that could
//! keep the reader waiting, such as a pipe or a device.

use std::io::{Error, ErrorKind, Read as _, Result};
use std::path::Path;

/// Reads a regular file of at most `bytes_max` bytes. Follows symlinks.
///
/// # Errors
/// Fails if the file cannot be read, is larger, or is not a regular file.
pub fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let invalid = |reason: String| Error::new(ErrorKind::InvalidInput, reason);
    let is_regular = |metadata: std::fs::Metadata| match metadata.is_file() {
        true => Ok(()),
        false => Err(invalid("is not a regular file".to_owned())),
    };
    // Opening a pipe would wait for a writer, so the kind is looked up first.
    is_regular(std::fs::metadata(path)?)?;
    let file = std::fs::File::open(path)?;
    is_regular(file.metadata()?)?;
    let mut bytes = Vec::new();
    // A file may grow, or have no length that is known beforehand.
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > bytes_max {
        true => Err(invalid(format!("is larger than {bytes_max} bytes"))),
        false => Ok(bytes),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        let error = read(&path, 4).unwrap_err().to_string();
        assert!(error.contains("larger than 4 bytes"), "{error}");
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        for path in [fifo.as_path(), Path::new("/dev/zero"), dir.path()] {
            let error = read(path, 10).unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{path:?}: {error}");
        }
    }
}
