//! What a board is called.

use std::fs;
use std::path::Path;

/// The name of the board or its processor whose `/proc` lies under `root`, if it tells one.
pub fn processor_name(root: &Path) -> Option<String> {
    let text = |path: &str| fs::read_to_string(root.join(path)).ok();
    let board = text("proc/device-tree/model").map(|name| name.trim_matches(['\0', '\n']).to_string());
    board.or_else(|| {
        let cpuinfo = text("proc/cpuinfo")?;
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_string())
        };
        field("model name").or_else(|| field("Hardware"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_goes_before_its_processor() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(processor_name(root.path()), None);
        fs::create_dir_all(root.path().join("proc/device-tree")).unwrap();
        fs::write(root.path().join("proc/cpuinfo"), "processor : 0\nmodel name\t: A CPU @ 2 GHz\n").unwrap();
        assert_eq!(processor_name(root.path()).as_deref(), Some("A CPU @ 2 GHz"));
        fs::write(root.path().join("proc/device-tree/model"), "Raspberry Pi 5\0").unwrap();
        assert_eq!(processor_name(root.path()).as_deref(), Some("Raspberry Pi 5"));
    }
}
