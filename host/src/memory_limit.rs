//! The memory that this process may use: the limit of its control group or the machine's memory.

use std::path::Path;

/// Share of the memory that the instances of policies get if the configuration names no amount.
/// The rest is for the caches of `cache_mb` (twice 256 MiB by default), compiled policies, the
/// stores' clients, and the operating system's cache of the spool.
const POLICY_SHARE: u64 = 4;
/// Memory that is assumed if it cannot be found out.
const ASSUMED_BYTES: u64 = 2 << 30;
/// Smallest budget that is chosen without being asked for.
const BUDGET_BYTES_MIN: u64 = 64 << 20;

/// Returns the memory budget of policies in bytes: what is configured, or a quarter of the memory.
pub fn policy_bytes(configured_mb: u64) -> u64 {
    match configured_mb {
        0 => (memory_bytes().unwrap_or(ASSUMED_BYTES) / POLICY_SHARE).max(BUDGET_BYTES_MIN),
        mb => mb << 20,
    }
}

#[cfg(target_os = "linux")]
fn memory_bytes() -> Option<u64> {
    use procfs::Current as _;
    let machine = procfs::Meminfo::current()
        .map(|memory| memory.mem_total)
        .ok();
    let groups = procfs::process::Process::myself()
        .and_then(|process| process.cgroups())
        .map(|groups| groups.0)
        .unwrap_or_default();
    let limits = groups.iter().filter_map(|group| {
        if group.controllers.is_empty() {
            limit_of(Path::new("/sys/fs/cgroup"), &group.pathname, "memory.max")
        } else if group.controllers.iter().any(|name| name == "memory") {
            let root = Path::new("/sys/fs/cgroup/memory");
            limit_of(root, &group.pathname, "memory.limit_in_bytes")
        } else {
            None
        }
    });
    limits.chain(machine).min()
}

#[cfg(not(target_os = "linux"))]
fn memory_bytes() -> Option<u64> {
    None
}

/// Returns the lowest limit of a control group and of those above it. In a container, the group's
/// own path often does not exist, because its root is the container's group.
fn limit_of(root: &Path, group: &str, file: &str) -> Option<u64> {
    let group = root.join(group.trim_start_matches('/'));
    let groups = group.ancestors().take_while(|path| path.starts_with(root));
    // A group without a limit has the text `max`, or a number larger than any memory.
    let limits = groups.filter_map(|path| std::fs::read_to_string(path.join(file)).ok());
    limits.filter_map(|text| text.trim().parse().ok()).min()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_of_a_group_and_of_those_above_it_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("pod/container");
        std::fs::create_dir_all(&inner).unwrap();
        let limit = |group| limit_of(root.path(), group, "memory.max");
        assert_eq!(limit("/pod/container"), None);
        std::fs::write(inner.join("memory.max"), "max\n").unwrap();
        assert_eq!(limit("/pod/container"), None);
        std::fs::write(root.path().join("pod/memory.max"), "1073741824\n").unwrap();
        assert_eq!(limit("/pod/container"), Some(1 << 30));
        std::fs::write(inner.join("memory.max"), "536870912\n").unwrap();
        assert_eq!(limit("/pod/container"), Some(512 << 20));
        assert_eq!(limit("/pod"), Some(1 << 30));
        assert_eq!(limit("/not/there"), None);
    }

    #[test]
    fn a_configured_amount_is_used_and_zero_means_a_part_of_the_memory() {
        assert_eq!(policy_bytes(100), 100 << 20);
        assert!(policy_bytes(0) >= BUDGET_BYTES_MIN);
    }
}
