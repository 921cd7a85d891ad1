//! What the board says of itself: its name, heat, clock, load, memory, system.

mod memory;
mod nvidia;
mod processor;
mod supply;
mod system;
#[cfg(test)]
mod testing;

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use memory::Memory;
pub use nvidia::Nvidia;
pub use processor::processor_name;
pub use supply::{available_bytes, is_on_battery};
pub use system::{System, clock_is_synchronized, processor_features};

/// A reading. What a board does not tell is `None`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Board {
    /// The board's or processor's name.
    pub name: Option<String>,
    /// Processors.
    pub processors: usize,
    /// Hottest zone, in °C.
    pub celsius: Option<f64>,
    /// Mean current frequency of the processors, in MHz.
    pub mhz: Option<f64>,
    /// Mean highest frequency they may take, in MHz.
    pub max_mhz: Option<f64>,
    /// Frequency governor of the first processor.
    pub governor: Option<String>,
    /// Events of throttling since start, or Raspberry Pi's throttling flags.
    pub throttled: Option<u64>,
    /// Mean number of processes that wanted to run in the last minute.
    pub load: Option<f64>,
}

/// Degrees Celsius from which boards slow down.
pub const HOT: f64 = 80.0;

impl Board {
    /// Reads this board.
    pub fn read() -> Self {
        Self::read_under(Path::new("/"))
    }

    /// Reads a board whose `/sys` and `/proc` lie under `root`.
    pub fn read_under(root: &Path) -> Self {
        let text =
            |path: &str| fs::read_to_string(root.join(path)).ok().map(|t| t.trim_matches(['\0', '\n']).to_string());
        let number = |path: &str| text(path)?.parse::<f64>().ok();
        let cpuinfo = text("proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_string())
        };
        let cpus = folders(&root.join("sys/devices/system/cpu"), "cpu");
        let mean = |file: &str| {
            let values: Vec<f64> =
                cpus.iter().filter_map(|cpu| number(&format!("sys/devices/system/cpu/{cpu}/cpufreq/{file}"))).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64 / 1e3)
        };
        let events: Vec<f64> = (cpus.iter())
            .filter_map(|cpu| number(&format!("sys/devices/system/cpu/{cpu}/thermal_throttle/core_throttle_count")))
            .collect();
        let flags = text("sys/devices/platform/soc/soc:firmware/get_throttled")
            .and_then(|t| u64::from_str_radix(t.trim_start_matches("0x"), 16).ok());
        let zones = folders(&root.join("sys/class/thermal"), "thermal_zone");
        Self {
            name: processor_name(root),
            processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            celsius: (zones.iter())
                .filter_map(|zone| number(&format!("sys/class/thermal/{zone}/temp")))
                .map(|milli| milli / 1e3)
                .filter(|c| (-40.0..200.0).contains(c))
                .max_by(f64::total_cmp),
            mhz: mean("scaling_cur_freq").or_else(|| field("cpu MHz")?.parse().ok()),
            max_mhz: mean("scaling_max_freq"),
            governor: text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            throttled: flags.or_else(|| (!events.is_empty()).then(|| events.iter().sum::<f64>() as u64)),
            load: text("proc/loadavg").and_then(|t| t.split(' ').next()?.parse().ok()),
        }
    }
}

impl Board {
    /// Whether `throttled` holds Raspberry Pi's flags: bits 0 to 3 say what is now, 16 to 19 what was since start.
    pub fn is_raspberry(&self) -> bool {
        self.name.as_deref().is_some_and(|name| name.starts_with("Raspberry Pi"))
    }

    /// What throttled the board, or what it calls so: each event, and whether it is going on.
    pub fn throttling(&self) -> Vec<(&'static str, bool)> {
        // Of a Raspberry Pi: bits from 0 for what is so now, from 16 for what was so since the start.
        const FLAGS: [&str; 4] = ["low voltage", "a capped clock", "throttling", "the soft limit of temperature"];
        match self.throttled {
            Some(flags) if self.is_raspberry() => (0..4)
                .filter(|bit| (flags >> bit | flags >> (16 + bit)) & 1 == 1)
                .map(|bit| (FLAGS[bit], flags >> bit & 1 == 1))
                .collect(),
            Some(1..) => vec![("heat", false)],
            _ => Vec::new(),
        }
    }
}

/// Resident memory of this process in bytes; `None` where the system does not tell.
pub fn resident_bytes() -> Option<u64> {
    resident_bytes_in("self")
}

/// Has the system kill this process when the thread of `parent` that started it ends; for
/// [`std::os::unix::process::CommandExt::pre_exec`].
///
/// # Errors
/// Those of the system; [`std::io::ErrorKind::Interrupted`] if the parent has ended already.
pub fn end_with_parent(parent: u32) -> std::io::Result<()> {
    // SAFETY: numbers only.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // It may have died before the bond was made. SAFETY: nothing is passed.
    match u32::try_from(unsafe { libc::getppid() }) == Ok(parent) {
        true => Ok(()),
        false => Err(std::io::ErrorKind::Interrupted.into()),
    }
}

