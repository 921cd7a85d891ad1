//! Under a supervisor.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use super::{Board, classify, status, wait_until};
use crate::program;
use crate::serve::server::Serving;

#[test]
fn a_supervisor_hears_when_it_is_ready_lives_reloads_and_stops() {
    let board = Board::new(&[]);
    let socket = UnixDatagram::bind(board.path("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut command = program::command(board.place.folder(), "daemon --config config.toml");
    command.env("NOTIFY_SOCKET", board.path("notify")).env("WATCHDOG_USEC", "400000");
    let server = Serving::spawn(command, "daemon".into());
    let next = || {
        let mut buffer = [0; 400];
        let length = socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let hear = |wanted: &str| {
        let begun = Instant::now();
        while !next().starts_with(wanted) {
            assert!(begun.elapsed() < Duration::from_secs(30), "{wanted} was not heard");
        }
    };
    assert_eq!(next(), "READY=1", "only after the first inference");
    hear("STATUS=collecting");
    (0..3).for_each(|_| hear("WATCHDOG=1"));
    server.signal(libc::SIGHUP);
    hear("RELOADING=1\nMONOTONIC_USEC=");
    hear("READY=1");
    server.signal(libc::SIGTERM);
    hear("STOPPING=1");
    server.end().ends_with(&[0]);
}

#[test]
fn sighup_takes_a_good_configuration_and_keeps_the_old_one_for_a_bad_one() {
    let board = Board::new(&[]);
    let server = board.start();
    board.configure(&[("trigger", "new_images", "\"many\"")]);
    server.signal(libc::SIGHUP);
    let why = server.wait_for("configuration refused, the one before stays: ");
    assert!(why.contains("trigger.new_images: expected a whole number, got a text"), "{why}");
    assert_eq!(status(&server)["images"]["needed"], 60);
    board.configure(&[("trigger", "new_images", "45"), ("daemon", "name", "\"other\"")]);
    server.signal(libc::SIGHUP);
    server.wait_for("configuration read again");
    server.wait_for("daemon.name is changed by a restart only");
    wait_until(&server, "it is in force", || status(&server)["images"]["needed"] == 45);
    // The running name is what counts, not the last one read.
    board.configure(&[]);
    server.signal(libc::SIGHUP);
    wait_until(&server, "it is read", || server.log().matches("configuration read again").count() == 2);
    assert_eq!(server.log().matches("is changed by a restart only").count(), 1, "{}", server.log());
    classify(&board, &server, 1)[0].good();
}

#[test]
fn a_taken_address_is_named_before_anything_is_done() {
    let board = Board::new(&[]);
    let server = board.start();
    let listen = format!("\"{}\"", server.address);
    board.configure(&[("serve", "listen", listen.as_str()), ("daemon", "folder", "\"other\"")]);
    board.place.run("daemon --config config.toml").fails_naming(&["serve.listen: cannot listen on"]);
    assert!(!board.path("other").exists());
}

#[test]
fn mistakes_are_named_before_anything_starts() {
    let board = Board::new(&[]);
    for (change, part) in [
        (("trigger", "new_imags", "5"), "did you mean new_images?"),
        (("guard", "cool_celsius", "99.0"), "guard.cool_celsius: expected"),
        (("guard", "quiet_hours", "\"late\""), "22:00-06:00"),
        (("serve", "model", "\"a\""), "daemon.teacher"),
        (("daemon", "teacher", "\"missing\""), "missing"),
        (("adapt", "budget", "\"chanels=0.5\""), "adapt.budget"),
        (("adapt", "arguments", "\"--tune-step 5\""), "--tune-steps"),
        (("serve", "token_file", "\"none\""), "none"),
    ] {
        board.configure(&[change]);
        board.place.run("daemon --config config.toml").fails_naming(&[part]);
        // What no other file tells is known without a start.
        if !["model", "teacher"].contains(&change.1) {
            board.place.run("config check --config config.toml").fails_naming(&[part]);
            board.place.run("config check config.toml").fails_naming(&[part]);
        }
    }
    board.place.run("config check").fails_naming(&["--config"]);
    board.place.run("status --listen 127.0.0.1:9").fails_naming(&["127.0.0.1:9: cannot reach a daemon there"]);
}
