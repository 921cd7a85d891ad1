//! Readings of a board to findings.

use std::path::PathBuf;

use super::finding::Finding;
use crate::board::{Board, HOT, Memory, Nvidia, System};
use crate::engine::Isa;

/// Degrees Celsius at which cooling is worth a thought.
const WARM: f64 = 70.0;
/// Free memory in which every command runs with small models.
const LITTLE_MEMORY: u64 = 512 << 20;
/// Free memory in which not even serving is safe.
const NO_MEMORY: u64 = 64 << 20;
/// Free space for some models and the checkpoint of a run, which holds a network several times.
const LITTLE_SPACE: u64 = 1 << 30;
/// Free space for one small model.
const NO_SPACE: u64 = 64 << 20;

/// Everything that is judged.
#[derive(Debug, Clone)]
pub struct Readings {
    pub board: Board,
    pub system: System,
    pub memory: Option<Memory>,
    pub nvidia: Nvidia,
    pub features: Vec<&'static str>,
    pub isa: Isa,
    pub folders: Vec<Folder>,
    pub clock: Clock,
}

/// A folder that runs write to.
#[derive(Debug, Clone)]
pub struct Folder {
    pub path: PathBuf,
    /// It is there already.
    pub exists: bool,
    /// Why nothing can be written there.
    pub error: Option<String>,
    /// What is left for files.
    pub free_bytes: Option<u64>,
}

/// The clock that certificates and logs go by.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// It is earlier than the program file.
    pub behind: bool,
    pub synchronized: Option<bool>,
}

impl Readings {
    /// Every finding, in the order of reading.
    pub fn findings(&self) -> Vec<Finding> {
        let mut found = vec![
            self.board(),
            self.processors(),
            self.instructions(),
            self.governor(),
            self.temperature(),
            self.throttling(),
            self.load(),
            self.memory(),
            self.swap(),
            self.cuda(),
            self.clock(),
        ];
        found.extend(self.folders.iter().map(Folder::finding));
        found
    }

    fn board(&self) -> Finding {
        let System { name, kernel, machine } = &self.system;
        let kernel = kernel.as_ref().map(|kernel| format!("Linux {kernel}"));
        let parts = [self.board.name.as_ref(), name.as_ref(), kernel.as_ref(), machine.as_ref()];
        let found = Finding::good("board", parts.into_iter().flatten().cloned().collect::<Vec<_>>().join(", "));
        match machine.as_deref() {
            Some("aarch64") if cfg!(target_arch = "arm") => {
                found.advise("this is the 32-bit program; under a 64-bit system the 64-bit one is faster")
            }
            _ => found,
        }
    }

    fn processors(&self) -> Finding {
        let n = self.board.processors;
        Finding::good("processors", format!("{n} that this process may use"))
    }

    fn instructions(&self) -> Finding {
        let features = if self.features.is_empty() { "none" } else { &self.features.join(" ") };
        let found = Finding::good("features", format!("{features}; the engine uses {}", self.isa));
        match self.isa {
            Isa::Portable => {
                found.advise("no instruction set with kernels of its own: inference takes several times longer")
            }
            Isa::Neon | Isa::Avx2 | Isa::Avx512 => {
                found.advise("no dot products of bytes: --precision int8 saves memory, but little time")
            }
            Isa::Avx2Vnni | Isa::Avx512Vnni | Isa::NeonDot => found,
        }
    }

    fn governor(&self) -> Finding {
        let Board { governor, mhz, max_mhz, .. } = &self.board;
        let Some(governor) = governor else {
            return Finding::good("governor", "not told; a virtual machine or a container has none");
        };
        let clock = match (mhz, max_mhz) {
            (Some(now), Some(most)) => format!(", {now:.0} of {most:.0} MHz"),
            _ => String::new(),
        };
        let found = Finding::good("governor", format!("{governor}{clock}"));
        match governor.as_str() {
            "performance" => found,
            "powersave" if max_mhz.is_some() && self.features.contains(&"neon") => found.problem(
                "the clock stays at its lowest: echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
            ),
            _ => found.advise(
                "the clock follows the load, so first answers are slow and figures vary; for steady ones: \
                 echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
            ),
        }
    }

