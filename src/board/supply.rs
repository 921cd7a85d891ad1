//! Memory that is left, and where the power comes from.

use std::fs;
use std::path::Path;

/// Memory that programs could still get, in bytes, on the board whose `/proc` lies under `root`.
pub fn available_bytes(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()? * 1024)
}

/// Whether the board whose `/sys` lies under `root` lives on a battery: one discharges and no other supply is there.
pub fn is_on_battery(root: &Path) -> bool {
    let supplies = fs::read_dir(root.join("sys/class/power_supply")).into_iter().flatten().flatten();
    let (mut discharging, mut plugged) = (false, false);
    for supply in supplies {
        let text = |file: &str| fs::read_to_string(supply.path().join(file)).unwrap_or_default();
        match text("type").trim() {
            // A battery of a mouse is not the board's.
            "Battery" if text("scope").trim() != "Device" => discharging |= text("status").trim() == "Discharging",
            "Battery" => {}
            _ => plugged |= text("online").trim() == "1",
        }
    }
    discharging && !plugged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discharging_battery_without_a_plug_is_told() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join("sys/class/power_supply").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert!(!is_on_battery(root.path()));
        put("BAT0/type", "Battery\n");
        put("BAT0/status", "Charging\n");
        assert!(!is_on_battery(root.path()));
        put("BAT0/status", "Discharging\n");
        put("mouse/type", "Battery\n");
        put("mouse/scope", "Device\n");
        assert!(is_on_battery(root.path()));
        put("AC/type", "Mains\n");
        put("AC/online", "1\n");
        assert!(!is_on_battery(root.path()));
    }

    #[test]
    fn available_memory_is_read() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(available_bytes(root.path()), None);
        fs::create_dir(root.path().join("proc")).unwrap();
        fs::write(root.path().join("proc/meminfo"), "MemTotal: 9 kB\nMemAvailable:    512 kB\n").unwrap();
        assert_eq!(available_bytes(root.path()), Some(512 << 10));
    }
}
