//! When an adaptation has to wait.

use std::fs;

use super::{Board, status, wait_until};

/// Sets the board's temperature.
fn heat(board: &Board, celsius: u32) {
    let zone = board.path("board/sys/class/thermal/thermal_zone0");
    fs::create_dir_all(&zone).unwrap();
    fs::write(zone.join("temp"), format!("{celsius}000\n")).unwrap();
}

/// State of the adaptation's process, as `ps` has it.
fn process_state(log: &str) -> Option<char> {
    let (_, after) = log.rsplit_once(" process=")?;
    let id = after.split(' ').next()?;
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[test]
fn a_hot_board_pauses_an_adaptation_and_a_cool_one_continues_it() {
    let board = Board::new(&[]);
    heat(&board, 50);
    board.bring_all();
    let server = board.start();
    server.wait_for("adaptation started ");
    heat(&board, 90);
    let why = server.wait_for("adaptation paused guard=temperature");
    assert!(why.contains("90 °C"), "{why}");
    wait_until(&server, "it stands still", || process_state(&server.log()) == Some('T'));
    wait_until(&server, "it says so", || status(&server)["state"] == "paused");
    heat(&board, 70);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(process_state(&server.log()), Some('T'), "not cool enough");
    heat(&board, 50);
    server.wait_for("adaptation continued paused_s=");
    server.wait_for("student activated");
    assert_eq!(server.log().matches("adaptation paused").count(), 1, "{}", server.log());
}

#[test]
fn a_long_pause_gives_the_memory_back_and_the_run_goes_on_later() {
    let board = Board::new(&[("guard", "max_pause_s", "0.3")]);
    heat(&board, 50);
    board.bring_all();
    let server = board.start();
    server.wait_for("adaptation started ");
    heat(&board, 90);
    server.wait_for("adaptation suspended guard=temperature");
    wait_until(&server, "the process ends", || process_state(&server.log()).is_none());
    wait_until(&server, "it waits", || status(&server)["state"] == "waiting");
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    assert!(metrics.contains("secateur_adaptations_total{outcome=\"interrupted\"} 1"), "{metrics}");
    assert!(metrics.contains("secateur_guard_ok{guard=\"temperature\"} 0"), "{metrics}");
    heat(&board, 50);
    server.wait_for("adaptation resumed ");
    server.wait_for("student activated");
    assert_eq!(server.log().matches("adaptation started").count(), 1);
}

#[test]
fn on_battery_and_in_quiet_hours_nothing_starts() {
    let board = Board::new(&[("guard", "quiet_hours", "\"00:00-23:59\"")]);
    let supply = board.path("board/sys/class/power_supply/BAT0");
    fs::create_dir_all(&supply).unwrap();
    fs::write(supply.join("type"), "Battery\n").unwrap();
    fs::write(supply.join("status"), "Discharging\n").unwrap();
    board.bring_all();
    let server = board.start();
    wait_until(&server, "it waits for power", || status(&server)["reason"] == "power: on battery");
    fs::write(supply.join("status"), "Charging\n").unwrap();
    // The one minute of the day that is not quiet is as good.
    wait_until(&server, "it waits for the hours", || {
        status(&server)["reason"].as_str().unwrap().starts_with("hours") || server.log().contains("adaptation started")
    });
}

#[test]
fn an_adaptation_that_takes_too_much_memory_is_killed_and_backs_off() {
    let board = Board::new(&[("adapt", "max_memory_bytes", "1000000"), ("adapt", "backoff_first_s", "3600")]);
    board.bring_all();
    let server = board.start();
    let why = server.wait_for("adaptation failed ");
    assert!(why.contains("MB of memory, at most 1 allowed"), "{why}");
    wait_until(&server, "it backs off", || status(&server)["state"] == "backing_off");
    assert!(status(&server)["backoff_until"].is_string());
    drop(server);
    let server = board.start();
    wait_until(&server, "it still backs off", || status(&server)["state"] == "backing_off");
}