    fn temperature(&self) -> Finding {
        let Some(celsius) = self.board.celsius else { return Finding::good("temperature", "not told") };
        let found = Finding::good("temperature", format!("{celsius:.0} °C"));
        match celsius {
            c if c >= HOT => found.advise("boards slow down at this heat: a heat sink or a fan; or fewer --threads"),
            c if c >= WARM => found.advise("warm: under load it may slow down; a heat sink or a fan"),
            _ => found,
        }
    }

    fn throttling(&self) -> Finding {
        if self.board.throttled.is_none() {
            return Finding::good("throttling", "not told");
        }
        let events = self.board.throttling();
        if events.is_empty() {
            return Finding::good("throttling", "none since the start");
        }
        let name = |(event, now): &(&str, bool)| format!("{event} {}", if *now { "now" } else { "since the start" });
        let found = Finding::good("throttling", events.iter().map(name).collect::<Vec<_>>().join(", "));
        match events.iter().any(|(event, _)| *event == "low voltage") {
            true => found.advise("the supply or its cable is too weak; use the one made for this board"),
            false => found.advise("it was too hot: a heat sink or a fan"),
        }
    }

    fn load(&self) -> Finding {
        let Some(load) = self.board.load else { return Finding::good("load", "not told") };
        let found = Finding::good("load", format!("{load:.2} on {} processors", self.board.processors));
        match load > 0.5 * self.board.processors as f64 {
            true => found.advise("other work is running: measurements will not be worth much"),
            false => found,
        }
    }

    fn memory(&self) -> Finding {
        let Some(memory) = self.memory else { return Finding::good("memory", "not told") };
        let found = Finding::good(
            "memory",
            format!("{} available of {}", size(memory.available_bytes), size(memory.total_bytes)),
        );
        match memory.available_bytes {
            few if few < NO_MEMORY => found.problem("end other programs: not even serving is safe"),
            few if few < LITTLE_MEMORY => {
                found.advise("serving has enough; to adapt, end other programs or use a smaller --batch-size")
            }
            _ => found,
        }
    }

    fn swap(&self) -> Finding {
        let Some(memory) = self.memory else { return Finding::good("swap", "not told") };
        match memory.swap_bytes {
            0 => Finding::good("swap", "none")
                .advise("a run that needs more memory than there is will be killed; zram costs no wear of a card"),
            all => {
                let found = Finding::good("swap", format!("{} free of {}", size(memory.swap_free_bytes), size(all)));
                match memory.swap_free_bytes < all / 2 {
                    true => found.advise("much is swapped out: memory is short, and everything slow"),
                    false => found,
                }
            }
        }
    }

    fn cuda(&self) -> Finding {
        let Nvidia { gpu, driver, jetson_linux } = &self.nvidia;
        let name = match (jetson_linux, driver) {
            (Some(release), _) => format!("a Jetson with Jetson Linux {release}"),
            (None, Some(driver)) => format!("an NVIDIA GPU, driver {driver}"),
            (None, None) => "an NVIDIA GPU without its driver".to_string(),
        };
        match (cfg!(feature = "cuda"), gpu, jetson_linux) {
            (false, false, _) => Finding::good("cuda", "no NVIDIA GPU"),
            (true, false, _) => Finding::good("cuda", "no NVIDIA GPU")
                .advise("this build is for one; the build without CUDA is smaller"),
            // That of JetPack 5 is 11.4; candle's kernels need 11.8.
            (false, true, Some(..36)) => Finding::good("cuda", format!("{name}, whose CUDA is too old to be used")),
            (true, true, Some(..35)) => Finding::good("cuda", name)
                .problem("its CUDA is too old: JetPack 6 or later, or the build without CUDA and --device cpu"),
            (false, true, _) => Finding::good("cuda", name)
                .advise("the build with CUDA adapts on it: cargo build --release --features cuda"),
            (true, true, None) if driver.is_none() => Finding::good("cuda", name).problem("install NVIDIA's driver"),
            (true, true, _) => Finding::good("cuda", name),
        }
    }

