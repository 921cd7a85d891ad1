//! Memory of the whole board.

use std::fs;
use std::path::Path;

use serde::Serialize;

/// Memory and swap, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All there is, or the limit of the container that this process runs in.
    pub total_bytes: u64,
    /// What programs can still take without swapping.
    pub available_bytes: u64,
    /// Swap space.
    pub swap_bytes: u64,
    /// Of that, not in use.
    pub swap_free_bytes: u64,
}

impl Memory {
    /// Reads the memory of a board whose `/sys` and `/proc` lie under `root`; `None` if it does not tell.
    pub fn read_under(root: &Path) -> Option<Self> {
        let info = fs::read_to_string(root.join("proc/meminfo")).ok()?;
        let bytes = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
        };
        let number = |path: &str| fs::read_to_string(root.join(path)).ok()?.trim().parse::<u64>().ok();
        let limit = number("sys/fs/cgroup/memory.max").unwrap_or(u64::MAX);
        let left = limit.saturating_sub(number("sys/fs/cgroup/memory.current").unwrap_or(0));
        Some(Self {
            total_bytes: bytes("MemTotal")?.min(limit),
            available_bytes: bytes("MemAvailable")?.min(left),
            swap_bytes: bytes("SwapTotal").unwrap_or(0),
            swap_free_bytes: bytes("SwapFree").unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::root;
    use super::*;

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:        1917000 kB\nMemFree: 1 kB\nMemAvailable:    1000000 kB\nSwapTotal: 102396 kB\nSwapFree: 96 kB\n",
    );

    #[test]
    fn memory_and_swap_are_read() {
        let read = Memory::read_under(root(&[MEMINFO]).path()).unwrap();
        assert_eq!((read.total_bytes, read.available_bytes), (1_917_000 << 10, 1_000_000 << 10));
        assert_eq!((read.swap_bytes, read.swap_free_bytes), (102_396 << 10, 96 << 10));
        assert_eq!(Memory::read_under(root(&[]).path()), None);
    }

    #[test]
    fn a_container_has_its_limit() {
        let limits = [("sys/fs/cgroup/memory.max", "536870912\n"), ("sys/fs/cgroup/memory.current", "136870912\n")];
        let read = Memory::read_under(root(&[MEMINFO, limits[0], limits[1]]).path()).unwrap();
        assert_eq!((read.total_bytes, read.available_bytes), (536_870_912, 400_000_000));
        let none = Memory::read_under(root(&[MEMINFO, ("sys/fs/cgroup/memory.max", "max\n")]).path()).unwrap();
        assert_eq!(none.total_bytes, 1_917_000 << 10);
    }
}
