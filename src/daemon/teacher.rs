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
        (Some(Ok(stamp)), Some(known)) if stamp == (known.file_bytes, known.file_unix_ms) => (Some(known), false),
        (Some(Ok(stamp)), _) => {
            let version = publish(config, store)?;
            let fresh = !versions.contains(&version);
            (Some(TeacherRecord { version, file_bytes: stamp.0, file_unix_ms: stamp.1 }), fresh)
        }
        (Some(Err(error)), None) => return Err(error),
        // It was published once, so its file is no longer needed.
        (Some(Err(_)) | None, known) => (known, false),
    };
    let oldest = versions.first().map(|version| TeacherRecord { version: *version, file_bytes: 0, file_unix_ms: 0 });
    let record = record.or(oldest).ok_or_else(|| {
        Error::Usage(format!("{name}: the store has no version yet; name the teacher's file in daemon.teacher"))
    })?;
    let changed = known.is_some_and(|known| known.version != record.version);
    // A pointer that cannot be read is as good as none.
    let active = store.active(name).unwrap_or_default();
    if fresh || changed {
        store.activate(name, record.version)?;
    } else if active.is_none() {
        let last = state.current.filter(|version| versions.contains(version));
        store.activate(name, last.unwrap_or(record.version))?;
    }
    if state.accepted.is_empty() {
        // A store from elsewhere: what serves was somebody's choice.
        state.accepted.extend(active);
    }
    state.teacher = Some(record);
    state.accept(record.version);
    Ok(record.version)
}

/// The teacher's version, its bytes checked. One that is damaged or gone is published anew, and nothing is activated.
///
/// # Errors
/// What is wrong with the version if `daemon.teacher` cannot be published in its place.
pub(super) fn whole(config: &General, store: &Store, state: &mut State) -> Result<Version> {
    let known = state.teacher.map_or(Version(1), |record| record.version);
    let Err(damage) = store.verify(&config.name, known) else { return Ok(known) };
    let again = stamp(&config.teacher).and_then(|stamp| Ok((publish(config, store)?, stamp)));
    let Ok((version, (file_bytes, file_unix_ms))) = again else { return Err(damage) };
    log::warn!("teacher published anew version={version} before={known}: {damage}");
    state.teacher = Some(TeacherRecord { version, file_bytes, file_unix_ms });
    state.accept(version);
    Ok(version)
}

/// Length and time of change of a model's file.
fn stamp(path: &Path) -> Result<(u64, u64)> {
    let (file, _) = crate::weights::resolve(path)?;
    let metadata = fs::metadata(&file).map_err(|e| Error::io("read", &file, e))?;
    let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Ok((metadata.len(), changed.map_or(0, |since| since.as_millis() as u64)))
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
    let has = |version: &Version| {
        store.manifest(name, *version).is_ok_and(|known| known.model_sha256 == sha256)
            && store.verify(name, *version).is_ok()
    };
    match store.versions(name)?.into_iter().rev().find(has) {
        Some(version) => Ok(version),
        None => store.publish(name, file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{ArchOptions, build};
    use crate::daemon::config::DaemonConfig;
    use crate::model::ModelInfo;
    use crate::model::testing::random_params;
    use crate::rng::Rng;

    struct Place {
        _folder: tempfile::TempDir,
        config: General,
        store: Store,
        state: State,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let config = General {
                folder: folder.path().to_path_buf(),
                teacher: folder.path().join("teacher.safetensors"),
                ..DaemonConfig::default().daemon
            };
            let store = Store::open(&folder.path().join("models")).unwrap();
            Self { _folder: folder, config, store, state: State::default() }
        }

        fn write(&self, seed: u64) {
            let graph = build("lenet_bn", &ArchOptions { num_classes: 3, input: [1, 28, 28] }).unwrap();
            let params = random_params(&graph, &mut Rng::new(seed));
            let info = ModelInfo::resolve("test".as_ref(), &ModelDescription::default(), &graph).unwrap();
            let model = Teacher { graph, params, info, sha256: String::new(), provenance: None, int8: None };
            model.save(&self.config.teacher).unwrap();
            // Written within a millisecond, it would look like the one before.
            let changed = UNIX_EPOCH + std::time::Duration::from_secs(1000 + seed);
            fs::File::open(&self.config.teacher).unwrap().set_modified(changed).unwrap();
        }

        /// The teacher's version, and the one that is active.
        fn settle(&mut self) -> (u64, u64) {
            let teacher = settle(&self.config, &self.store, &mut self.state).unwrap();
            (teacher.0, self.store.active(&self.config.name).unwrap().unwrap().0)
        }
    }

    #[test]
    fn a_file_is_published_once_and_another_one_takes_its_place() {
        let mut place = Place::new();
        let missing = settle(&place.config, &place.store, &mut place.state).unwrap_err().to_string();
        assert!(missing.contains("teacher.safetensors"), "{missing}");
        place.write(1);
        assert_eq!([place.settle(), place.settle()], [(1, 1); 2]);
        place.write(2);
        assert_eq!(place.settle(), (2, 2));
        fs::remove_file(&place.config.teacher).unwrap();
        assert_eq!(place.settle(), (2, 2));
        place.write(1);
        assert_eq!(place.settle(), (1, 1), "the one from before");
        assert_eq!(place.state.accepted, [Version(1), Version(2)]);
    }

    #[test]
    fn a_lost_note_publishes_nothing_twice_and_moves_no_pointer() {
        let mut place = Place::new();
        place.write(1);
        place.settle();
        let student = place.config.folder.join("student.safetensors");
        place.write(5);
        fs::rename(&place.config.teacher, &student).unwrap();
        let version = place.store.publish(&place.config.name, &student).unwrap();
        place.store.activate(&place.config.name, version).unwrap();
        place.write(1);
        place.state = State::default();
        assert_eq!(place.settle(), (1, 2));
        assert_eq!(place.state.accepted, [Version(2), Version(1)]);
        assert_eq!(same_or_new(&place.store, &place.config.name, &student).unwrap(), version);
    }

    #[test]
    fn a_damaged_teacher_is_published_anew_and_no_pointer_moves() {
        let mut place = Place::new();
        place.write(1);
        place.settle();
        let check = |place: &mut Place| whole(&place.config, &place.store, &mut place.state).map(|version| version.0);
        assert_eq!(check(&mut place).unwrap(), 1);
        fs::write(place.store.path(&place.config.name, Version(1)), "damaged").unwrap();
        assert_eq!([check(&mut place).unwrap(), check(&mut place).unwrap()], [2, 2]);
        assert_eq!(place.store.active(&place.config.name).unwrap(), Some(Version(1)));
        fs::write(place.store.path(&place.config.name, Version(2)), "damaged").unwrap();
        fs::remove_file(&place.config.teacher).unwrap();
        assert!(matches!(check(&mut place), Err(Error::Damaged { .. })));
    }

    #[test]
    fn a_pointer_that_cannot_be_read_is_put_right() {
        let mut place = Place::new();
        place.write(1);
        place.settle();
        fs::write(place.store.root().join("model/active"), "{").unwrap();
        assert_eq!(place.settle(), (1, 1));
    }
}