    fn clock(&self) -> Finding {
        let Clock { behind, synchronized } = self.clock;
        match (behind, synchronized) {
            (true, _) => Finding::good("clock", "earlier than this program was installed").problem(
                "certificates will be refused and logs misleading: set it, or switch on time synchronisation \
                 (sudo timedatectl set-ntp true)",
            ),
            (false, Some(false)) => Finding::good("clock", "nobody keeps it in step")
                .advise("logs may mislead after a power cut: sudo timedatectl set-ntp true"),
            (false, Some(true)) => Finding::good("clock", "kept in step with others"),
            (false, None) => Finding::good("clock", "plausible"),
        }
    }
}

impl Folder {
    fn finding(&self) -> Finding {
        let path = self.path.display();
        let free = self.free_bytes.map_or_else(String::new, |free| format!(", {} free", size(free)));
        if let Some(error) = &self.error {
            return Finding::good("folder", format!("{path}: {error}"))
                .problem("nothing can be written there: check who owns it and how it is mounted");
        }
        let state = if self.exists { "writable" } else { "not there yet, can be made" };
        let found = Finding::good("folder", format!("{path}: {state}{free}"));
        match self.free_bytes {
            Some(free) if free < NO_SPACE => found.problem("make room: a model does not fit"),
            Some(free) if free < LITTLE_SPACE => found.advise("make room: a checkpoint holds a network several times"),
            _ => found,
        }
    }
}

