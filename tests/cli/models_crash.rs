//! Killed at any moment, the store holds whole versions and an active one that loads.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use secateur::rng::Rng;

use super::models::Place;
use super::program;

/// What is killed: everything that changes a store.
const CHANGE: &str = "models publish a.safetensors --activate --keep 2 --store store";

#[test]
fn killed_at_random_moments_every_restart_finds_whole_versions_and_an_active_one_that_loads() {
    const KILLS: usize = 60;
    let (place, mut rng) = (Place::new(), Rng::new(7));
    program::run(place.folder(), CHANGE).ends_with(&[0]);
    let (mut last, mut kills, mut interrupted) = (place.serving(), 0, 0);
    while kills < KILLS {
        let moment = Instant::now() + Duration::from_micros(rng.next_u64() % 50_000);
        kills += usize::from(killed_while_publishing(&place, moment));
        interrupted += usize::from(!place.leftovers().is_empty());
        place.models("verify").ends_with(&[0]);
        let serving = place.serving();
        assert!(serving >= last, "kill {kills}: {serving:?} serves after {last:?}");
        last = serving;
        assert!(only_temporary_files(&place.leftovers()), "kill {kills}: {:?}", place.leftovers());
    }
    println!("{KILLS} kills, {interrupted} of them left an unfinished change, the last version is {last:?}");
    program::run(place.folder(), CHANGE).ends_with(&[0]);
    assert!(place.leftovers().is_empty());
}

/// Publishes again and again until `moment` and kills the program then; whether it was running.
fn killed_while_publishing(place: &Place, moment: Instant) -> bool {
    loop {
        let mut publishing = program::command(place.folder(), CHANGE).spawn().unwrap();
        while publishing.try_wait().unwrap().is_none() {
            if Instant::now() >= moment {
                publishing.kill().unwrap();
                return publishing.wait().unwrap().signal().is_some();
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        assert!(publishing.wait().unwrap().success(), "publishing failed");
    }
}

/// Temporary files go with the next write of the same file; folders are gone once the store was opened.
fn only_temporary_files(paths: &[PathBuf]) -> bool {
    paths.iter().all(|path| path.is_file())
}

/// Kills the program as it is about to make its `nth` call of `name`; whether it came that far.
fn killed_at(place: &Place, name: &str, nth: usize) -> bool {
    let status = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "-e", &format!("trace={name}")])
        .args(["-e", &format!("inject={name}:signal=KILL:when={nth}"), env!("CARGO_BIN_EXE_secateur")])
        .args(CHANGE.split_whitespace())
        .current_dir(place.folder())
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    match (status.code(), status.signal()) {
        (Some(0), None) => false,
        (None, Some(libc::SIGKILL)) => true,
        other => panic!("{name} {nth}: expected an end or a kill, got {other:?}"),
    }
}

#[test]
fn killed_before_every_file_operation_every_restart_finds_whole_versions_and_an_active_one_that_loads() {
    let place = Place::new();
    let probe = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        println!("skipped: no strace here, or it may not trace");
        return;
    }
    let (mut last, mut kills) = (None, 0);
    let calls = ["mkdir", "flock", "copy_file_range", "fchmod", "write", "fsync", "rename", "unlinkat", "rmdir"];
    for call in calls {
        for nth in 1.. {
            // Each time from two versions to two others.
            program::run(place.folder(), CHANGE).ends_with(&[0]);
            if !killed_at(&place, call, nth) {
                break;
            }
            place.models("verify").ends_with(&[0]);
            let serving = place.serving();
            assert!(serving > last, "{call} {nth}: {serving:?} serves after {last:?}");
            assert!(only_temporary_files(&place.leftovers()), "{call} {nth}: {:?}", place.leftovers());
            (last, kills) = (serving, kills + 1);
        }
    }
    println!("{kills} kills, the last version is {last:?}");
    assert!(kills > 30, "only {kills} kills");
    program::run(place.folder(), CHANGE).ends_with(&[0]);
    assert!(place.leftovers().is_empty());
}
