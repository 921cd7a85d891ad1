//! Which version serves.

use super::*;

impl Place {
    #[track_caller]
    fn activate(&self, version: u64) {
        self.store.activate(&self.name, Version(version)).unwrap();
    }

    #[track_caller]
    fn rollback(&self) -> u64 {
        let version = self.store.rollback(&self.name).unwrap();
        assert_eq!(self.active(), Some(version.0));
        version.0
    }

    /// Changes one bit of the model file of `version`, which leaves its length.
    fn flip(&self, version: u64) {
        let path = self.store.path(&self.name, Version(version));
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        overwrite(&path, &bytes);
    }

    fn candidates(&self) -> Vec<u64> {
        self.store.candidates(&self.name).unwrap().into_iter().map(|v| v.0).collect()
    }
}

#[test]
fn going_back_follows_the_activations() {
    let place = Place::with_versions(4);
    assert_eq!((place.active(), place.last_good()), (Some(4), Some(4)));
    place.activate(2);
    assert_eq!(place.rollback(), 4);
    assert_eq!(place.rollback(), 3);
    // Once more is no change.
    place.activate(3);
    assert_eq!(fs::read_to_string(place.path("active")).unwrap(), "{\"version\":3,\"earlier\":[1]}\n");
    // What was gone back from is not gone back to.
    place.activate(1);
    assert_eq!(place.rollback(), 3);
    let got = place.store.rollback(&place.name).unwrap_err();
    assert!(matches!(&got, Error::Usage(reason) if reason.contains("no whole version was active before version 3")));
    assert_eq!(place.active(), Some(3));
}

#[test]
fn five_hundred_swaps_leave_a_short_memory() {
    let place = Place::with_versions(2);
    for swap in 0..500 {
        place.activate(1 + swap % 2);
    }
    assert_eq!(fs::read_to_string(place.path("active")).unwrap(), "{\"version\":2,\"earlier\":[1]}\n");
}

#[test]
fn going_back_passes_over_what_is_removed_or_damaged() {
    let place = Place::with_versions(5);
    place.store.remove(&place.name, Version(4)).unwrap();
    place.flip(3);
    fs::remove_file(place.path("2/manifest.json")).unwrap();
    assert_eq!(place.rollback(), 1);
    assert!(place.store.rollback(&place.name).is_err());
}

#[test]
fn without_an_active_version_there_is_nothing_to_go_back_from() {
    let place = Place::new();
    place.publish();
    let got = place.store.rollback(&place.name).unwrap_err();
    assert!(matches!(&got, Error::Usage(reason) if reason.contains("door: no version is active")), "{got}");
}

#[test]
fn only_whole_versions_become_active() {
    let place = Place::with_versions(3);
    place.flip(2);
    fs::remove_file(place.path("1/model.safetensors")).unwrap();
    for (version, file) in [(2, "2/model.safetensors"), (1, "1/model.safetensors")] {
        let got = place.store.activate(&place.name, Version(version)).unwrap_err();
        assert!(matches!(&got, Error::Damaged { path, .. } if path.ends_with(file)), "{got}");
    }
    let got = place.store.activate(&place.name, Version(9)).unwrap_err();
    assert!(matches!(&got, Error::Usage(reason) if reason == "door: no version 9, there are: 1, 2, 3"), "{got}");
    let got = place.store.activate(&"window".parse().unwrap(), Version(1)).unwrap_err().to_string();
    assert!(got.contains("no model window, there are: door"), "{got}");
    assert_eq!(place.active(), Some(3));
}

#[test]
fn the_last_good_version_stands_in_for_a_damaged_one() {
    let place = Place::with_versions(3);
    place.activate(1);
    place.activate(3);
    place.publish();
    assert_eq!(
        place.candidates(),
        [3, 1, 2],
        "the active one, then those before it, never one that was not yet active"
    );
    assert_eq!(place.last_good(), Some(3));
    place.flip(3);
    assert_eq!(place.last_good(), Some(1));
    fs::write(place.path("1/manifest.json"), "{").unwrap();
    assert_eq!(place.last_good(), Some(2));
    fs::remove_dir_all(place.path("2")).unwrap();
    assert_eq!(place.last_good(), None);
    assert_eq!(place.active(), Some(3), "what should serve is still said");
}

#[test]
fn versions_with_lower_numbers_stand_in_where_none_was_active_before() {
    let place = Place::new();
    for _ in 0..3 {
        place.publish();
    }
    place.activate(3);
    assert_eq!(place.candidates(), [3, 2, 1]);
    fs::remove_dir_all(place.path("3")).unwrap();
    assert_eq!(place.last_good(), Some(2));
    let got = place.store.verify_active(&place.name).unwrap_err().to_string();
    assert!(got.contains("door/active: the active version 3 is gone"), "{got}");
}

#[test]
fn a_damaged_pointer_lets_the_newest_whole_version_serve_until_one_is_activated() {
    for damaged in ["", "{", "3", "{\"version\":\"3\",\"earlier\":[]}", "{\"version\":-3,\"earlier\":[]}", "\0\0\0\0"] {
        let place = Place::with_versions(3);
        fs::write(place.path("active"), damaged).unwrap();
        place.flip(3);
        assert_eq!(place.last_good(), Some(2), "{damaged:?}");
        for got in [place.store.active(&place.name).map(drop), place.store.verify_active(&place.name)] {
            assert!(matches!(got.unwrap_err(), Error::Damaged { path, .. } if path == place.path("active")));
        }
        // What is active cannot be told, so nothing goes that could be it.
        assert!(matches!(place.store.remove(&place.name, Version(1)).unwrap_err(), Error::Damaged { .. }));
        assert!(matches!(place.store.retain(&place.name, 1).unwrap_err(), Error::Damaged { .. }));
        assert!(matches!(place.store.rollback(&place.name).unwrap_err(), Error::Damaged { .. }));
        place.activate(1);
        assert_eq!((place.active(), place.last_good()), (Some(1), Some(1)));
        place.store.verify_active(&place.name).unwrap();
    }
}

#[test]
fn a_pointer_that_is_no_plain_file_or_endless_is_damaged() {
    let place = Place::with_versions(1);
    fs::remove_file(place.path("active")).unwrap();
    assert_eq!((place.active(), place.last_good()), (None, None), "as if nothing had been activated");
    std::os::unix::fs::symlink("/dev/zero", place.path("active")).unwrap();
    let got = place.store.active(&place.name).unwrap_err().to_string();
    assert!(got.contains("door/active: expected a plain file"), "{got}");
    fs::remove_file(place.path("active")).unwrap();
    fs::File::create(place.path("active")).unwrap().set_len(1 << 30).unwrap();
    let got = place.store.active(&place.name).unwrap_err().to_string();
    assert!(got.contains("door/active: expected at most 1048576 bytes, got 1073741824"), "{got}");
}
