//! Disks that are full or cannot be written to, each on a file system of its own.

use std::fs;
use std::process::Command;

use super::{Board, classify, right, status, wait_until};
use crate::program;
use crate::serve::server::Serving;

/// The script's exit code where nothing can be mounted.
const NO_MOUNT: i32 = 77;

/// Starts the daemon with a small disk at `daemon`, which becomes read-only once the file `read-only` is there; `None`,
/// with a printed line, where that is not permitted.
fn on_small_disk(board: &Board, size: &str) -> Option<Serving> {
    let probe = "mount -t tmpfs none daemon 2>/dev/null || exit 77";
    let unshared = |script: &str| {
        // Borrows the environment and the pipes of the usual command.
        let mut command = program::command(board.place.folder(), "");
        let program = command.get_program().to_owned();
        let arguments = ["--user", "--map-root-user", "--mount", "--kill-child", "sh", "-c", script];
        let mut unshared = Command::new("unshare");
        unshared.args(arguments).arg(program).current_dir(board.place.folder()).env_remove("RUST_LOG");
        unshared.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.arg("--version");
        unshared
    };
    let mountable = unshared(probe).status().is_ok_and(|status| status.code() != Some(NO_MOUNT) && status.success());
    if !mountable {
        println!("skipped: a file system cannot be mounted here");
        return None;
    }
    let script = format!(
        "mount -t tmpfs -o size={size} none daemon || exit {NO_MOUNT}\n\
         (while [ -d arriving ]; do [ -e read-only ] && exec mount -o remount,ro none daemon; sleep 0.1; done) &\n\
         exec \"$0\" daemon --config config.toml"
    );
    Some(Serving::spawn(unshared(&script), "daemon on a small disk".into()))
}

/// With the inbox on the usual disk, where the test can reach it.
fn board() -> Board {
    let board = Board::new(&[("intake", "inbox", "\"arriving\"")]);
    fs::create_dir(board.path("arriving")).unwrap();
    board
}

fn bring_all(board: &Board) {
    board.bring_all();
    for name in board.files("inbox") {
        fs::rename(board.path("daemon/inbox").join(&name), board.path("arriving").join(&name)).unwrap();
    }
}

#[test]
fn on_a_full_disk_it_says_so_once_and_serves_on() {
    let board = board();
    bring_all(&board);
    let Some(server) = on_small_disk(&board, "200k") else { return };
    let why = server.wait_for("image stays in the inbox ");
    assert!(why.contains("No space left on device"), "{why}");
    assert!(right(&classify(&board, &server, 4)) >= 14);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let log = server.log();
    assert!(log.matches("image stays in the inbox").count() == 1 && !log.contains("panicked"), "{log}");
    assert!(status(&server)["images"]["reservoir"].as_u64().unwrap() > 0);
    assert!(fs::read_dir(board.path("arriving")).unwrap().count() > 0);
}

#[test]
fn on_a_disk_that_becomes_read_only_it_says_so_once_and_serves_on() {
    let board = board();
    let Some(server) = on_small_disk(&board, "4m") else { return };
    fs::write(board.path("read-only"), "").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    bring_all(&board);
    let why = server.wait_for("image stays in the inbox ");
    assert!(why.contains("Read-only file system"), "{why}");
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(right(&classify(&board, &server, 4)) >= 14);
    let log = server.log();
    assert!(log.matches("Read-only file system").count() <= 3 && !log.contains("panicked"), "{log}");
    wait_until(&server, "it collects", || status(&server)["state"] == "collecting");
}
