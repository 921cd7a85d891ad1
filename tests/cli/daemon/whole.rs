//! From a teacher to a student that serves, and back from one that should not.

use std::fs;

use serde_json::Value;

use super::{Board, IMAGES, classify, right, status, wait_until};
use crate::program::keys;
use crate::teacher;

#[test]
fn images_in_the_inbox_become_a_student_that_serves() {
    let board = Board::new(&[]);
    board.bring_all();
    for (index, name) in board.files("inbox").iter().take(5).enumerate() {
        board.place.write(&format!("daemon/inbox/broken{index}.jpg"), vec![index as u8; 100]);
        let copy = board.path(&format!("daemon/inbox/x{index}.png"));
        fs::copy(board.path("daemon/inbox").join(name), copy).unwrap();
    }
    let server = board.start();
    assert_eq!(server.get("/v2/models/shapes").good()["versions"], serde_json::json!(["1"]));
    server.wait_for("adaptation started ");
    server.wait_for("student activated model=shapes version=2 from=1");
    let mut answers = Vec::new();
    wait_until(&server, "version 2 serves", || {
        answers = classify(&board, &server, 4);
        answers.iter().all(|answer| answer.good()["version"] == "2")
    });
    assert!(right(&answers) >= 15, "{} of 16 right", right(&answers));
    wait_until(&server, "version 2 is accepted", || {
        classify(&board, &server, 1);
        server.log().contains("version accepted version=2")
    });
    wait_until(&server, "it collects again", || status(&server)["state"] == "collecting");

    assert_eq!((board.files("inbox").len(), board.files("reservoir").len()), (0, IMAGES));
    assert_eq!(board.files("quarantine").len(), 5);
    let status = status(&server);
    let images = &status["images"];
    assert_eq!((&images["duplicates"], &images["quarantined"], &images["new"]), (&5.into(), &5.into(), &0.into()));
    assert_eq!(status["gate"]["accepted"], true);
    let events: Vec<&str> =
        status["history"].as_array().unwrap().iter().map(|e| e["event"].as_str().unwrap()).collect();
    assert_eq!(
        events,
        ["adaptation started", "student activated", "watch started", "version accepted", "version serves"]
    );
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    for line in [
        "secateur_adaptations_total{outcome=\"accepted\"} 1",
        "secateur_intake_images_total{result=\"duplicate\"} 5",
        "secateur_daemon_state{state=\"collecting\"} 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
    let run = &board.files("runs")[0];
    assert_eq!(board.files("runs").len(), 1);
    let left = board.files(&format!("runs/{run}"));
    assert_eq!(left, ["adapt.log", "progress.jsonl", "report.html", "report.json", "run.json"]);

    // Going back to what was accepted before is an operator's right.
    board.place.run("models activate --store daemon/models shapes 1").ends_with(&[0]);
    server.wait_for("version serves version=1 before=2");
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!((board.active(), server.log().matches("rolled back").count()), (1, 0));
    server.signal(libc::SIGTERM);
    server.end().ends_with(&[0]);
}

#[test]
fn another_world_before_the_camera_is_a_reason_to_adapt() {
    let window = [("trigger", "drift_window", "20"), ("trigger", "new_images", "0")];
    let board = Board::new(&window);
    let server = board.start();
    (0..35).for_each(|index| board.bring(index));
    wait_until(&server, "they are in", || status(&server)["images"]["reservoir"] == 35);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(status(&server)["state"], "collecting");
    let mut rng = secateur::rng::Rng::new(8);
    for index in 0..25 {
        let ring = crate::shapes::draw(2, &mut rng);
        ring.save(board.path(&format!("daemon/inbox/ring{index:02}.png"))).unwrap();
    }
    let reason = server.wait_for("adaptation started ");
    assert!(reason.contains("reason=\"drift: "), "{reason}");
}

#[test]
fn the_status_tells_how_far_an_adaptation_is() {
    let board = Board::new(&[]);
    let server = board.start();
    let before = status(&server);
    assert_eq!(
        keys(&before),
        ["state", "reason", "since", "images", "run", "gate", "watch", "guards", "backoff_until", "history"]
    );
    assert_eq!((&before["state"], &before["images"]["needed"]), (&"collecting".into(), &60.into()));
    board.bring_all();
    let mut seen: Option<Value> = None;
    wait_until(&server, "the run is seen fine-tuning", || {
        let run = status(&server)["run"].clone();
        seen = Some(run).filter(|run| run["phase"] == "fine_tune" && run["step"].as_u64() > Some(10));
        seen.is_some()
    });
    let run = seen.unwrap();
    assert_eq!(keys(&run), ["id", "phase", "step", "steps", "eta_s", "started", "losses", "channels"]);
    assert_eq!(run["steps"], 200);
    let names: Vec<&str> = run["losses"].as_array().unwrap().iter().map(|l| l["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"prune imitation") && names.contains(&"teacher information_maximisation"), "{names:?}");
    assert_eq!(run["losses"][0]["points"][0].as_array().unwrap().len(), 2);
    let channels = run["channels"].as_array().unwrap();
    assert!(channels.iter().any(|c| c["after"].as_u64() < c["before"].as_u64()), "{channels:?}");
    let shown = board.place.run(&format!("status --listen {}", server.address)).ends_with(&[0]).stdout;
    assert!(shown.contains("state ") && shown.contains("adaptation started"), "{shown}");
    let json = board.place.run(&format!("status --json --listen {}", server.address)).ends_with(&[0]).json();
    assert_eq!(keys(&json["adaptation"]), keys(&before));
    server.wait_for("student activated");
}

#[test]
fn a_collapsed_student_is_refused_and_the_same_images_are_not_tried_again() {
    let ruinous = "\"--batch-size 16 --holdout 0.3 --min-keep 0 --no-adapt --admp --mask-steps 1 --tune-steps 0 --no-admm \
                   --soft-mask off --lr-scale 100\"";
    let changes = [("adapt", "arguments", ruinous), ("adapt", "budget", "\"channels=0.9\"")];
    let board = Board::new(&changes);
    board.bring_all();
    let server = board.start();
    let why = server.wait_for("student refused ");
    assert!(why.contains("expected at least"), "{why}");
    wait_until(&server, "it collects again", || status(&server)["state"] == "collecting");
    assert_eq!((board.active(), server.log().matches("adaptation started").count()), (1, 1));
    let status = status(&server);
    assert_eq!((&status["gate"]["accepted"], &status["images"]["new"]), (&false.into(), &0.into()));
    assert!(right(&classify(&board, &server, 2)) >= 7);
}

#[test]
fn noise_does_not_take_over() {
    let board = Board::new(&[]);
    let mut rng = secateur::rng::Rng::new(3);
    for index in 0..IMAGES {
        let noise = image::GrayImage::from_fn(12, 12, |_, _| image::Luma([rng.below(256) as u8]));
        noise.save(board.path(&format!("daemon/inbox/{index:03}.png"))).unwrap();
    }
    let server = board.start();
    server.wait_for("adaptation started ");
    wait_until(&server, "noise is judged", || {
        let log = server.log();
        log.contains("student refused") || log.contains("version rolled back") || log.contains("student activated")
    });
    // Should the gate let it pass, the world it is asked about is another one, and the watch takes it back.
    wait_until(&server, "the teacher serves", || {
        let answers = classify(&board, &server, 4);
        board.active() == 1 && right(&answers) >= 14
    });
}

#[test]
fn a_bad_version_that_somebody_activates_is_rolled_back() {
    let board = Board::new(&[("adapt", "backoff_first_s", "3600"), ("trigger", "new_images", "0")]);
    board.bring_all();
    let server = board.start();
    wait_until(&server, "images are in", || status(&server)["images"]["reservoir"] == IMAGES);
    wait_until(&server, "there is a baseline", || {
        fs::read_to_string(board.path("daemon/state.json")).is_ok_and(|state| state.contains("\"answers\":[["))
    });
    teacher::write_untrained(&board.path("other.safetensors"), 4);
    board.force("other.safetensors");
    let why = server.wait_for("version rolled back version=2 to=1 ");
    assert!(why.contains("expected at least"), "{why}");
    assert_eq!(board.active(), 1);
    wait_until(&server, "version 1 serves", || classify(&board, &server, 1)[0].good()["version"] == "1");
    // Somebody else's version says nothing of what an adaptation would bring.
    wait_until(&server, "it collects again", || status(&server)["state"] == "collecting");
    assert!(status(&server)["backoff_until"].is_null());
    assert!(board.path("daemon/models/shapes/2/model.safetensors").exists(), "the bad version is kept to look at");
}

#[test]
fn another_teacher_is_taken_at_the_next_start_and_a_missing_one_is_needed_once() {
    let board = Board::new(&[]);
    let server = board.start();
    server.signal(libc::SIGTERM);
    server.end().ends_with(&[0]);
    fs::rename(board.path("teacher.safetensors"), board.path("other.safetensors")).unwrap();
    let server = board.start();
    assert_eq!(classify(&board, &server, 1)[0].good()["version"], "1");
    drop(server);
    teacher::write_untrained(&board.path("teacher.safetensors"), 9);
    let server = board.start();
    assert_eq!((board.active(), classify(&board, &server, 1)[0].good()["version"] == "2"), (2, true));
    drop(server);
    board.configure(&[("daemon", "folder", "\"elsewhere\""), ("daemon", "teacher", "\"\"")]);
    board.place.run("daemon --config config.toml").fails_naming(&["daemon.teacher"]);
}
