//! Versions of models on disk: published whole, activated by a rename, never changed in between.
//!
//! ```text
//! ROOT/.lock                     held while the store is changed
//! ROOT/.incoming-…               a version being written
//! ROOT/.removed-…                a version being removed
//! ROOT/NAME/active               {"version": 3, "earlier": [2, 1]}
//! ROOT/NAME/last                 the highest number ever given
//! ROOT/NAME/3/model.safetensors
//! ROOT/NAME/3/manifest.json
//! ```
//!
//! A reader needs no lock: what it sees under a number is a whole version, and the pointer is the old or the new one.
//! What a crash leaves unfinished is removed when the store is next opened; foreign files and folders are left alone.
//! What a model computes is not known here: versions are checked, never run.

mod disk;
mod lock;
mod manifest;
mod name;
mod pointer;
mod publish;
mod remove;
mod serving;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::lock::Lock;
use self::manifest::MANIFEST;
pub use self::manifest::{Manifest, ModelSummary, Origin};
pub use self::name::{ModelName, Version};
use crate::weights::sha256_file;
use crate::{Error, Result};

/// The model file of a version.
const MODEL: &str = "model.safetensors";
/// How long a change waits for another one to finish.
const PATIENCE: Duration = Duration::from_secs(10);

/// A folder of models and their versions. Any number of processes may use it at once.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store in the folder `root`, which is made if it is missing, and removes what interrupted changes
    /// left behind. A folder that cannot be changed is opened all the same, to read.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be made or listed.
    pub fn open(root: &Path) -> Result<Self> {
        disk::create_folder(root)?;
        let store = Self { root: root.to_path_buf() };
        store.names()?;
        store.sweep();
        Ok(store)
    }

    /// The folder of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The models with at least one version, in order.
    ///
    /// # Errors
    /// [`Error::Io`] if a folder cannot be listed.
    pub fn models(&self) -> Result<Vec<ModelName>> {
        let mut found = Vec::new();
        for name in self.names()? {
            if !self.numbers(&name)?.is_empty() {
                found.push(name);
            }
        }
        Ok(found)
    }

    /// The whole versions of a model, ascending; empty if there is no such model. Damaged ones are left out, and the
    /// log says so.
    ///
    /// # Errors
    /// [`Error::Io`] if the model's folder cannot be listed.
    pub fn versions(&self, name: &ModelName) -> Result<Vec<Version>> {
        let whole = |version: &Version| match self.manifest(name, *version) {
            Ok(_) => true,
            // Removed a moment ago.
            Err(Error::Usage(_)) => false,
            Err(error) => {
                log::warn!("version is damaged model={name} version={version}: {error}");
                false
            }
        };
        Ok(self.numbers(name)?.into_iter().filter(whole).collect())
    }

    /// The versions of a model, whole or damaged, ascending; empty if there is no such model.
    ///
    /// # Errors
    /// [`Error::Io`] if the model's folder cannot be listed.
    pub fn numbers(&self, name: &ModelName) -> Result<Vec<Version>> {
        let folder = self.folder(name);
        let fail = |e| Error::io("list", &folder, e);
        let entries = match fs::read_dir(&folder) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
            entries => entries.map_err(fail)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(fail)?;
            let Some(version) = entry.file_name().to_str().and_then(|text| text.parse().ok()) else { continue };
            let path = entry.path();
            // A folder with neither file is somebody else's.
            let ours = || [MODEL, MANIFEST].iter().any(|file| path.join(file).symlink_metadata().is_ok());
            if entry.file_type().map_err(fail)?.is_dir() && ours() {
                found.push(version);
            } else {
                log::debug!("not a version path={}", path.display());
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Where the model file of a version is, whether or not there is one.
    pub fn path(&self, name: &ModelName, version: Version) -> PathBuf {
        self.folder(name).join(version.to_string()).join(MODEL)
    }

    /// What the store knows about a version.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no such version; [`Error::Damaged`] if its files are missing, malformed or of the
    /// wrong length.
    pub fn manifest(&self, name: &ModelName, version: Version) -> Result<Manifest> {
        if !self.numbers(name)?.contains(&version) {
            return Err(self.unknown(name, version));
        }
        let read = Manifest::read(&self.folder(name).join(version.to_string()), name, version);
        read.map_err(|error| self.unless_removed(name, version, error))
    }

    /// Checks a version against the digest it was published with.
    ///
    /// # Errors
    /// As [`Store::manifest`]; [`Error::Damaged`] if the model's bytes are others than those that were published.
    pub fn verify(&self, name: &ModelName, version: Version) -> Result<()> {
        let manifest = self.manifest(name, version)?;
        let path = self.path(name, version);
        let got = sha256_file(&path).map_err(|error| self.unless_removed(name, version, error))?;
        if got == manifest.model_sha256 {
            return Ok(());
        }
        Err(Error::damaged(path, format!("expected SHA-256 {}, got {got}", manifest.model_sha256)))
    }

    /// Folders whose name could be a model's, in order.
    fn names(&self) -> Result<Vec<ModelName>> {
        let fail = |e| Error::io("list", &self.root, e);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_str().and_then(|text| text.parse().ok());
            found.extend(name.filter(|_| entry.path().is_dir()));
        }
        found.sort_unstable();
        Ok(found)
    }

    fn folder(&self, name: &ModelName) -> PathBuf {
        self.root.join(name.as_str())
    }

    fn lock_path(&self) -> PathBuf {
        self.root.join(".lock")
    }

    fn lock(&self) -> Result<Lock> {
        Lock::take(&self.lock_path(), PATIENCE)
    }

    /// The error for a model that does not exist, saying which ones do.
    pub fn unknown_model(&self, name: &ModelName) -> Error {
        let models = self.models().unwrap_or_default();
        Error::Usage(format!("{}: no model {name}, there are: {}", self.root.display(), listed(&models)))
    }

    /// What was met while a version was read: nothing is damaged if somebody removed it meanwhile.
    fn unless_removed(&self, name: &ModelName, version: Version, error: Error) -> Error {
        if self.folder(name).join(version.to_string()).exists() { error } else { self.unknown(name, version) }
    }

    /// The error for a version that does not exist, saying which ones do.
    fn unknown(&self, name: &ModelName, version: Version) -> Error {
        match self.numbers(name).unwrap_or_default().as_slice() {
            [] => self.unknown_model(name),
            versions => Error::Usage(format!("{name}: no version {version}, there are: {}", listed(versions))),
        }
    }
}

fn listed(items: &[impl ToString]) -> String {
    match items {
        [] => "none".to_string(),
        items => items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests;
