use std::fs;

use tempfile::TempDir;

use super::super::testing::{model, registry};
use super::*;

/// A store with `versions` published versions of one model, the last one active, and a repository over it.
struct Place {
    folder: TempDir,
    store: Store,
    repository: Repository,
}

fn name() -> ModelName {
    "digits".parse().unwrap()
}

impl Place {
    fn new(versions: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        let store = Store::open(&root).unwrap();
        let repository = Repository::new(Source::Store(Store::open(&root).unwrap()), registry(10));
        let place = Self { folder, store, repository };
        (1..=versions).for_each(|version| place.publish(version));
        place
    }

    /// Publishes and activates another version.
    fn publish(&self, seed: u64) {
        let file = self.folder.path().join("model.safetensors");
        model(seed).save(&file).unwrap();
        let version = self.store.publish(&name(), &file).unwrap();
        self.store.activate(&name(), version).unwrap();
    }

    /// Changes one byte of a published model.
    fn damage(&self, version: u64) {
        let path = self.store.path(&name(), Version(version));
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        let mut permissions = fs::metadata(&path).unwrap().permissions();
        #[expect(clippy::permissions_set_readonly_false, reason = "a file of the test's own")]
        permissions.set_readonly(false);
        fs::set_permissions(&path, permissions).unwrap();
        fs::write(&path, bytes).unwrap();
    }

    fn serving(&self) -> Option<u64> {
        self.repository.registry().get("digits").map(|served| served.version.0)
    }
}

#[test]
fn the_active_version_serves_and_the_pointer_is_followed() {
    let place = Place::new(2);
    place.repository.load_all().unwrap();
    assert_eq!(place.serving(), Some(2));
    place.publish(3);
    place.repository.follow();
    assert_eq!(place.serving(), Some(3));
    place.store.rollback(&name()).unwrap();
    place.repository.follow();
    assert_eq!(place.serving(), Some(2));
}

#[test]
fn a_damaged_version_is_passed_over_at_the_start() {
    let place = Place::new(3);
    place.damage(3);
    place.repository.load_all().unwrap();
    assert_eq!(place.serving(), Some(2));
    place.repository.follow();
    assert_eq!(place.serving(), Some(2));
}

#[test]
fn a_damaged_version_is_refused_while_another_serves_and_not_tried_again() {
    let place = Place::new(1);
    place.repository.load_all().unwrap();
    place.publish(2);
    place.damage(2);
    place.repository.follow();
    place.repository.follow();
    assert_eq!(place.serving(), Some(1));
    let refused = &place.repository.registry().metrics().model(&name()).refused;
    assert_eq!(refused.get(), 1);
    assert!(place.repository.load(&name()).unwrap_err().to_string().contains("SHA-256"));
    assert_eq!((place.serving(), refused.get()), (Some(1), 2));
}

#[test]
fn an_unloaded_model_stays_so_until_it_is_loaded_or_its_pointer_moves() {
    let place = Place::new(1);
    place.repository.load_all().unwrap();
    assert!(place.repository.unload(&name()) && !place.repository.unload(&name()));
    place.repository.follow();
    assert_eq!(place.serving(), None);
    let entry = |state: &str, reason: &str| IndexEntry {
        name: "digits".into(),
        version: "1".into(),
        state: state.into(),
        reason: reason.into(),
    };
    assert_eq!(place.repository.index().unwrap(), [entry("UNAVAILABLE", "not loaded")]);
    assert_eq!(place.repository.load(&name()).unwrap(), Version(1));
    assert_eq!(place.repository.index().unwrap(), [entry("READY", "")]);
    place.repository.unload(&name());
    place.publish(2);
    place.repository.follow();
    assert_eq!(place.serving(), Some(2));
}

#[test]
fn a_model_that_appears_later_is_served() {
    let place = Place::new(0);
    place.repository.load_all().unwrap();
    assert!(place.repository.load(&name()).is_err());
    place.publish(1);
    place.repository.follow();
    assert_eq!(place.serving(), Some(1));
}

#[test]
fn a_single_file_is_version_one_of_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let repository = Repository::new(Source::File(name(), path.clone()), registry(10));
    assert!(repository.load_all().is_err(), "there is no file yet");
    model(1).save(&path).unwrap();
    repository.load_all().unwrap();
    assert_eq!(repository.registry().get("digits").unwrap().version, Version(1));
    assert!(repository.load(&"other".parse().unwrap()).is_err());
    assert!(!repository.registry().get("digits").unwrap().sha256.is_empty());
}
