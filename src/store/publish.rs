//! How a version comes to be: written under a temporary name, made durable, renamed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::disk::{create_folder, read_small};
use super::manifest::MANIFEST;
use super::pointer::Pointer;
use super::{MODEL, Manifest, ModelName, ModelSummary, Store, Version};
use crate::weights::{TensorFile, sha256_file, sync_folder, write_bytes_atomic};
use crate::{Error, Result};

/// What the folders of unfinished versions begin with.
pub(super) const INCOMING: &str = ".incoming-";
/// The highest number ever given; without it a removed version's number would be given again.
const LAST: &str = "last";

impl Store {
    /// Publishes a copy of the model in `file` as the next version of `name`. It serves once it is activated.
    ///
    /// The version appears whole or not at all: model and manifest are written and synced in a folder of a temporary
    /// name, which then is renamed.
    ///
    /// # Errors
    /// [`Error::Weights`] naming `file` if it is not a whole, self-contained model; [`Error::Io`], for instance on a
    /// full disk; [`Error::Overloaded`] if another process keeps the store locked. No part of it is left behind.
    pub fn publish(&self, name: &ModelName, file: &Path) -> Result<Version> {
        // Says what it is instead, before a large something is copied.
        drop(TensorFile::open(file)?);
        let staging = {
            let _lock = self.lock()?;
            Staging::create(&self.root)?
        };
        staging.copy(file)?;
        let model = staging.path.join(MODEL);
        let summary = ModelSummary::check(&model).map_err(|error| match error {
            Error::Weights { reason, .. } => Error::weights(file, reason),
            other => other,
        })?;
        let bytes = fs::metadata(&model).map_err(|e| Error::io("read", &model, e))?.len();
        let sha256 = sha256_file(&model)?;

        let _lock = self.lock()?;
        let folder = self.folder(name);
        create_folder(&folder)?;
        let version = self.next_number(name)?;
        let manifest = Manifest::new((name, version), summary, (bytes, sha256));
        write_bytes_atomic(staging.path.join(MANIFEST), &manifest.to_bytes())?;
        write_bytes_atomic(folder.join(LAST), format!("{version}\n").as_bytes())?;
        staging.publish(&folder.join(version.to_string()))?;
        sync_folder(&folder)?;
        sync_folder(&self.root)?;
        log::info!("version published model={name} version={version} bytes={bytes} sha256={}", manifest.model_sha256);
        Ok(version)
    }

    /// One more than every number given so far, whatever became of it.
    fn next_number(&self, name: &ModelName) -> Result<Version> {
        let folder = self.folder(name);
        let path = folder.join(LAST);
        let recorded = match read_small(&path)? {
            None => None,
            Some(bytes) => {
                let number = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse::<Version>().ok());
                if number.is_none() {
                    log::warn!("not a version number, the folders are counted instead path={}", path.display());
                }
                number
            }
        };
        let listed = fs::read_dir(&folder).map_err(|e| Error::io("list", &folder, e))?;
        let taken = listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<Version>().ok());
        // A damaged pointer is reported where it matters.
        let pointed = Pointer::read(&folder).ok().flatten().map(|p| p.version);
        let highest = taken.chain(recorded).chain(pointed).max().map_or(0, |v| v.0);
        let next = highest.checked_add(1);
        next.map(Version).ok_or_else(|| Error::damaged(folder, "expected a free number, the highest is taken"))
    }
}

/// An unfinished version; dropped before it is published, it is removed.
///
/// A lock on its model file tells a folder in use from one that a crash left behind. Made, like those are removed,
/// under the store's lock, so that nobody sees it without.
#[derive(Debug)]
struct Staging {
    path: PathBuf,
    model: File,
}

impl Staging {
    fn create(root: &Path) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = loop {
            let unique = format!("{INCOMING}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = root.join(unique);
            match fs::create_dir(&path) {
                // Of a process that had the same number, and in a container perhaps still has.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io("create folder", path, e)),
                Ok(()) => break path,
            }
        };
        let create = || {
            let model = OpenOptions::new().write(true).create_new(true).open(path.join(MODEL))?;
            // Where the file system has no locks, leftovers stay and nothing is taken for one.
            let _ = model.lock();
            Ok(model)
        };
        match create() {
            Ok(model) => Ok(Self { path, model }),
            Err(e) => {
                let _ = fs::remove_dir_all(&path);
                Err(Error::io("create", path.join(MODEL), e))
            }
        }
    }

    /// Copies the model, durably.
    fn copy(&self, source: &Path) -> Result<()> {
        let mut from = File::open(source).map_err(|e| Error::io("open", source, e))?;
        let copied = io::copy(&mut from, &mut &self.model).and_then(|_| {
            // Against mistakes only; not every file system knows it.
            let _ = self.model.set_permissions(fs::Permissions::from_mode(0o444));
            self.model.sync_all()
        });
        copied.map_err(|e| Error::io("copy the model to", self.path.join(MODEL), e))
    }

    /// Gives the folder its name. Its content is durable since the manifest was written.
    fn publish(self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target).map_err(|e| Error::io("rename to", target, e))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Gone if it was renamed; else a leftover is removed when the store is next opened.
        let _ = fs::remove_dir_all(&self.path);
    }
}
