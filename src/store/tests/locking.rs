//! Several processes and threads on one store.

use std::thread;
use std::time::Instant;

use super::*;

#[test]
fn a_change_waits_for_another_one_but_not_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".lock");
    let held = Lock::take(&path, Duration::ZERO).unwrap();
    let start = Instant::now();
    let got = Lock::take(&path, Duration::from_millis(50)).unwrap_err();
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert!(matches!(&got, Error::Overloaded(reason) if reason.contains("within 0.05 s; try again later")), "{got}");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| Lock::take(&path, Duration::from_secs(60)).unwrap());
        drop(held);
        waiting.join().unwrap();
    });
    Lock::take(&path, Duration::ZERO).unwrap();
}

#[test]
fn a_lock_file_that_was_removed_protects_nothing_and_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".lock");
    let held = Lock::take(&path, Duration::ZERO).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| Lock::take(&path, Duration::from_secs(60)).unwrap());
        fs::remove_file(&path).unwrap();
        // Whoever waited has the new file, or waits for it.
        let _got = waiting.join().unwrap();
        assert!(path.exists());
        assert!(Lock::take(&path, Duration::ZERO).is_err());
    });
    drop(held);
}

#[test]
fn reading_needs_no_lock() {
    let place = Place::with_versions(2);
    let _held = place.store.lock().unwrap();
    let store = place.reopened();
    assert_eq!(store.models().unwrap().len(), 1);
    assert_eq!((place.versions(), place.active(), place.last_good()), (vec![1, 2], Some(2), Some(2)));
    place.check_sound();
}

#[test]
fn concurrent_changes_all_succeed_and_every_number_is_given_once() {
    const EACH: u64 = 6;
    let place = Place::with_versions(1);
    let source = place.model(1.0);
    thread::scope(|scope| {
        for thread in 0..4 {
            let (place, source) = (&place, &source);
            scope.spawn(move || {
                let store = place.reopened();
                for _ in 0..EACH {
                    let version = store.publish(&place.name, source).unwrap();
                    match thread {
                        0 => store.activate(&place.name, version).unwrap(),
                        1 => drop(store.retain(&place.name, 8).unwrap()),
                        // Somebody else may have gone back first, or retained.
                        2 => drop(store.rollback(&place.name)),
                        _ => drop(place.reopened()),
                    }
                    assert!(store.last_good(&place.name).unwrap().is_some());
                }
            });
        }
    });
    assert_eq!(fs::read_to_string(place.path("last")).unwrap().trim(), (1 + 4 * EACH).to_string());
    assert_eq!(*place.versions().last().unwrap(), 1 + 4 * EACH);
    assert_eq!(listing(place.store.root()), [".lock", "door"]);
    place.check_sound();
}

#[test]
fn a_reader_never_takes_a_version_that_comes_or_goes_for_a_damaged_one() {
    let place = Place::with_versions(1);
    let source = place.model(1.0);
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut seen = std::collections::BTreeSet::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..60 {
                let version = place.store.publish(&place.name, &source).unwrap();
                place.store.activate(&place.name, version).unwrap();
                place.store.retain(&place.name, 1).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            for version in place.store.numbers(&place.name).unwrap() {
                match place.store.verify(&place.name, version) {
                    Ok(()) => drop(seen.insert(version)),
                    Err(Error::Usage(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(place.store.last_good(&place.name).unwrap().is_some());
        }
    });
    assert!(seen.len() > 5, "only {} versions were seen", seen.len());
}
