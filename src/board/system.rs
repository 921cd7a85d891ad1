//! The system a program runs on, and the processor's instructions.

use std::fs;
use std::path::Path;

use serde::Serialize;

/// Names of the system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct System {
    /// Name and version of the distribution.
    pub name: Option<String>,
    /// Release of the kernel.
    pub kernel: Option<String>,
    /// What the kernel calls the processor's architecture: `aarch64`, `armv7l`, `x86_64`.
    pub machine: Option<String>,
}

impl System {
    /// Reads the system whose root folder is `root`; the machine is this one's.
    pub fn read_under(root: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(root.join(path)).ok();
        let name = text("etc/os-release").and_then(|release| {
            let value = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
            Some(value.trim().trim_matches('"').to_string())
        });
        let kernel = text("proc/sys/kernel/osrelease").map(|release| release.trim().to_string());
        Self { name, kernel, machine: machine() }
    }
}

fn machine() -> Option<String> {
    // SAFETY: `utsname` is plain arrays of characters, for which zeros are valid; the call fills them and ends each with
    // a zero.
    unsafe {
        let mut names: libc::utsname = std::mem::zeroed();
        if libc::uname(&raw mut names) != 0 {
            return None;
        }
        Some(std::ffi::CStr::from_ptr(names.machine.as_ptr()).to_string_lossy().into_owned())
    }
}

/// Instructions beyond the target's baseline that matter to the engine and that this processor has.
pub fn processor_features() -> Vec<&'static str> {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    macro_rules! found {
        ($detected:ident: $($name:tt)*) => { [$(($name, std::arch::$detected!($name))),*] };
    }
    #[cfg(target_arch = "x86_64")]
    let features =
        found!(is_x86_feature_detected: "sse4.2" "avx" "avx2" "fma" "f16c" "avx512f" "avx512vl" "avx512vnni" "avxvnni");
    #[cfg(target_arch = "aarch64")]
    let features = found!(is_aarch64_feature_detected: "neon" "dotprod" "fp16" "i8mm" "bf16" "sve");
    // The macro for 32-bit ARM is not stable.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let features = {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let has = |name: &str| {
            let lines = cpuinfo.lines().filter(|line| line.starts_with("Features"));
            lines.flat_map(str::split_whitespace).any(|word| word == name)
        };
        ["neon", "vfpv4", "asimddp"].map(|name| (name, has(name)))
    };
    features.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

/// Whether the kernel says that the clock is kept in step with others; `None` if it does not tell.
pub fn clock_is_synchronized() -> Option<bool> {
    // SAFETY: `timex` is plain numbers, for which zeros are valid; with `modes` zero the call only reads.
    let (state, status) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut timex), timex.status)
    };
    (state >= 0).then_some(status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    use super::super::testing::root;
    use super::*;

    #[test]
    fn the_system_is_named() {
        let files = [
            ("etc/os-release", "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            ("proc/sys/kernel/osrelease", "6.6.20+rpt-rpi-v8\n"),
        ];
        let system = System::read_under(root(&files).path());
        assert_eq!(system.name.as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
        assert_eq!(system.kernel.as_deref(), Some("6.6.20+rpt-rpi-v8"));
        let machine = system.machine.unwrap();
        assert!(machine.contains(std::env::consts::ARCH) || cfg!(target_arch = "arm"), "{machine}");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn features_are_those_the_kernel_lists() {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
        let listed = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap();
        for name in ["avx2", "fma", "avx512f"] {
            let expected = listed.split_whitespace().any(|word| word == name);
            assert_eq!(processor_features().contains(&name), expected, "{name}");
        }
    }

    #[cfg(target_arch = "aarch64")]
    #[test]
    fn the_baseline_is_among_the_features() {
        assert!(processor_features().contains(&"neon"));
    }
}
