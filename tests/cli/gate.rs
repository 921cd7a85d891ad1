//! The gate refuses: the old student stays.

use std::fs;

use super::teacher;
use super::workplace::{JOB, SHORT, Workplace};

/// Removes nearly everything at once and repairs nothing.
fn ruinous() -> String {
    format!(
        "{JOB} --batch-size 16 --holdout 0.3 --budget channels=0.9 --min-keep 0 --no-adapt --admp --mask-steps 1 \
         --tune-steps 0 --no-admm --soft-mask off --lr-scale 100"
    )
}

#[test]
fn a_collapsed_student_is_refused_and_the_old_one_stays() {
    let place = Workplace::new();
    place.write("student.safetensors", "the student in use");
    place.write("report.json", "its report");
    place.write("adapted.safetensors", "its teacher");
    let finished = place.run(&format!("{} --json --adapted-out adapted.safetensors", ruinous())).ends_with(&[1]);
    assert_eq!(place.bytes("student.safetensors"), b"the student in use");
    assert_eq!(place.bytes("adapted.safetensors"), b"its teacher");
    place.run("inspect adapted.safetensors.refused").ends_with(&[0]);
    let summary = finished.json();
    assert_eq!(summary["gate"]["accepted"], false);
    let reason = summary["gate"]["reason"].as_str().unwrap();
    assert!(reason.contains("expected at least"), "{reason}");
    finished.logs(&[reason, "student.safetensors.refused", "report.refused.json"]);
    assert_eq!(place.bytes("report.json"), b"its report");
    assert!(place.path("report.refused.html").exists() && !place.path("report.html").exists());
    let report = place.refused_report();
    assert_eq!((&report["gate"]["accepted"], &report["gate"]["reason"]), (&false.into(), &reason.into()));
    place.run("inspect student.safetensors.refused").ends_with(&[0]);
    assert!(!place.path("student.safetensors.checkpoint").exists());
}

#[test]
fn the_table_names_the_refusal() {
    let place = Workplace::new();
    let finished = place.run(&ruinous()).ends_with(&[1]);
    assert!(
        finished.stdout.contains("REFUSED") && finished.stdout.contains("expected at least"),
        "{}",
        finished.stdout
    );
    assert!(!place.path("student.safetensors").exists());
    assert!(!place.path("report.json").exists());
    place.run(&format!("{} --report r.json", ruinous())).ends_with(&[1]);
    assert!(place.path("r.json").exists() && place.path("r.html").exists(), "where it was asked for");
}

#[test]
fn adaptation_of_an_untrained_teacher_cannot_end_in_an_error() {
    let place = Workplace::new();
    teacher::write_untrained(&place.path("teacher.safetensors"), 8);
    let finished = place.run(&format!("{JOB} {SHORT} --json")).ends_with(&[0, 1]);
    let accepted = finished.json()["gate"]["accepted"].as_bool().unwrap();
    assert_eq!(place.path("student.safetensors").exists(), accepted);
    assert_eq!(place.path("student.safetensors.refused").exists(), !accepted);
}

#[test]
fn a_class_that_never_comes_is_named_and_the_student_refused() {
    let place = Workplace::new();
    fs::remove_dir_all(place.path("images/rows")).unwrap();
    let judged = |least: &str| {
        let job = format!("{JOB} {SHORT} --budget channels=0.5 --min-class-share {least} --json");
        place.run(&job).ends_with(&[0, 1]).json()["gate"].clone()
    };
    // The teacher is small and unsure: it sees a bit of every class in any image.
    let refused = judged("0.5");
    let reason = refused["reason"].as_str().unwrap();
    assert!(refused["accepted"] == false && reason.contains("--min-class-share 0 asks for none"), "{reason}");
    assert!(reason.contains("class \"rows\" seems to have 0."), "{reason}");
    let shares = place.refused_report()["survey"]["class_shares"].clone();
    let shares: Vec<f64> = shares.as_array().unwrap().iter().map(|share| share.as_f64().unwrap()).collect();
    let rarest = shares.iter().copied().fold(f64::INFINITY, f64::min);
    assert!((0.0..0.5).contains(&rarest), "{shares:?}");
    assert!((shares.iter().sum::<f64>() - shares.len() as f64).abs() < 1e-6, "relative to an even share: {shares:?}");
    let strict = judged("0.5 --replaces-adapted");
    assert!(strict["reason"].as_str().unwrap().contains("training repaired at most 0.0 % of the images"), "{strict}");
    let allowed = judged("0");
    assert!(!allowed["reason"].as_str().unwrap().contains("even share"), "{allowed}");
    let wrong = place.run(&format!("{JOB} {SHORT} --min-class-share 2"));
    wrong.fails_naming(&["gate.min_class_share: expected a fraction in [0, 1], got 2"]);
}

/// A covered lens: every answer that training changes could pass for a repair, and all looks steady.
#[test]
fn images_that_are_all_alike_give_no_student() {
    let place = Workplace::new();
    let folders = fs::read_dir(place.path("images")).unwrap().map(|entry| entry.unwrap().path());
    let images: Vec<_> =
        folders.flat_map(|path| fs::read_dir(path).unwrap()).map(|entry| entry.unwrap().path()).collect();
    for path in &images[1..] {
        fs::copy(&images[0], path).unwrap();
    }
    for what in ["--no-prune --adapt-steps 5", "--no-prune --no-adapt"] {
        let refused = place.run(&format!("{JOB} --batch-size 16 {what} --json")).ends_with(&[1]).json()["gate"].clone();
        let reason = refused["reason"].as_str().unwrap();
        assert!(refused["accepted"] == false && reason.contains("of an even share"), "{what}: {reason}");
    }
}
