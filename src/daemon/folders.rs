//! Where the daemon keeps what.

use std::fs;
use std::path::{Path, PathBuf};

use super::config::DaemonConfig;
use crate::{Error, Result};

/// The folders below `daemon.folder`.
#[derive(Debug, Clone)]
pub struct Folders {
    /// The whole.
    pub root: PathBuf,
    /// Where images arrive.
    pub inbox: PathBuf,
    /// Images to learn from.
    pub reservoir: PathBuf,
    /// Broken files.
    pub quarantine: PathBuf,
    /// One folder for each adaptation.
    pub runs: PathBuf,
    /// What survives a restart.
    pub state: PathBuf,
}

impl Folders {
    /// The folders that `config` names.
    pub fn of(config: &DaemonConfig) -> Self {
        let root = config.daemon.folder.clone();
        let inbox =
            if config.intake.inbox.as_os_str().is_empty() { root.join("inbox") } else { config.intake.inbox.clone() };
        Self {
            inbox,
            reservoir: root.join("reservoir"),
            quarantine: root.join("quarantine"),
            runs: root.join("runs"),
            state: root.join("state.json"),
            root,
        }
    }

    /// Makes those that are missing.
    ///
    /// # Errors
    /// [`Error::Io`] naming the first that cannot be made.
    pub fn create(&self) -> Result<()> {
        let folders = [&self.inbox, &self.reservoir, &self.quarantine, &self.runs];
        folders
            .into_iter()
            .try_for_each(|folder| fs::create_dir_all(folder).map_err(|e| Error::io("create folder", folder, e)))
    }
}

/// The plain files of `folder` with their names, sorted by name; names that are no UTF-8 and hidden ones are left out.
///
/// # Errors
/// [`Error::Io`] if it cannot be listed.
pub(super) fn plain_files(folder: &Path) -> Result<Vec<(String, fs::Metadata)>> {
    let fail = |e| Error::io("list", folder, e);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // Gone since it was listed, or a link, which may lead anywhere.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_file() && !name.starts_with('.') {
            found.push((name, metadata));
        }
    }
    found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Moves a file, also to another file system; what is at `to` afterwards is whole, whatever happens.
///
/// # Errors
/// [`Error::Io`]; the file stays where it was.
pub(super) fn move_file(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == std::io::ErrorKind::CrossesDevices => {
            let bytes = fs::read(from).map_err(|e| Error::io("read", from, e))?;
            crate::weights::write_bytes_atomic(to, &bytes)?;
            fs::remove_file(from).map_err(|e| Error::io("remove", from, e))
        }
        moved => moved.map_err(|e| Error::io("move", from, e)),
    }
}
