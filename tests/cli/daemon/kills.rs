//! Killed at any moment, it serves again at once and comes to the same end.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use secateur::rng::Rng;

use super::{Board, IMAGES, classify, wait_until};
use crate::serve::server::Serving;

/// Long enough to be caught in every phase.
const STEPS: (&str, &str, &str) = (
    "adapt",
    "arguments",
    "\"--batch-size 16 --holdout 0.3 --adapt-steps 30 --admp --mask-steps 30 --tune-steps 600\"",
);
/// How soon a restarted daemon must answer.
const SOON: Duration = Duration::from_secs(2);

/// Digest of the student of a run that nothing disturbs, computed once.
fn undisturbed() -> &'static str {
    static DIGEST: OnceLock<String> = OnceLock::new();
    DIGEST.get_or_init(|| {
        let board = Board::new(&[STEPS]);
        board.bring_all();
        let server = board.start();
        settle(&board, &server);
        board.digest(2)
    })
}

/// Asks until version 2 is accepted.
fn settle(board: &Board, server: &Serving) {
    wait_until(server, "version 2 is accepted", || {
        classify(board, server, 1);
        std::fs::read_to_string(board.path("daemon/state.json")).is_ok_and(|s| s.contains("\"accepted\":[1,2]"))
    });
}

/// The adaptation's process, if one was started.
fn child(server: &Serving) -> Option<i32> {
    let log = server.log();
    log.rsplit_once(" process=")?.1.split(' ').next()?.parse().ok()
}

fn is_there(process: i32) -> bool {
    std::path::Path::new(&format!("/proc/{process}")).exists()
}

#[test]
fn killed_again_and_again_it_serves_at_once_and_ends_with_the_same_student() {
    let kills: usize = std::env::var("SECATEUR_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let board = Board::new(&[STEPS]);
    let mut rng = Rng::new(11);
    board.bring_all();
    let mut slowest = Duration::ZERO;
    for kill in 0..kills {
        let begun = Instant::now();
        let server = board.start();
        classify(&board, &server, 1)[0].good();
        let took = begun.elapsed();
        slowest = slowest.max(took);
        assert!(took < SOON, "kill {kill}: it answered after {took:?}\n{}", server.log());
        // The last of them leave it time to come to the end, so that gate, publication and watch are hit, too.
        let most = if kill >= kills - kills / 6 { 4000 } else { 1200 };
        std::thread::sleep(Duration::from_millis(rng.below(most) as u64));
        let process = child(&server);
        if let Some(process) = process.filter(|_| kill % 3 == 0) {
            // SAFETY: no memory is involved.
            unsafe { libc::kill(process, libc::SIGKILL) };
            std::thread::sleep(Duration::from_millis(rng.below(600) as u64));
        }
        let process = child(&server);
        server.signal(libc::SIGKILL);
        drop(server);
        if let Some(process) = process {
            let begun = Instant::now();
            while is_there(process) {
                assert!(begun.elapsed() < Duration::from_secs(5), "the adaptation outlives its daemon");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    let server = board.start();
    settle(&board, &server);
    println!("{kills} kills, the slowest start took {slowest:?}");
    assert_eq!((board.active(), board.digest(2).as_str()), (2, undisturbed()));
    assert_eq!((board.files("reservoir").len(), board.files("inbox").len()), (IMAGES, 0));
    assert!(!board.path("daemon/models/shapes/3").exists(), "published once");
}

#[test]
fn sigterm_saves_the_adaptation_and_the_next_start_goes_on() {
    let board = Board::new(&[STEPS]);
    board.bring_all();
    let server = board.start();
    server.wait_for("adaptation started ");
    let begun = Instant::now();
    server.signal(libc::SIGTERM);
    let finished = server.end().ends_with(&[0]);
    assert!(begun.elapsed() < Duration::from_secs(20));
    finished.logs(&["the next start goes on with it"]);
    let server = board.start();
    server.wait_for("adaptation resumed ");
    settle(&board, &server);
    assert_eq!(board.digest(2), undisturbed());
}

#[test]
fn there_is_only_one_daemon_in_a_folder() {
    let board = Board::new(&[]);
    let server = board.start();
    board.place.run("daemon --config config.toml").fails_naming(&["daemon: another daemon keeps its things here"]);
    drop(server);
    board.start();
}
