//! Whether the board can afford an adaptation now.

mod slowness;

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::Serialize;

pub use slowness::Slowness;

use super::clock;
use super::config::GuardConfig;
use crate::board::{Board, available_bytes, is_on_battery};
use crate::serve::Counts;

/// Bytes of a megabyte.
pub(super) const MB: u64 = 1_000_000;

/// What one guard says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// Its name.
    pub name: &'static str,
    /// Whether it lets an adaptation run.
    pub ok: bool,
    /// From what.
    pub detail: String,
}

/// What the guards judge by, besides the board.
#[derive(Debug, Clone)]
pub struct Circumstances<'a> {
    /// Where the board's `/proc` and `/sys` are.
    pub board_root: &'a Path,
    /// The folder whose disk must have room.
    pub folder: &'a Path,
    /// Threads of an adaptation that runs, 0 if none does.
    pub running_threads: usize,
    /// Inference times counted so far.
    pub compute: Counts,
}

/// All guards, with what they remember.
#[derive(Debug, Default)]
pub struct Guards {
    hot: bool,
    throttled: Option<u64>,
    /// How requests are answered meanwhile.
    pub slowness: Slowness,
    readings: Vec<Reading>,
    out_of_memory: bool,
}

impl Guards {
    /// What was seen last.
    pub fn readings(&self) -> &[Reading] {
        &self.readings
    }

    /// The first guard that is against an adaptation.
    pub fn against(&self) -> Option<&Reading> {
        self.readings.iter().find(|reading| !reading.ok)
    }

    /// Whether so little memory is left that a pause, which gives none back, is not enough.
    pub fn out_of_memory(&self) -> bool {
        self.out_of_memory
    }

    /// Looks at everything.
    pub fn look(&mut self, config: &GuardConfig, now: &Circumstances) {
        let board = Board::read_under(now.board_root);
        let running = now.running_threads > 0;
        self.readings = vec![
            self.heat(config, &board),
            self.throttling(&board),
            load(config, &board, now.running_threads),
            self.memory(config, available_bytes(now.board_root)),
            disk(config, free_bytes(now.folder)),
            reading("power", config.on_battery || !is_on_battery(now.board_root), || "on battery".into()),
            reading("hours", !config.quiet_hours.contain(clock::minute_of_day()), || {
                format!("quiet hours {}", config.quiet_hours)
            }),
            self.slowness.look(config, running, &now.compute),
        ];
    }

    fn heat(&mut self, config: &GuardConfig, board: &Board) -> Reading {
        let Some(celsius) = board.celsius else {
            self.hot = false;
            return Reading { name: "temperature", ok: true, detail: "not told".into() };
        };
        self.hot = celsius >= config.hot_celsius || (self.hot && celsius > config.cool_celsius);
        let bound = if self.hot { config.cool_celsius } else { config.hot_celsius };
        let detail = format!("{celsius:.0} °C, {} {bound:.0} °C", if self.hot { "waiting for" } else { "below" });
        Reading { name: "temperature", ok: !self.hot, detail }
    }

    fn throttling(&mut self, board: &Board) -> Reading {
        let before = std::mem::replace(&mut self.throttled, board.throttled);
        let ok = match (board.throttled, before) {
            // The low bits say what is now, the high ones what was since start.
            (Some(flags), _) if board.is_raspberry() => flags & 0xF == 0,
            (Some(now), Some(before)) => now <= before,
            _ => true,
        };
        reading("throttling", ok, || "the board slows itself down".into())
    }

    fn memory(&mut self, config: &GuardConfig, available: Option<u64>) -> Reading {
        let least = config.min_memory_bytes;
        let available = available.filter(|_| least > 0);
        self.out_of_memory = available.is_some_and(|bytes| bytes < least / 2);
        let ok = available.is_none_or(|bytes| bytes >= least);
        let detail = available.map_or_else(
            || "not looked at".into(),
            |bytes| format!("{} MB available, at least {} MB wanted", bytes / MB, least / MB),
        );
        Reading { name: "memory", ok, detail }
    }
}

/// A reading whose detail only matters if it is not well.
fn reading(name: &'static str, ok: bool, detail: impl FnOnce() -> String) -> Reading {
    Reading { name, ok, detail: if ok { "ok".into() } else { detail() } }
}

