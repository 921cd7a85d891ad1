//! Memory that is left.

use std::fs;
use std::path::Path;

/// Memory that programs could still get, in bytes, on the board whose `/proc` lies under `root`.
pub fn available_bytes(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(available_bytes(root.path()), None);
        fs::create_dir(root.path().join("proc")).unwrap();
        fs::write(root.path().join("proc/meminfo"), "MemTotal: 9 kB\nMemAvailable:    512 kB\n").unwrap();
        assert_eq!(available_bytes(root.path()), Some(512 << 10));
    }
}
