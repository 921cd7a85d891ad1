//! How versions go: renamed first, so that a crash never leaves half of one.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

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

    /// Removes the oldest versions, so that the newest `keep` whole ones are left, and beside them the active one, the
    /// one [`Store::rollback`] would go to, and [`Store::last_good`]. Returns what was removed.
    ///
    /// # Errors
    /// As [`Store::remove`].
    pub fn retain(&self, name: &ModelName, keep: usize) -> Result<Vec<Version>> {
        let _lock = self.lock()?;
        let pointer = Pointer::read(&self.folder(name))?;
        let whole = self.versions(name)?;
        let surplus = whole.len().saturating_sub(keep);
        if surplus == 0 {
            return Ok(Vec::new());
        }
        let active = pointer.as_ref().map(|p| p.version);
        let target = pointer.and_then(|p| self.first_good(name, p.earlier));
        let needed = [active, target, self.last_good(name)?];
        let old = |v: &Version| whole.get(surplus).is_none_or(|first_kept| v < first_kept);
        let spared = |v: &Version| needed.contains(&Some(*v));
        let doomed: Vec<Version> = self.numbers(name)?.into_iter().filter(|v| old(v) && !spared(v)).collect();
        doomed.iter().try_for_each(|version| self.discard(name, *version))?;
        Ok(doomed)
    }

    /// Removes a version; the caller holds the lock.
    fn discard(&self, name: &ModelName, version: Version) -> Result<()> {
        let from = self.folder(name).join(version.to_string());
        let to = self.root.join(format!("{REMOVED}{name}-{version}"));
        // Of a removal that a crash interrupted.
        let _ = fs::remove_dir_all(&to);
        fs::rename(&from, &to).map_err(|e| Error::io("remove", &from, e))?;
        sync_folder(self.folder(name))?;
        fs::remove_dir_all(&to).map_err(|e| Error::io("remove", &to, e))?;
        log::info!("version removed model={name} version={version}");
        Ok(())
    }

    /// Removes what interrupted publishes and removals left behind. What cannot be removed now does no harm.
    pub(super) fn sweep(&self) {
        let Ok(_lock) = Lock::take(&self.lock_path(), Duration::ZERO) else {
            return log::debug!("store is in use or cannot be changed, leftovers stay path={}", self.root.display());
        };
        let Ok(entries) = fs::read_dir(&self.root) else { return };
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| is_leftover(path)) {
            match fs::remove_dir_all(&path) {
                Ok(()) => log::info!("leftover of an interrupted change removed path={}", path.display()),
                Err(e) => log::warn!("leftover cannot be removed path={}: {e}", path.display()),
            }
        }
    }
}

/// Whether `path` is a version that nobody is writing any more, or one that was being removed. Asked under the store's
/// lock, which both beginnings take.
fn is_leftover(path: &Path) -> bool {
    let starts = |with| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(with));
    // Where the file system has no locks, everything could be in use.
    let in_use = || File::open(path.join(MODEL)).is_ok_and(|model| model.try_lock().is_err());
    starts(REMOVED) || starts(INCOMING) && !in_use()
}
