//! Every state between two file operations of a change, as a crash leaves it.
//!
//! The states are built by hand here; `tests/cli/models_crash.rs` kills the real program.

use super::*;
use crate::store::publish::INCOMING;

/// A store with versions 1 and 2, the latter active, on which a change was interrupted.
struct Interrupted {
    place: Place,
    /// Version 3 as it is before it has its name.
    staged: PathBuf,
}

impl Interrupted {
    fn new() -> Self {
        let place = Place::with_versions(2);
        place.publish();
        let staged = place.store.root().join(format!("{INCOMING}9-0"));
        fs::rename(place.path("3"), &staged).unwrap();
        fs::write(place.path("last"), "2\n").unwrap();
        Self { place, staged }
    }

    /// Fails unless version 2 still serves, nothing damaged is seen, and once the store is opened again all changes
    /// work and nothing is left of the interrupted one.
    #[track_caller]
    fn survives(self, what: &str) {
        let Self { place, .. } = self;
        for _ in 0..2 {
            assert_eq!((place.active(), place.last_good()), (Some(2), Some(2)), "{what}");
            place.check_sound();
            place.reopened();
        }
        assert_eq!(listing(place.store.root()), [".lock", "door"], "{what}");
        let whole = place.versions();
        let next = place.publish();
        assert!(!whole.contains(&next.0), "{what}: number {next} given twice");
        place.store.activate(&place.name, next).unwrap();
        place.store.retain(&place.name, 1).unwrap();
        assert_eq!(place.versions(), [2, next.0], "{what}");
        let expected = ["2".to_string(), next.to_string(), "active".to_string(), "last".to_string()];
        assert!(listing(&place.path("")).iter().all(|name| expected.contains(name)), "{what}");
        place.check_sound();
    }
}

#[test]
fn an_interrupted_publish_is_as_if_it_had_not_begun_or_were_done() {
    let model = |i: &Interrupted| i.staged.join(MODEL);
    let manifest = |i: &Interrupted| i.staged.join(MANIFEST);
    let state = |what: &str, make: &dyn Fn(&Interrupted)| {
        let interrupted = Interrupted::new();
        make(&interrupted);
        interrupted.survives(what);
    };
    state("an empty folder", &|i| {
        fs::remove_file(model(i)).unwrap();
        fs::remove_file(manifest(i)).unwrap();
    });
    let length = fs::metadata(model(&Interrupted::new())).unwrap().len();
    for part in [0, 1, length / 2, length] {
        state("part of the model", &|i| {
            fs::remove_file(manifest(i)).unwrap();
            let bytes = fs::read(model(i)).unwrap();
            overwrite(&model(i), &bytes[..part as usize]);
        });
    }
    state("part of the manifest", &|i| {
        fs::rename(manifest(i), i.staged.join(".manifest.json.9-0.tmp")).unwrap();
        fs::write(i.staged.join(".manifest.json.9-0.tmp"), "{").unwrap();
    });
    state("all of the files", &|_| {});
    state("part of the number's record", &|i| fs::write(i.place.path(".last.9-1.tmp"), "").unwrap());
    state("the number recorded", &|i| fs::write(i.place.path("last"), "3\n").unwrap());
    state("the number given", &|i| {
        fs::write(i.place.path("last"), "3\n").unwrap();
        fs::rename(&i.staged, i.place.path("3")).unwrap();
    });
}

#[test]
fn the_first_publish_of_a_model_can_be_interrupted_too() {
    for recorded in [false, true] {
        let place = Place::new();
        fs::create_dir(place.path("")).unwrap();
        if recorded {
            fs::write(place.path("last"), "1\n").unwrap();
        }
        assert_eq!((place.store.models().unwrap(), place.last_good()), (vec![], None));
        assert_eq!(place.publish(), Version(1 + u64::from(recorded)));
        place.check_sound();
    }
}

#[test]
fn an_interrupted_activation_leaves_the_old_pointer() {
    for content in ["", "{\"version\":3,\"ear", "{\"version\":3,\"earlier\":[2,1]}\n"] {
        let interrupted = Interrupted::new();
        fs::rename(&interrupted.staged, interrupted.place.path("3")).unwrap();
        fs::write(interrupted.place.path(".active.9-2.tmp"), content).unwrap();
        interrupted.survives(content);
    }
}

#[test]
fn an_interrupted_removal_is_completed() {
    let state = |what: &str, make: &dyn Fn(&Path)| {
        let interrupted = Interrupted::new();
        let trash = interrupted.place.store.root().join(".removed-door-1");
        fs::remove_dir_all(&interrupted.staged).unwrap();
        fs::rename(interrupted.place.path("1"), &trash).unwrap();
        make(&trash);
        interrupted.survives(what);
    };
    state("all of it is left", &|_| {});
    state("the model is left", &|trash| fs::remove_file(trash.join(MANIFEST)).unwrap());
    state("the manifest is left", &|trash| fs::remove_file(trash.join(MODEL)).unwrap());
    state("the folder is left", &|trash| {
        fs::remove_dir_all(trash).unwrap();
        fs::create_dir(trash).unwrap();
    });
}

#[test]
fn a_version_that_is_being_written_is_no_leftover() {
    let place = Place::with_versions(1);
    let folder = place.store.root().join(format!("{INCOMING}9-0"));
    fs::create_dir(&folder).unwrap();
    let model = fs::File::create(folder.join(MODEL)).unwrap();
    model.lock().unwrap();
    place.reopened();
    assert!(folder.exists());
    // While the store is locked nobody can tell what has just begun.
    drop(model);
    let held = place.store.lock().unwrap();
    place.reopened();
    assert!(folder.exists());
    drop(held);
    place.reopened();
    assert!(!folder.exists());
}
