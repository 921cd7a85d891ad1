//! Where the daemon keeps what.

use std::ffi::OsString;
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

/// What `folder` holds, sorted by name, except what is hidden. Of a link it is the link itself, which may lead anywhere.
///
/// # Errors
/// [`Error::Io`] if it cannot be listed.
pub(super) fn entries(folder: &Path) -> Result<Vec<(OsString, fs::Metadata)>> {
    let fail = |e| Error::io("list", folder, e);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        // Gone since it was listed.
        let Ok(metadata) = entry.metadata() else { continue };
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            found.push((entry.file_name(), metadata));
        }
    }
    found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// The plain files among the [`entries`] whose names are UTF-8, as those are that the daemon gives.
///
/// # Errors
/// As [`entries`].
pub(super) fn plain_files(folder: &Path) -> Result<Vec<(String, fs::Metadata)>> {
    let named = |(name, metadata): (OsString, fs::Metadata)| Some((name.into_string().ok()?, metadata));
    Ok(entries(folder)?.into_iter().filter(|(_, file)| file.is_file()).filter_map(named).collect())
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
