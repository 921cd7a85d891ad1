//! Where models come from: a store whose pointers are followed, or a single file.

mod versions;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Device;

use super::registry::Registry;
use crate::model::Teacher;
use crate::serve::protocol::IndexEntry;
use crate::store::{ModelName, Store, Version};
use crate::weights::ModelDescription;
use crate::{Error, Result};
pub use versions::Versions;

/// Where models come from.
#[derive(Debug)]
pub enum Source {
    /// Nowhere: whoever embeds the server deploys them.
    None,
    /// One model file or folder, as version 1 of a model of this name.
    File(ModelName, PathBuf),
    /// A store: of each model the active version.
    Store(Store),
}

/// Loads models from their source into a registry.
#[derive(Debug)]
pub struct Repository {
    source: Source,
    registry: Arc<Registry>,
    /// The pointer of each model when it was last looked at, so that a version that was refused is not tried again
    /// and again, and an unloaded model stays unloaded, until the pointer moves.
    seen: Mutex<BTreeMap<ModelName, Option<Version>>>,
    /// Why the store could not be listed when it was last looked at, so that it is said once.
    unlisted: Mutex<Option<String>>,
}

/// The version of a file without a store.
const FILE_VERSION: Version = Version(1);

impl Repository {
    /// A repository that has loaded nothing yet.
    pub fn new(source: Source, registry: Arc<Registry>) -> Self {
        Self { source, registry, seen: Mutex::default(), unlisted: Mutex::default() }
    }

    /// The registry it loads into.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Loads every model. From a store of each the active version or, if that cannot serve, the latest earlier one
    /// that can; models that cannot be loaded at all are logged and left out.
    ///
    /// # Errors
    /// The file's, if the source is one; [`Error::Io`] if the store cannot be listed.
    pub fn load_all(&self) -> Result<()> {
        match &self.source {
            Source::None => Ok(()),
            Source::File(name, _) => self.load(name).map(drop),
            Source::Store(store) => {
                for name in store.models()? {
                    self.saw(&name, store.active(&name).ok().flatten());
                    if let Err(error) = self.bring_up(store, &name) {
                        log::error!("model cannot be served model={name}: {error}");
                    }
                }
                Ok(())
            }
        }
    }

    /// Loads the version of a model that its source names, also if the same one serves already; returns it.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that the source does not have; whatever is wrong with the version. What was served
    /// before still is.
    pub fn load(&self, name: &ModelName) -> Result<Version> {
        let unknown = || Error::Usage(format!("no model {name} can be loaded"));
        match &self.source {
            Source::None => Err(unknown()),
            Source::File(own, path) => {
                if own != name {
                    return Err(unknown());
                }
                let load = || Teacher::load(path, ModelDescription::default(), &Device::Cpu);
                self.registry.deploy(name, FILE_VERSION, load)?;
                Ok(FILE_VERSION)
            }
            Source::Store(store) => {
                if store.numbers(name)?.is_empty() {
                    return Err(unknown());
                }
                if self.registry.get(name.as_str()).is_none() {
                    return self.bring_up(store, name);
                }
                let active =
                    store.active(name)?.ok_or_else(|| Error::Usage(format!("{name}: no version is active")))?;
                self.saw(name, Some(active));
                self.deploy(store, name, active)?;
                Ok(active)
            }
        }
    }

    /// Withdraws a model until it is loaded or its pointer moves; `false` if it is not served.
    pub fn unload(&self, name: &ModelName) -> bool {
        self.registry.withdraw(name)
    }

    /// Says once that, and why, the store cannot be listed, and that it can be again.
    fn tell_if_unlisted(&self, error: Option<&Error>) {
        let why = error.map(ToString::to_string);
        let mut unlisted = self.unlisted.lock().unwrap_or_else(PoisonError::into_inner);
        if *unlisted == why {
            return;
        }
        match &why {
            Some(why) => log::warn!("store cannot be listed, what serves goes on: {why}"),
            None => log::info!("store can be listed again"),
        }
        *unlisted = why;
    }

    /// Looks at the pointers of a store and deploys the versions they moved to. One that cannot serve is refused once,
    /// and the log says why.
    pub fn follow(&self) {
        let Source::Store(store) = &self.source else { return };
        let names = store.models();
        self.tell_if_unlisted(names.as_ref().err());
        for name in names.unwrap_or_default() {
            // A pointer that cannot be read moves nothing; the store's own commands say what is wrong with it.
            let Ok(Some(active)) = store.active(&name) else { continue };
            if self.saw(&name, Some(active)) == Some(Some(active)) {
                continue;
            }
            let outcome = match self.registry.get(name.as_str()) {
                Some(served) if served.version == active => Ok(()),
                Some(_) => self.deploy(store, &name, active),
                None => self.bring_up(store, &name).map(drop),
            };
            if let Err(error) = outcome {
                let stays = self.registry.get(name.as_str()).map_or("none".to_string(), |s| s.version.to_string());
                log::error!("version refused model={name} version={active} still_serving={stays}: {error}");
            }
        }
    }

    /// Every model of the source and what answers for it.
    ///
    /// # Errors
    /// [`Error::Io`] if the store cannot be listed.
    pub fn index(&self) -> Result<Vec<IndexEntry>> {
        let mut entries: BTreeMap<ModelName, IndexEntry> = BTreeMap::new();
        for served in self.registry.all() {
            let (name, version) = (served.name.to_string(), served.version.to_string());
            let entry = IndexEntry { name, version, state: "READY".into(), reason: String::new() };
            entries.insert(served.name.clone(), entry);
        }
        let others = match &self.source {
            Source::None => Vec::new(),
            Source::File(name, _) => vec![(name.clone(), Some(FILE_VERSION))],
            Source::Store(store) => {
                store.models()?.into_iter().map(|name| (name.clone(), store.active(&name).ok().flatten())).collect()
            }
        };
        for (name, version) in others {
            let (version, reason) = match version {
                Some(version) => (version.to_string(), "not loaded"),
                None => (String::new(), "no version is active"),
            };
            let entry =
                IndexEntry { name: name.to_string(), version, state: "UNAVAILABLE".into(), reason: reason.into() };
            entries.entry(name).or_insert(entry);
        }
        Ok(entries.into_values().collect())
    }

    /// Notes the pointer and returns what it was before.
    fn saw(&self, name: &ModelName, active: Option<Version>) -> Option<Option<Version>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), active)
    }

    /// Deploys the first of the store's candidates that can serve.
    fn bring_up(&self, store: &Store, name: &ModelName) -> Result<Version> {
        let mut last = Error::Usage(format!("{name}: no version is active"));
        for version in store.candidates(name)? {
            match self.deploy(store, name, version) {
                Ok(()) => return Ok(version),
                Err(error) => {
                    log::warn!("version cannot serve model={name} version={version}: {error}");
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// Deploys a version whose bytes are those that were published.
    fn deploy(&self, store: &Store, name: &ModelName, version: Version) -> Result<()> {
        self.registry.deploy(name, version, || {
            let manifest = store.manifest(name, version)?;
            let path = store.path(name, version);
            let model = Teacher::load(&path, ModelDescription::default(), &Device::Cpu)?;
            if model.sha256 == manifest.model_sha256 {
                return Ok(model);
            }
            Err(Error::damaged(path, format!("expected SHA-256 {}, got {}", manifest.model_sha256, model.sha256)))
        })
    }
}

#[cfg(test)]
mod tests;