/// Bytes in MB or GB.
fn size(bytes: u64) -> String {
    match bytes as f64 {
        b if b >= 1e9 => format!("{:.1} GB", b / 1e9),
        b => format!("{:.0} MB", b / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    /// A Raspberry Pi 5 to which nothing is to be said.
    fn healthy() -> Readings {
        let board = Board {
            name: Some("Raspberry Pi 5 Model B Rev 1.0".to_string()),
            processors: 4,
            celsius: Some(48.3),
            mhz: Some(2400.0),
            max_mhz: Some(2400.0),
            governor: Some("performance".to_string()),
            throttled: Some(0),
            load: Some(0.2),
        };
        let system = System {
            name: Some("Debian GNU/Linux 12 (bookworm)".to_string()),
            kernel: Some("6.6.20".to_string()),
            machine: Some("aarch64".to_string()),
        };
        let gigabytes = |n: u64| n * 1_000_000_000;
        let memory = Memory {
            total_bytes: gigabytes(8),
            available_bytes: gigabytes(7),
            swap_bytes: gigabytes(1),
            swap_free_bytes: gigabytes(1),
        };
        let folder =
            Folder { path: "/var/lib/secateur".into(), exists: true, error: None, free_bytes: Some(gigabytes(20)) };
        Readings {
            board,
            system,
            memory: Some(memory),
            nvidia: Nvidia::default(),
            features: vec!["neon", "dotprod"],
            isa: Isa::NeonDot,
            folders: vec![folder],
            clock: Clock { behind: false, synchronized: Some(true) },
        }
    }

    /// The findings that are not good, after a change.
    fn after(change: impl Fn(&mut Readings)) -> Vec<Finding> {
        let mut readings = healthy();
        change(&mut readings);
        readings.findings().into_iter().filter(|f| f.level != Level::Good).collect()
    }

    /// Fails unless exactly one thing is not good after the change, with this level and all of `parts`.
    #[cfg(not(any(feature = "cuda", target_arch = "arm")))]
    #[track_caller]
    fn expect(check: &str, level: Level, parts: &[&str], change: impl Fn(&mut Readings)) {
        let found = after(change);
        let [one] = &found[..] else { panic!("expected one finding on {check}, got {found:?}") };
        assert_eq!((one.check, one.level), (check, level), "{one:?}");
        let said = format!("{} → {}", one.found, one.advice.as_deref().unwrap());
        parts.iter().for_each(|part| assert!(said.contains(part), "expected {part:?} in {said}"));
    }

    #[test]
    fn a_healthy_board_gets_no_advice() {
        let expected: &[Finding] = &[];
        if cfg!(not(any(feature = "cuda", target_arch = "arm"))) {
            assert_eq!(after(|_| {}), expected);
        }
        let all = healthy().findings();
        assert!(all[0].found.contains("Raspberry Pi 5") && all[0].found.contains("bookworm"), "{all:?}");
        assert!(all.iter().any(|f| f.found == "neon dotprod; the engine uses neon-dot"));
        assert!(all.iter().any(|f| f.found == "/var/lib/secateur: writable, 20.0 GB free"));
    }

    #[cfg(not(any(feature = "cuda", target_arch = "arm")))]
    #[test]
    fn each_ailment_is_told_with_its_cure() {
        use Level::{Advice, Problem};
        expect("features", Advice, &["neon;", "int8"], |r| (r.features, r.isa) = (vec!["neon"], Isa::Neon));
        expect("governor", Advice, &["ondemand, 600 of 2400 MHz", "tee"], |r| {
            (r.board.governor, r.board.mhz) = (Some("ondemand".to_string()), Some(600.0));
        });
        expect("governor", Problem, &["lowest"], |r| r.board.governor = Some("powersave".to_string()));
        expect("temperature", Advice, &["72 °C", "fan"], |r| r.board.celsius = Some(72.0));
        expect("temperature", Advice, &["84 °C", "slow down"], |r| r.board.celsius = Some(84.0));
        expect("throttling", Advice, &["low voltage since the start", "supply"], |r| r.board.throttled = Some(0x10000));
        expect("throttling", Advice, &["throttling now", "too hot"], |r| r.board.throttled = Some(4));
        expect("load", Advice, &["3.10 on 4"], |r| r.board.load = Some(3.1));
        expect("memory", Advice, &["300 MB available of 8.0 GB"], |r| {
            r.memory.as_mut().unwrap().available_bytes = 300_000_000;
        });
        expect("memory", Problem, &["20 MB"], |r| r.memory.as_mut().unwrap().available_bytes = 20_000_000);
        expect("swap", Advice, &["none", "killed"], |r| r.memory.as_mut().unwrap().swap_bytes = 0);
        expect("swap", Advice, &["100 MB free of 1.0 GB"], |r| {
            r.memory.as_mut().unwrap().swap_free_bytes = 100_000_000;
        });
        expect("clock", Problem, &["set-ntp"], |r| r.clock.behind = true);
        expect("clock", Advice, &["set-ntp"], |r| r.clock.synchronized = Some(false));
        expect("folder", Problem, &["/var/lib/secateur: read-only"], |r| {
            r.folders[0].error = Some("read-only file system".to_string());
        });
        expect("folder", Problem, &["1 MB free"], |r| r.folders[0].free_bytes = Some(1_000_000));
        expect("folder", Advice, &["400 MB free"], |r| r.folders[0].free_bytes = Some(400_000_000));
    }

    #[cfg(not(any(feature = "cuda", target_arch = "arm")))]
    #[test]
    fn gpus_are_told_apart() {
        let jetson = |release| Nvidia { gpu: true, driver: None, jetson_linux: Some(release) };
        expect("cuda", Level::Advice, &["Jetson Linux 36", "--features cuda"], |r| r.nvidia = jetson(36));
        for release in [32, 35] {
            assert_eq!(after(|r| r.nvidia = jetson(release)), [], "nothing can be done about JetPack 4 and 5");
        }
        let card = Nvidia { gpu: true, driver: Some("550.54".to_string()), jetson_linux: None };
        expect("cuda", Level::Advice, &["driver 550.54"], |r| r.nvidia = card.clone());
    }

    #[test]
    fn a_board_that_tells_nothing_is_no_problem() {
        let silent = Readings {
            board: Board::default(),
            system: System::default(),
            memory: None,
            clock: Clock { behind: false, synchronized: None },
            folders: Vec::new(),
            ..healthy()
        };
        assert!(silent.findings().iter().all(|f| f.level != Level::Problem));
    }
}
