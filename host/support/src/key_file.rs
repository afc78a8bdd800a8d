//! Key files: random keys that are made once and kept in the data directory.
//!
//! A file that cannot be trusted is refused and never replaced: a new key would silently end all
//! tokens and cursors, and hosts that share a key would no longer agree.

use crate::secret_key::{SecretKey, WeakKey};
use anyhow::{Context, anyhow};
use std::fs::{File, Metadata};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const KEY_BYTES: usize = 32;
/// Largest file that is read. A generated key takes 65 bytes.
const FILE_BYTES_MAX: u64 = 4_096;
const ROOT: u32 = 0;

/// Returns the key of a file. Generates it if the file does not exist.
///
/// # Errors
/// The file cannot be read or written, it is damaged or weak, or others than its owner have access
/// to it.
pub fn load_or_make_file(path: &Path) -> anyhow::Result<SecretKey> {
    if !path.exists() {
        make(path).with_context(|| format!("could not generate the key {}", path.display()))?;
    }
    let text = read(path).with_context(|| format!("could not read the key {}", path.display()))?;
    let key = hex::decode(text.trim()).map_err(|_| "is damaged".to_owned());
    let key = key.and_then(|key| SecretKey::new(key).map_err(|weak: WeakKey| weak.to_string()));
    key.map_err(|reason| {
        anyhow!(
            "{} {reason}; restore it from a backup, or delete it to generate a new key (everything signed with the old one becomes invalid)",
            path.display()
        )
    })
}

/// Returns the lines of a file with keys, without empty ones.
///
/// # Errors
/// The file cannot be read, or others than its owner have access to it.
pub fn read_lines(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = read(path)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(str::to_owned).collect())
}

fn read(path: &Path) -> anyhow::Result<String> {
    let file = File::open(path)?;
    check_access(path, &file.metadata()?)?;
    let mut text = Vec::new();
    // One byte more shows a file that is too large. Its last key would otherwise be cut off.
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)?;
    anyhow::ensure!(
        text.len() as u64 <= FILE_BYTES_MAX,
        "it has more than {FILE_BYTES_MAX} bytes"
    );
    String::from_utf8(text).map_err(|_| anyhow!("it is not text"))
}

fn check_access(path: &Path, file: &Metadata) -> anyhow::Result<()> {
    let directory = path.parent().unwrap_or(Path::new(".")).metadata();
    let access = Access {
        mode: file.mode(),
        owner: file.uid(),
        user: rustix::process::geteuid().as_raw(),
        of_the_volumes_group: directory.is_ok_and(|directory| {
            directory.mode() & SET_GROUP_ID != 0 && directory.gid() == file.gid()
        }),
    };
    match access.judge() {
        Ok(()) => Ok(()),
        Err(TooOpen::Repairable) => Err(anyhow!(
            "others than its owner have access to it (mode {:03o}); run: chmod 600 {}",
            file.mode() & 0o777,
            path.display()
        )),
        Err(TooOpen::Foreign) => Err(anyhow!(
            "it belongs to another user (id {}); give it to the user who runs nova: chown {} {}",
            access.owner,
            access.user,
            path.display()
        )),
        Err(TooOpen::Writable) => Err(anyhow!(
            "it belongs to root and others may write to it (mode {:03o}); run as root: chmod go-w {}",
            file.mode() & 0o777,
            path.display()
        )),
    }
}