/// The load of others: an adaptation that runs keeps its own threads busy.
fn load(config: &GuardConfig, board: &Board, own: usize) -> Reading {
    let Some(load) = board.load.filter(|_| config.max_load > 0.0) else {
        return Reading { name: "load", ok: true, detail: "not looked at".into() };
    };
    let others = (load - own as f64).max(0.0);
    let most = config.max_load * board.processors.max(1) as f64;
    Reading { name: "load", ok: others <= most, detail: format!("{others:.1} by others, at most {most:.1} allowed") }
}

fn disk(config: &GuardConfig, free: Option<u64>) -> Reading {
    let least = config.min_disk_bytes;
    let ok = free.is_none_or(|bytes| bytes >= least);
    let detail = free.map_or_else(
        || "not told".into(),
        |bytes| format!("{} MB free, at least {} MB wanted", bytes / MB, least / MB),
    );
    Reading { name: "disk", ok, detail }
}

/// Bytes that may still be written to the disk of `folder`.
fn free_bytes(folder: &Path) -> Option<u64> {
    let path = CString::new(folder.as_os_str().as_bytes()).ok()?;
    // SAFETY: all bits zero are a valid value of this struct of numbers.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a valid C string, and a struct of ours that lives through the call.
    let told = unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) } == 0;
    // The fields' types differ between targets.
    #[allow(clippy::unnecessary_cast)]
    told.then(|| (stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::config::DaemonConfig;
    use std::fs;

    fn config() -> GuardConfig {
        DaemonConfig::default().guard
    }

    fn look(guards: &mut Guards, root: &Path, running_threads: usize) -> Vec<(&'static str, bool)> {
        let compute = Counts::default();
        let now = Circumstances { board_root: root, folder: root, running_threads, compute };
        let config = GuardConfig { min_disk_bytes: 1, ..config() };
        guards.look(&config, &now);
        guards.readings().iter().map(|r| (r.name, r.ok)).collect()
    }

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn heat_has_to_pass_before_it_goes_on() {
        let root = tempfile::tempdir().unwrap();
        let mut guards = Guards::default();
        for (milli, ok) in [("60000", true), ("76000", false), ("70000", false), ("64000", true), ("70000", true)] {
            put(root.path(), "sys/class/thermal/thermal_zone0/temp", milli);
            assert!(look(&mut guards, root.path(), 0).contains(&("temperature", ok)), "{milli}");
            assert_eq!(guards.against().map(|r| r.name), (!ok).then_some("temperature"));
        }
    }

    #[test]
    fn a_raspberry_tells_throttling_by_flags_and_others_by_counts() {
        let (pi, pc) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut guards = Guards::default();
        put(pi.path(), "proc/device-tree/model", "Raspberry Pi 5");
        for (flags, ok) in [("0x50000", true), ("0x50004", false), ("0x50000", true)] {
            put(pi.path(), "sys/devices/platform/soc/soc:firmware/get_throttled", flags);
            assert!(look(&mut guards, pi.path(), 0).contains(&("throttling", ok)), "{flags}");
        }
        let mut guards = Guards::default();
        for (count, ok) in [("7", true), ("7", true), ("9", false), ("9", true)] {
            put(pc.path(), "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", count);
            assert!(look(&mut guards, pc.path(), 0).contains(&("throttling", ok)), "{count}");
        }
    }

    #[test]
    fn own_threads_are_no_load_of_others() {
        let board = Board { load: Some(3.5), processors: 2, ..Board::default() };
        assert!(!load(&config(), &board, 0).ok && load(&config(), &board, 2).ok);
        assert!(load(&GuardConfig { max_load: 0.0, ..config() }, &board, 0).ok);
    }

    #[test]
    fn little_memory_pauses_and_next_to_none_stops() {
        let mut guards = Guards::default();
        let least = config().min_memory_bytes;
        for (bytes, ok, out) in [(least, true, false), (least - 1, false, false), (least / 2 - 1, false, true)] {
            assert_eq!((guards.memory(&config(), Some(bytes)).ok, guards.out_of_memory()), (ok, out));
        }
        assert!(guards.memory(&config(), None).ok);
    }

    #[test]
    fn disks_tell_their_room() {
        assert!(free_bytes(Path::new("/")).is_some() && free_bytes(Path::new("/nowhere/at/all")).is_none());
        assert!(!disk(&config(), Some(1)).ok && disk(&config(), None).ok);
    }
}
