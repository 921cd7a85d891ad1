//! `secateur doctor`: whether this board is fit to work, and what would make it fitter.

mod checks;
mod daemon;
mod finding;

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use self::checks::{Clock, Folder, Readings};
use self::finding::{Level, table};
use super::config::load;
use super::output::print;
use crate::board::{Board, Memory, Nvidia, System, clock_is_synchronized, processor_features};
use crate::config::Config;
use crate::engine::Isa;
use crate::{Error, Result};

/// Arguments of `doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 everything works, with advice or without; 1 there is a problem; 2 error.")]
pub(super) struct DoctorArgs {
    /// Folders that runs shall write to [default: the current one]
    folders: Vec<PathBuf>,
    /// Also check this configuration of `serve` or `daemon`, and the folders, files and sensors that it needs
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

impl DoctorArgs {
    pub fn run(self) -> Result<()> {
        let config = self.config.as_deref().map(|file| load(Some(file), [])).transpose()?;
        let readings = self.read(config.as_ref());
        let mut findings = readings.findings();
        findings.extend(config.iter().flat_map(daemon::findings));
        let count = |level| findings.iter().filter(|f| f.level == level).count();
        let (problems, advice) = (count(Level::Problem), count(Level::Advice));
        if self.json {
            let Readings { board, system, memory, nvidia, features, isa, .. } = &readings;
            print(
                &json!({
                    "version": env!("CARGO_PKG_VERSION"),
                    "problems": problems,
                    "findings": findings,
                    "board": board,
                    "system": system,
                    "memory": memory,
                    "nvidia": nvidia,
                    "features": features,
                    "isa": isa.to_string(),
                })
                .to_string(),
            )?;
        } else {
            print(&format!("{}\nproblems: {problems}, advice: {advice}", table(&findings)))?;
        }
        if problems == 0 {
            return Ok(());
        }
        let names = findings.iter().filter(|f| f.level == Level::Problem).map(|f| f.check);
        Err(Error::Rejected(format!("this board has problems: {}", names.collect::<Vec<_>>().join(", "))))
    }

    fn read(&self, config: Option<&Config>) -> Readings {
        let root = Path::new("/");
        Readings {
            board: Board::read(),
            system: System::read_under(root),
            memory: Memory::read_under(root),
            nvidia: Nvidia::read_under(root),
            features: processor_features(),
            isa: Isa::detect(),
            folders: self.folders(config).iter().map(|path| look_at(path)).collect(),
            clock: Clock { behind: clock_is_behind(), synchronized: clock_is_synchronized() },
        }
    }

    /// Every folder that shall be writable.
    fn folders(&self, config: Option<&Config>) -> Vec<PathBuf> {
        let mut folders = match self.folders.is_empty() {
            true => vec![PathBuf::from(".")],
            false => self.folders.clone(),
        };
        folders.extend(config.into_iter().flat_map(daemon::folders));
        folders.push(std::env::temp_dir());
        folders
    }
}

/// Tries to write to a folder, or, if it is not there yet, to the one in which it would be made.
fn look_at(path: &Path) -> Folder {
    let existing = path.ancestors().find(|p| p.exists()).filter(|p| !p.as_os_str().is_empty());
    let existing = existing.unwrap_or(Path::new("."));
    let error = if existing.is_dir() {
        let file = existing.join(format!(".secateur-doctor-{}", std::process::id()));
        let tried = OpenOptions::new().write(true).create_new(true).open(&file).and_then(|_| fs::remove_file(&file));
        tried.err().map(|e| e.to_string())
    } else {
        Some(format!("{} is not a folder", existing.display()))
    };
    Folder { path: path.to_path_buf(), exists: path.exists(), error, free_bytes: free_bytes(existing) }
}

/// What is left on the file system of `path` for this user.
fn free_bytes(path: &Path) -> Option<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: `statvfs` is plain numbers, for which zeros are valid; the path ends with a zero.
    let space = unsafe {
        let mut space: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &raw mut space) == 0).then_some(space)
    }?;
    // Narrower types on 32-bit targets.
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast, reason = "narrower types on other targets")]
    Some(space.f_bavail as u64 * space.f_frsize as u64)
}

/// Whether the clock says that this program's file is yet to be written.
fn clock_is_behind() -> bool {
    let written = std::env::current_exe().and_then(fs::metadata).and_then(|m| m.modified());
    written.is_ok_and(|written| written > std::time::SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_tried() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        fs::write(&file, "").unwrap();
        let good = look_at(place.path());
        assert!(good.exists && good.error.is_none() && good.free_bytes > Some(0), "{good:?}");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "what was tried is gone");
        let later = look_at(&place.path().join("not/yet"));
        assert!(!later.exists && later.error.is_none(), "{later:?}");
        let error = look_at(&file.join("below")).error.unwrap();
        assert!(error.contains("file is not a folder"), "{error}");
        assert!(look_at(Path::new("/proc")).error.is_some());
    }
}
