//! Which version serves: switching, going back, and what to do when the active one is damaged.

use super::pointer::Pointer;
use super::{ModelName, Store, Version};
use crate::{Error, Result};

impl Store {
    /// The version that is meant to serve; `None` if none was ever activated. It may be damaged or gone: see
    /// [`Store::last_good`].
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::Io`] if the pointer cannot be read.
    pub fn active(&self, name: &ModelName) -> Result<Option<Version>> {
        Ok(Pointer::read(&self.folder(name))?.map(|pointer| pointer.version))
    }

    /// Checks that the pointer can be read and that the version it names exists. A model of which no version was
    /// ever activated is right, too.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::Io`] naming the pointer.
    pub fn verify_active(&self, name: &ModelName) -> Result<()> {
        match self.active(name)? {
            Some(version) if !self.numbers(name)?.contains(&version) => {
                let path = Pointer::path(&self.folder(name));
                Err(Error::damaged(path, format!("the active version {version} is gone")))
            }
            _ => Ok(()),
        }
    }

    /// Makes `version` the active one, after its digest was checked. The one before is remembered for
    /// [`Store::rollback`].
    ///
    /// # Errors
    /// As [`Store::verify`]; [`Error::Io`] if the pointer cannot be written; [`Error::Overloaded`] if another process
    /// keeps the store locked. The pointer stays as it was.
    pub fn activate(&self, name: &ModelName, version: Version) -> Result<()> {
        self.verify(name, version)?;
        let _lock = self.lock()?;
        // It may have been removed while its digest was computed.
        self.manifest(name, version)?;
        let before = Pointer::read(&self.folder(name)).unwrap_or_else(|error| {
            log::warn!("pointer cannot be read and is replaced, what was active before is forgotten: {error}");
            None
        });
        if before.as_ref().is_some_and(|p| p.version == version) {
            return Ok(());
        }
        Pointer::moved(version, before, &self.numbers(name)?).write(&self.folder(name))?;
        log::info!("version activated model={name} version={version}");
        Ok(())
    }

    /// Makes the version active that was active before, the latest whose digest is right.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is none; [`Error::Damaged`] if the pointer cannot be read; [`Error::Io`] and
    /// [`Error::Overloaded`] as for [`Store::activate`].
    pub fn rollback(&self, name: &ModelName) -> Result<Version> {
        let _lock = self.lock()?;
        let (version, pointer) = self.before(name)?;
        let earlier = pointer.earlier.into_iter().skip_while(|v| *v != version).skip(1).collect();
        Pointer { version, earlier }.write(&self.folder(name))?;
        log::info!("rolled back model={name} version={version} from={}", pointer.version);
        Ok(version)
    }

    /// The version that [`Store::rollback`] would make active.
    ///
    /// # Errors
    /// As [`Store::rollback`].
    pub fn previous(&self, name: &ModelName) -> Result<Version> {
        Ok(self.before(name)?.0)
    }

    /// The versions that were active before the one that is, the latest first; their bytes are not checked.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::Io`] if the pointer cannot be read.
    pub fn earlier(&self, name: &ModelName) -> Result<Vec<Version>> {
        Ok(Pointer::read(&self.folder(name))?.map(|pointer| pointer.earlier).unwrap_or_default())
    }

    /// The latest whole version that was active before, and the pointer that says so.
    fn before(&self, name: &ModelName) -> Result<(Version, Pointer)> {
        let Some(pointer) = Pointer::read(&self.folder(name))? else {
            return Err(match self.folder(name).is_dir() {
                true => Error::Usage(format!("{name}: no version is active, so there is none to go back from")),
                false => self.unknown_model(name),
            });
        };
        match self.first_good(name, pointer.earlier.iter().copied()) {
            Some(version) => Ok((version, pointer)),
            None => {
                Err(Error::Usage(format!("{name}: no whole version was active before version {}", pointer.version)))
            }
        }
    }

    /// The version to serve: the active one if its digest is right, else the first of [`Store::candidates`] whose
    /// is. The log says why.
    ///
    /// # Errors
    /// [`Error::Io`] if the model's folder cannot be listed.
    pub fn last_good(&self, name: &ModelName) -> Result<Option<Version>> {
        let folder = self.folder(name);
        loop {
            let pointer = Pointer::read(&folder).ok();
            let candidates = self.candidates(name)?;
            let found = self.first_good(name, candidates.iter().copied());
            if found == candidates.first().copied() {
                return Ok(found);
            }
            if pointer != Pointer::read(&folder).ok() {
                // Another version was activated meanwhile, and these perhaps removed.
                continue;
            }
            match found {
                Some(version) => log::warn!("another version stands in model={name} version={version}"),
                None => log::error!("no version is whole model={name}"),
            }
            return Ok(found);
        }
    }

    /// The versions to try in turn when one has to serve: the active one, those that were active before, the latest
    /// first, then all with lower numbers. Higher numbers were never active, or were given up. Without a readable
    /// pointer every version, the newest first; empty if none was ever activated.
    ///
    /// # Errors
    /// [`Error::Io`] if the model's folder cannot be listed.
    pub fn candidates(&self, name: &ModelName) -> Result<Vec<Version>> {
        let newest_first = self.numbers(name)?.into_iter().rev();
        match Pointer::read(&self.folder(name)) {
            Ok(None) => Ok(Vec::new()),
            Ok(Some(Pointer { version, earlier })) => {
                let mut order: Vec<Version> = std::iter::once(version).chain(earlier).collect();
                let lower: Vec<Version> = newest_first.filter(|v| *v < version && !order.contains(v)).collect();
                order.extend(lower);
                Ok(order)
            }
            Err(error) => {
                log::warn!("pointer cannot be read, the newest whole version stands in model={name}: {error}");
                Ok(newest_first.collect())
            }
        }
    }

    /// The first of `versions` that verifies; the log says what is wrong with those before.
    pub(super) fn first_good(&self, name: &ModelName, versions: impl IntoIterator<Item = Version>) -> Option<Version> {
        versions.into_iter().find(|&version| match self.verify(name, version) {
            Ok(()) => true,
            Err(error) => {
                log::warn!("version cannot be used model={name} version={version}: {error}");
                false
            }
        })
    }
}
