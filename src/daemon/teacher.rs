//! The model that all adaptations begin with.

use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use candle_core::Device;

use super::config::General;
use super::state::{State, TeacherRecord};
use crate::model::Teacher;
use crate::store::{ModelName, Store, Version};
use crate::weights::{ModelDescription, sha256_file};
use crate::{Error, Result};

/// Makes sure that the store has a teacher and an active version, and returns the teacher's version.
///
/// A file that has not been published yet is, as a file that carries all about itself, and activated: at the first start,
/// and whenever another file is put in its place.
///
/// # Errors
/// [`Error::Usage`] if there is neither a file nor a version; whatever is wrong with the file; [`Error::Io`] if the store
/// cannot be written to and has no version.
pub(super) fn settle(config: &General, store: &Store, state: &mut State) -> Result<Version> {
    let name = &config.name;
    let versions = store.versions(name)?;
    let known = state.teacher.filter(|record| versions.contains(&record.version));
    let named = !config.teacher.as_os_str().is_empty();
    let (record, fresh) = match (named.then(|| stamp(&config.teacher)), known) {
        (Some(Ok(stamp)), Some(known)) if stamp == (known.file_bytes, known.file_unix_s) => (Some(known), false),
        (Some(Ok(stamp)), _) => {
            let version = publish(config, store)?;
            let fresh = !versions.contains(&version);
            (Some(TeacherRecord { version, file_bytes: stamp.0, file_unix_s: stamp.1 }), fresh)
        }
        (Some(Err(error)), None) => return Err(error),
        // It was published once, so its file is no longer needed.
        (Some(Err(_)) | None, known) => (known, false),
    };
    let oldest = versions.first().map(|version| TeacherRecord { version: *version, file_bytes: 0, file_unix_s: 0 });
    let record = record.or(oldest).ok_or_else(|| {
        Error::Usage(format!("{name}: the store has no version yet; name the teacher's file in daemon.teacher"))
    })?;
    let changed = known.is_some_and(|known| known.version != record.version);
    if fresh || changed || store.active(name)?.is_none() {
        store.activate(name, record.version)?;
    }
    if state.accepted.is_empty() {
        // A store from elsewhere: what serves was somebody's choice.
        state.accepted.extend(store.active(name)?);
    }
    state.teacher = Some(record);
    state.accept(record.version);
    Ok(record.version)
}

/// Length and time of change of a model's file.
fn stamp(path: &Path) -> Result<(u64, u64)> {
    let (file, _) = crate::weights::resolve(path)?;
    let metadata = fs::metadata(&file).map_err(|e| Error::io("read", &file, e))?;
    let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Ok((metadata.len(), changed.map_or(0, |since| since.as_secs())))
}

/// Publishes the teacher's file, unless the store has a version of these bytes.
fn publish(config: &General, store: &Store) -> Result<Version> {
    let model = Teacher::load(&config.teacher, ModelDescription::default(), &Device::Cpu)?;
    let whole = config.folder.join(".teacher.safetensors");
    fs::create_dir_all(&config.folder).map_err(|e| Error::io("create folder", &config.folder, e))?;
    model.save(&whole)?;
    let version = same_or_new(store, &config.name, &whole);
    // A copy that is no longer needed; the next start overwrites it.
    let _ = fs::remove_file(&whole);
    version
}

/// The version with the bytes of `file`, which is published if there is none. So publishing twice, because a crash came
/// between that and the note of it, is publishing once.
pub(super) fn same_or_new(store: &Store, name: &ModelName, file: &Path) -> Result<Version> {
    let sha256 = sha256_file(file)?;
    let has = |version: &Version| store.manifest(name, *version).is_ok_and(|known| known.model_sha256 == sha256);
    match store.versions(name)?.into_iter().rev().find(has) {
        Some(version) => Ok(version),
        None => store.publish(name, file),
    }
}
