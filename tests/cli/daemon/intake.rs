//! What comes in.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use super::{Board, IMAGES, NAMES, classify, status, wait_until};
use crate::serve::server::Serving;

fn kept(server: &Serving) -> u64 {
    status(server)["images"]["reservoir"].as_u64().unwrap()
}

#[test]
fn a_file_that_is_being_written_is_not_read() {
    let board = Board::new(&[]);
    let bytes = board.place.bytes("images/ring/00.png");
    let (first, rest) = bytes.split_at(bytes.len() / 2);
    let mut before = fs::File::create(board.path("daemon/inbox/before.png")).unwrap();
    before.write_all(first).unwrap();
    let server = board.start();
    let mut during = fs::File::create(board.path("daemon/inbox/during.png")).unwrap();
    during.write_all(&board.place.bytes("images/block/00.png")[..50]).unwrap();
    board.bring(7);
    wait_until(&server, "a whole one is in", || kept(&server) == 1);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((kept(&server), board.files("quarantine").len(), board.files("inbox").len()), (1, 0, 2));
    before.write_all(rest).unwrap();
    during.write_all(&board.place.bytes("images/block/00.png")[50..]).unwrap();
    drop((before, during));
    wait_until(&server, "both are in", || kept(&server) == 3);
    assert!(board.files("quarantine").is_empty() && board.files("inbox").is_empty());
}

#[test]
fn the_reservoir_keeps_its_bounds_and_a_balance_of_classes() {
    let board = Board::new(&[("intake", "max_images", "30"), ("trigger", "new_images", "0")]);
    board.bring_all();
    let server = board.start();
    wait_until(&server, "all are in, and the classes balanced", || {
        let classes = status(&server)["images"]["classes"].clone();
        let counts: Vec<u64> = classes.as_array().unwrap().iter().map(|c| c["count"].as_u64().unwrap()).collect();
        let balanced = counts.len() == NAMES.len() && counts.iter().all(|count| (7..=8).contains(count));
        board.files("inbox").is_empty() && balanced && counts.iter().sum::<u64>() == 30
    });
    assert_eq!(kept(&server), 30);
    assert_eq!(board.files("reservoir").len(), 30);
}

#[test]
fn images_of_requests_join_where_that_is_wanted() {
    let board = Board::new(&[]);
    let server = board.start();
    classify(&board, &server, 2);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(kept(&server), 0);
    drop(server);
    board.configure(&[("intake", "classify", "true"), ("intake", "classify_per_minute", "5")]);
    let server = board.start();
    classify(&board, &server, 2);
    wait_until(&server, "some are kept", || kept(&server) >= 4);
    classify(&board, &server, 7);
    std::thread::sleep(Duration::from_millis(500));
    assert!(kept(&server) <= 10, "at most five a minute, over the turn of one");
}

#[test]
fn names_may_be_anything_and_what_is_no_file_is_left_alone_and_told() {
    let board = Board::new(&[]);
    let inbox = board.path("daemon/inbox");
    let latin1 = std::ffi::OsStr::from_bytes(b"caf\xe9.png");
    fs::write(inbox.join(latin1), board.place.bytes("images/ring/00.png")).unwrap();
    fs::create_dir(inbox.join("2026-11-25")).unwrap();
    std::os::unix::fs::symlink(board.path("images/block/00.png"), inbox.join("link.png")).unwrap();
    let server = board.start();
    wait_until(&server, "the file is in", || kept(&server) == 1);
    wait_until(&server, "the others are told", || server.log().matches("left alone in the inbox").count() == 2);
    std::thread::sleep(Duration::from_millis(1500));
    let log = server.log();
    assert!(log.matches("left alone in the inbox").count() == 2 && log.contains("name=\"link.png\""), "{log}");
    assert_eq!((status(&server)["images"]["left_alone"].clone(), board.files("inbox").len()), (2.into(), 2));
}

#[test]
fn what_was_counted_survives_a_restart() {
    let board = Board::new(&[("trigger", "new_images", "0")]);
    let copy = |to: &str| board.place.write(&format!("daemon/inbox/{to}"), board.place.bytes("images/ring/00.png"));
    ["a.png", "b.png"].into_iter().for_each(copy);
    board.place.write("daemon/inbox/c.png", "broken");
    let counts = |server: &Serving| {
        let images = &status(server)["images"];
        [&images["duplicates"], &images["quarantined"]].map(|count| count.as_u64().unwrap())
    };
    let server = board.start();
    wait_until(&server, "all are in", || counts(&server) == [1, 1]);
    server.signal(libc::SIGTERM);
    server.end().ends_with(&[0]);
    copy("d.png");
    let server = board.start();
    wait_until(&server, "the next counts on", || counts(&server) == [2, 1]);
}

#[test]
fn an_inbox_that_goes_and_comes_back_is_watched_again() {
    let board = Board::new(&[]);
    let server = board.start();
    fs::remove_dir(board.path("daemon/inbox")).unwrap();
    wait_until(&server, "it is there again", || board.path("daemon/inbox").is_dir());
    board.bring(0);
    wait_until(&server, "it is in", || kept(&server) == 1);
}

/// Files that this process has open.
fn open_files(server: &Serving) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count()
}

#[test]
fn open_files_stay_what_they_were() {
    let board = Board::new(&[("trigger", "new_images", "0")]);
    let server = board.start();
    board.bring(0);
    wait_until(&server, "one is in", || kept(&server) == 1);
    let before = open_files(&server);
    board.bring_all();
    (0..20).for_each(|index| board.place.write(&format!("daemon/inbox/b{index}.jpg"), "broken"));
    wait_until(&server, "all are in", || kept(&server) == IMAGES as u64 && board.files("inbox").is_empty());
    assert!(open_files(&server) <= before + 1, "{before} before, {} after", open_files(&server));
}
