//! NVIDIA's part of a board: desktop cards and Jetsons.

use std::fs;
use std::path::Path;

use serde::Serialize;

/// What there is of NVIDIA.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Nvidia {
    /// A card on the PCI bus, or a Jetson's own GPU.
    pub gpu: bool,
    /// Version of the kernel's driver, if it is loaded.
    pub driver: Option<String>,
    /// Major release of Jetson Linux: 32 is JetPack 4, 35 is JetPack 5, 36 is JetPack 6.
    pub jetson_linux: Option<u32>,
}

impl Nvidia {
    /// Looks at a board whose root folder is `root`.
    pub fn read_under(root: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(root.join(path)).ok();
        let jetson_linux = text("etc/nv_tegra_release").and_then(|release| {
            let digits = release.trim_start_matches(['#', ' ']).strip_prefix('R')?;
            digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        });
        let driver = text("proc/driver/nvidia/version").and_then(|version| {
            let is_version = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
            version.lines().next()?.split_whitespace().find(is_version).map(str::to_string)
        });
        let devices = fs::read_dir(root.join("sys/bus/pci/devices")).into_iter().flatten().flatten();
        let of = |folder: &Path, file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
        // Vendor NVIDIA, class "display".
        let mut cards = devices
            .filter(|d| of(&d.path(), "vendor").trim() == "0x10de" && of(&d.path(), "class").starts_with("0x03"));
        Self { gpu: jetson_linux.is_some() || driver.is_some() || cards.next().is_some(), driver, jetson_linux }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::root;
    use super::*;

    #[test]
    fn jetsons_and_cards_are_found() {
        let none = Nvidia::read_under(root(&[("sys/bus/pci/devices/0000:00:02.0/vendor", "0x8086\n")]).path());
        assert_eq!(none, Nvidia::default());
        let release = "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64\n";
        let jetson = Nvidia::read_under(root(&[("etc/nv_tegra_release", release)]).path());
        assert_eq!((jetson.gpu, jetson.jetson_linux), (true, Some(35)));
        let files = [
            ("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n"),
            ("sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n"),
        ];
        let card = Nvidia::read_under(root(&files).path());
        assert_eq!((card.gpu, &card.driver), (true, &None), "the driver is missing");
        let version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n";
        let driven = Nvidia::read_under(root(&[("proc/driver/nvidia/version", version)]).path());
        assert_eq!((driven.gpu, driven.driver.as_deref()), (true, Some("535.183.01")));
    }
}
