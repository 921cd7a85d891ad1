//! The versions that a store has of a model, and going from one to another.

use super::{Repository, Source};
use crate::store::{Manifest, ModelName, Store, Version};
use crate::{Error, Result};

/// What a store has of a model.
#[derive(Debug)]
pub struct Versions {
    /// The version that is meant to serve; `None` also where the pointer cannot be read.
    pub active: Option<Version>,
    /// Those that were before, the latest first.
    pub earlier: Vec<Version>,
    /// All of them, ascending, with what is known about each; an error for a damaged one.
    pub all: Vec<(Version, Result<Manifest>)>,
}

impl Versions {
    /// The latest earlier version that is there and whole by its manifest.
    pub fn rollback_to(&self) -> Option<Version> {
        let is_there = |version: &Version| self.all.iter().any(|(v, manifest)| v == version && manifest.is_ok());
        self.earlier.iter().copied().find(is_there)
    }
}

impl Repository {
    /// Every model that is served or could be, in order.
    ///
    /// # Errors
    /// [`Error::Io`] if the store cannot be listed.
    pub fn models(&self) -> Result<Vec<ModelName>> {
        let mut names: Vec<ModelName> = self.registry.all().into_iter().map(|served| served.name.clone()).collect();
        match &self.source {
            Source::None => {}
            Source::File(name, _) => names.push(name.clone()),
            Source::Store(store) => names.extend(store.models()?),
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// What the store has of a model; `None` without a store.
    ///
    /// # Errors
    /// [`Error::Io`] if the model's folder cannot be listed.
    pub fn versions(&self, name: &ModelName) -> Result<Option<Versions>> {
        let Source::Store(store) = &self.source else { return Ok(None) };
        let numbers = store.numbers(name)?;
        Ok(Some(Versions {
            active: store.active(name).ok().flatten(),
            earlier: store.earlier(name).unwrap_or_default(),
            all: numbers.into_iter().map(|version| (version, store.manifest(name, version))).collect(),
        }))
    }

    /// Serves `version` and then makes it the active one of the store, so that one which cannot serve never is.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no such version, or no store; whatever is wrong with the version, and nothing
    /// changes. As [`Store::activate`] if the pointer cannot be written: then the version serves until a restart.
    pub fn activate(&self, name: &ModelName, version: Version) -> Result<()> {
        let store = self.store(name)?;
        self.ensure_serving(store, name, version)?;
        store.activate(name, version)
    }

    /// Serves the version that was active before, and makes it the active one of the store; returns it. Where `from`
    /// is given and no longer active, nothing changes and the answer is `None`: somebody else was faster.
    ///
    /// # Errors
    /// [`Error::Usage`] if none was, or there is no store; otherwise as [`Repository::activate`].
    pub fn roll_back(&self, name: &ModelName, from: Option<Version>) -> Result<Option<Version>> {
        let store = self.store(name)?;
        let moved = || Ok::<bool, Error>(from.is_some() && store.active(name)? != from);
        if moved()? {
            return Ok(None);
        }
        self.ensure_serving(store, name, store.previous(name)?)?;
        // Loading takes long enough for somebody to be faster.
        if moved()? { Ok(None) } else { store.rollback(name).map(Some) }
    }

    fn store(&self, name: &ModelName) -> Result<&Store> {
        match &self.source {
            Source::Store(store) => Ok(store),
            _ => Err(Error::Usage(format!("{name}: there are no other versions, for it is not served from a store"))),
        }
    }

    fn ensure_serving(&self, store: &Store, name: &ModelName, version: Version) -> Result<()> {
        match self.registry.get(name.as_str()) {
            Some(served) if served.version == version => Ok(()),
            _ => self.deploy(store, name, version),
        }
    }
}