const SET_GROUP_ID: u32 = 0o2000;
const OTHERS: u32 = 0o007;
const GROUP_AND_OTHERS: u32 = 0o077;
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Who may use a key file.
#[derive(Debug, Clone, Copy)]
struct Access {
    mode: u32,
    /// User id of the file's owner.
    owner: u32,
    /// User id of this process.
    user: u32,
    /// True if the file has the group of a directory whose files all get that group.
    of_the_volumes_group: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TooOpen {
    /// This user may correct the mode.
    Repairable,
    Foreign,
    Writable,
}

impl Access {
    /// - The user's own file, and any file for root, must be closed to everybody but its owner. One
    ///   exception: Kubernetes gives the files of a volume to the pod's own group (`fsGroup`) at
    ///   every start and marks the directory with the set-group-ID bit. There the group may have
    ///   access.
    /// - A file of root, read by another user, is a secret that was mounted into a container. Such
    ///   mounts are read-only, often mode 444, and their reader cannot change them. They are
    ///   accepted if only root may write to them.
    /// - A file of a third user is refused: its owner could exchange the key.
    fn judge(self) -> Result<(), TooOpen> {
        if self.owner == self.user || self.user == ROOT {
            let closed_to = match self.of_the_volumes_group {
                true => OTHERS,
                false => GROUP_AND_OTHERS,
            };
            return match self.mode & closed_to {
                0 => Ok(()),
                _ => Err(TooOpen::Repairable),
            };
        }
        match (self.owner, self.mode & WRITABLE_BY_OTHERS) {
            (ROOT, 0) => Ok(()),
            (ROOT, _) => Err(TooOpen::Writable),
            _ => Err(TooOpen::Foreign),
        }
    }
}

/// Generates a key. The first of several hosts wins, and no host ever reads a partial key: the
/// file is written under another name and then linked into place, which fails if the key already
/// exists.
fn make(path: &Path) -> anyhow::Result<()> {
    let data_dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(data_dir)?;
    // Temporary files are created readable only by their owner.
    let mut file = tempfile::NamedTempFile::new_in(data_dir)?;
    writeln!(file, "{}", hex::encode(rand::random::<[u8; KEY_BYTES]>()))?;
    file.as_file().sync_all()?;
    match std::fs::hard_link(file.path(), path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        linked => Ok(linked?),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod format_tests;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const GOOD: &str = "a83bbac143de39c0900ae9d820ac7a7cc2f4eafff1fa8c52fab800f21f52d894\n";

    /// Writes a key file with this content and mode, and returns the outcome of reading it.
    fn loaded(content: &str, mode: u32) -> Result<Vec<u8>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jwt.key");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let key = load_or_make_file(&path);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        key.map(|key| key.as_bytes().to_vec())
            .map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn threads_that_start_at_the_same_time_read_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let keys: Vec<SecretKey> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| load_or_make_file(&dir.path().join("jwt.key")).unwrap()))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(keys[0].as_bytes().len(), KEY_BYTES);
        assert!(keys.iter().all(|key| key.as_bytes() == keys[0].as_bytes()));
    }

    #[test]
    fn a_damaged_or_weak_key_file_is_refused_and_kept_as_it_is() {
        for (content, reason) in [
            ("", "is empty"),
            ("\n", "is empty"),
            ("not hexadecimal", "is damaged"),
            (&GOOD[..63], "is damaged"),
            (&GOOD[..32], "has 16 bytes"),
            (&"00".repeat(32), "different bytes"),
            (&GOOD[..16].repeat(4), "repeats a pattern of 8 bytes"),
        ] {
            let refusal = loaded(content, 0o600).unwrap_err();
            assert!(refusal.contains(reason), "{content:?}: {refusal}");
            assert!(refusal.contains("jwt.key"), "{refusal}");
            assert!(refusal.contains("delete it"), "{refusal}");
        }
        assert_eq!(hex::encode(loaded(GOOD, 0o600).unwrap()), GOOD.trim());
    }

    #[test]
    fn a_file_with_keys_is_read_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let lines = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            read_lines(&path).map_err(|error| error.to_string())
        };
        let two = [GOOD.trim().to_owned(), "another key".to_owned()];
        let text = format!("\n{GOOD} another key \r\n\n");
        assert_eq!(lines(text.as_bytes()), Ok(two.to_vec()));
        let many = GOOD.repeat(64);
        assert!(lines(many.as_bytes()).unwrap_err().contains("4096 bytes"));
        assert!(lines(b"\xff\xfe").unwrap_err().contains("not text"));
    }

    #[test]
    fn a_key_file_that_others_may_use_is_refused_with_the_command_that_closes_it() {
        for mode in [0o644, 0o640, 0o604, 0o660, 0o602, 0o620, 0o777] {
            let refusal = loaded(GOOD, mode).unwrap_err();
            assert!(refusal.contains("run: chmod 600 "), "{mode:o}: {refusal}");
            assert!(refusal.contains(&format!("{mode:o}")), "{refusal}");
        }
        for mode in [0o600, 0o400] {
            loaded(GOOD, mode).unwrap();
        }
    }

    #[test]
    fn mounted_secrets_of_root_and_volumes_with_a_group_are_accepted() {
        const ME: u32 = 1_000;
        let judge = |mode, owner, of_the_volumes_group| {
            let user = ME;
            let access = Access {
                mode,
                owner,
                user,
                of_the_volumes_group,
            };
            access.judge()
        };
        for mode in [0o444, 0o440, 0o400, 0o644, 0o640] {
            assert_eq!(judge(mode, ROOT, false), Ok(()), "{mode:o}");
        }
        for mode in [0o666, 0o664, 0o646] {
            assert_eq!(judge(mode, ROOT, false), Err(TooOpen::Writable), "{mode:o}");
        }
        for mode in [0o660, 0o640, 0o600] {
            assert_eq!(judge(mode, ME, true), Ok(()), "{mode:o}");
        }
        for mode in [0o664, 0o606] {
            assert_eq!(judge(mode, ME, true), Err(TooOpen::Repairable), "{mode:o}");
        }
        assert_eq!(judge(0o660, ME, false), Err(TooOpen::Repairable));
        for mode in [0o444, 0o600] {
            assert_eq!(judge(mode, 1_001, false), Err(TooOpen::Foreign), "{mode:o}");
        }
    }
}
