//! How versions go: renamed first, so that a crash never leaves half of one.

use std::fs::{self, File};
use std::path::Path;

use super::lock::Lock;
use super::pointer::Pointer;
use super::publish::INCOMING;
use super::{MODEL, ModelName, Store, Version};
use crate::weights::sync_folder;
use crate::{Error, Result};

/// What the folders of versions that are being removed begin with.
const REMOVED: &str = ".removed-";

impl Store {
    /// Removes `version`, whole or damaged, but not the active one. Its number is never given again.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is none or it is active; [`Error::Damaged`] if the pointer cannot be read, which
    /// leaves open what is active; [`Error::Io`]; [`Error::Overloaded`] if another process keeps the store locked.
    pub fn remove(&self, name: &ModelName, version: Version) -> Result<()> {
        let _lock = self.lock()?;
        if !self.numbers(name)?.contains(&version) {
            return Err(self.unknown(name, version));
        }
        if self.active(name)? == Some(version) {
            let reason = format!("{name}: version {version} is active; activate another one before it is removed");
            return Err(Error::Usage(reason));
        }
        self.discard(name, version)
    }

    /// Removes the oldest versions, so that the newest `keep` whole ones are left, and beside them the active one and
    /// the one [`Store::rollback`] would go to. Returns what was removed.
    ///
    /// # Errors
    /// As [`Store::remove`].
    pub fn retain(&self, name: &ModelName, keep: usize) -> Result<Vec<Version>> {
        let _lock = self.lock()?;
        let pointer = Pointer::read(&self.folder(name))?;
        let active = pointer.as_ref().map(|p| p.version);
        let target = pointer.and_then(|p| self.first_good(name, p.earlier));
        let whole = self.versions(name)?;
        let surplus = whole.len().saturating_sub(keep);
        if surplus == 0 {
            return Ok(Vec::new());
        }
        let old = |v: &Version| whole.get(surplus).is_none_or(|first_kept| v < first_kept);
        let spared = |v: &Version| Some(*v) == active || Some(*v) == target;
        let doomed: Vec<Version> = self.numbers(name)?.into_iter().filter(|v| old(v) && !spared(v)).collect();
        doomed.iter().try_for_each(|version| self.discard(name, *version))?;
        Ok(doomed)
    }

    /// Removes a version; the caller holds the lock.
    fn discard(&self, name: &ModelName, version: Version) -> Result<()> {
        let folder = self.folder(name);
        let from = folder.join(version.to_string());
        let to = folder.join(format!("{REMOVED}{version}"));
        // Of a removal that a crash interrupted.
        let _ = fs::remove_dir_all(&to);
        fs::rename(&from, &to).map_err(|e| Error::io("remove", &from, e))?;
        sync_folder(&folder)?;
        fs::remove_dir_all(&to).map_err(|e| Error::io("remove", &to, e))?;
        log::info!("version removed model={name} version={version}");
        Ok(())
    }

    /// Removes what interrupted publishes and removals left behind. What cannot be removed now does no harm.
    pub(super) fn sweep(&self) {
        let Ok(_lock) = Lock::take(&self.lock_path(), std::time::Duration::ZERO) else {
            return log::debug!("store is in use or cannot be changed, leftovers stay path={}", self.root.display());
        };
        let Ok(names) = self.names() else { return };
        for name in names {
            let Ok(entries) = fs::read_dir(self.folder(&name)) else { continue };
            for entry in entries.flatten() {
                let file_name = entry.file_name();
                let file_name = file_name.as_encoded_bytes();
                let dead = file_name.starts_with(REMOVED.as_bytes())
                    || file_name.starts_with(INCOMING.as_bytes()) && !in_use(&entry.path());
                if !dead {
                    continue;
                }
                let path = entry.path();
                match fs::remove_dir_all(&path) {
                    Ok(()) => log::info!("leftover of an interrupted change removed path={}", path.display()),
                    Err(e) => log::warn!("leftover cannot be removed path={}: {e}", path.display()),
                }
            }
        }
    }
}

/// Whether somebody is writing the unfinished version in `folder`.
fn in_use(folder: &Path) -> bool {
    // Where the file system has no locks, everything could be.
    File::open(folder.join(MODEL)).is_ok_and(|model| model.try_lock().is_err())
}