/// Sends `signal` to a child that was not waited for yet.
pub fn signal_child(child: &std::process::Child, signal: i32) {
    let Ok(id) = i32::try_from(child.id()) else { return };
    // SAFETY: no memory is involved, and the number is the child's own until it is waited for.
    unsafe { libc::kill(id, signal) };
}

/// Resident memory of another process in bytes; `None` if there is none of this number.
pub fn resident_bytes_of(process: u32) -> Option<u64> {
    resident_bytes_in(&process.to_string())
}

fn resident_bytes_in(process: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()? * 1024)
}

/// Sub-folders named `prefix` and a number.
fn folders(path: &Path, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name.strip_prefix(prefix).is_some_and(|rest| rest.parse::<u32>().is_ok()));
    names.sort();
    names
}

/// Why figures taken between two readings are not to be trusted, in plain words.
pub fn warnings(before: &Board, after: &Board) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(governor) = &after.governor
        && governor != "performance"
    {
        found.push(format!("the frequency governor is {governor}: the clock follows the load; performance holds it"));
    }
    if let (Some(then), Some(now)) = (before.throttled, after.throttled)
        && (now > then || now & 0xF != 0 && now < 1 << 20 && before.is_raspberry())
    {
        found.push("the board throttled its clock: cool it or feed it better".to_string());
    }
    if let Some(celsius) = after.celsius
        && celsius >= HOT
    {
        found.push(format!("{celsius:.0} °C: hot boards slow down"));
    }
    if let (Some(then), Some(now)) = (before.mhz, after.mhz)
        && now < 0.9 * then
    {
        found.push(format!("the clock fell from {then:.0} to {now:.0} MHz"));
    }
    if let Some(load) = before.load
        && load > 0.5 * before.processors as f64
    {
        found.push(format!("other work was running: load {load:.1} on {} processors", before.processors));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(files: &[(&str, &str)]) -> Board {
        Board::read_under(testing::root(files).path())
    }

    const PI: [(&str, &str); 8] = [
        ("proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0"),
        ("sys/class/thermal/thermal_zone0/temp", "61322\n"),
        ("sys/class/thermal/thermal_zone1/temp", "-274000\n"),
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1500000\n"),
        ("sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq", "600000\n"),
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "ondemand\n"),
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "0x50005\n"),
        ("proc/loadavg", "0.10 0.20 0.30 1/100 4242\n"),
    ];

    #[test]
    fn a_raspberry_pi_is_read() {
        let board = board(&PI);
        assert_eq!(board.name.as_deref(), Some("Raspberry Pi 4 Model B Rev 1.4"));
        assert_eq!((board.celsius, board.mhz, board.load), (Some(61.322), Some(1050.0), Some(0.1)));
        assert_eq!((board.governor.as_deref(), board.throttled), (Some("ondemand"), Some(0x50005)));
        let said = warnings(&board, &board).join("; ");
        assert!(said.contains("ondemand") && said.contains("throttled"), "{said}");
    }

    #[test]
    fn throttling_is_told_by_its_cause() {
        assert_eq!(board(&PI).throttling(), [("low voltage", true), ("throttling", true)]);
        let before = Board { throttled: Some(0x50000), ..board(&PI) };
        assert_eq!(before.throttling(), [("low voltage", false), ("throttling", false)]);
        assert_eq!(Board { throttled: Some(0), ..before.clone() }.throttling(), []);
        assert_eq!(Board { name: None, throttled: Some(7), ..before }.throttling(), [("heat", false)]);
    }

    #[test]
    fn a_board_that_tells_nothing_warns_of_nothing() {
        let board = board(&[]);
        assert_eq!((&board.name, board.celsius, board.mhz, board.throttled), (&None, None, None, None));
        assert_eq!(warnings(&board, &board), Vec::<String>::new());
    }

    #[test]
    fn memory_is_that_of_this_process() {
        let held = vec![1u8; 64 << 20];
        let with = resident_bytes().unwrap();
        assert!(with >= 64 << 20 && std::hint::black_box(&held).len() == 64 << 20, "{with}");
    }

    #[test]
    fn heat_slowing_and_load_are_told() {
        let before =
            Board { mhz: Some(2000.0), load: Some(3.0), processors: 2, throttled: Some(4), ..Board::default() };
        let after = Board { mhz: Some(1200.0), celsius: Some(84.0), throttled: Some(9), ..before.clone() };
        let said = warnings(&before, &after).join("; ");
        for part in ["84 °C", "2000 to 1200 MHz", "load 3.0", "throttled"] {
            assert!(said.contains(part), "{said}");
        }
    }
}
