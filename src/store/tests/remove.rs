//! Which versions go and which stay.

use super::*;

impl Place {
    fn retain(&self, keep: usize) -> Vec<u64> {
        self.store.retain(&self.name, keep).unwrap().into_iter().map(|v| v.0).collect()
    }
}

#[test]
fn the_active_version_stays() {
    let place = Place::with_versions(2);
    let got = place.store.remove(&place.name, Version(2)).unwrap_err();
    assert!(matches!(&got, Error::Usage(reason) if reason.contains("door: version 2 is active")), "{got}");
    place.store.remove(&place.name, Version(1)).unwrap();
    assert_eq!((place.versions(), place.last_good()), (vec![2], Some(2)));
    let got = place.store.remove(&place.name, Version(1)).unwrap_err().to_string();
    assert!(got.contains("no version 1, there are: 2"), "{got}");
    assert_eq!(listing(place.store.root()), [".lock", "door"]);
}

#[test]
fn the_oldest_versions_go_but_not_the_active_one_nor_the_one_before_it() {
    let place = Place::with_versions(5);
    assert!(place.retain(5).is_empty());
    assert_eq!(place.retain(4), [1]);
    place.store.activate(&place.name, Version(2)).unwrap();
    // 2 is active, 5 was before it.
    assert_eq!(place.retain(1), [3, 4]);
    assert_eq!(place.versions(), [2, 5]);
    place.publish();
    place.publish();
    assert_eq!(place.retain(1), [6]);
    assert_eq!(place.retain(0), [7]);
    assert_eq!(place.versions(), [2, 5]);
    assert_eq!(place.store.rollback(&place.name).unwrap(), Version(5));
    place.check_sound();
}

#[test]
fn damaged_versions_do_not_count_and_go_with_the_old_ones() {
    let place = Place::with_versions(6);
    fs::remove_file(place.path("2/manifest.json")).unwrap();
    fs::remove_file(place.path("5/manifest.json")).unwrap();
    assert!(place.retain(4).is_empty());
    assert_eq!(place.retain(2), [1, 2, 3]);
    // 4 is what 6 would go back to now.
    assert_eq!(place.retain(1), [5]);
    assert_eq!(place.versions(), [4, 6]);
}

#[test]
fn what_stands_in_for_a_damaged_active_version_stays() {
    let place = Place::new();
    for _ in 0..4 {
        place.publish();
    }
    place.store.activate(&place.name, Version(3)).unwrap();
    fs::remove_file(place.path("3/model.safetensors")).unwrap();
    assert_eq!(place.last_good(), Some(2));
    assert_eq!(place.retain(1), [1]);
    assert_eq!(place.last_good(), Some(2));
    assert_eq!(place.store.numbers(&place.name).unwrap(), [Version(2), Version(3), Version(4)]);
}
