//! Budgets of latency: measured on this machine, kept in a file, reported.

use std::fs;

use serde_json::Value;

use super::program::keys;
use super::workplace::{JOB, Workplace};

/// Few steps: what the network learns is of no interest here.
const SHORT: &str = "--batch-size 16 --holdout 0.3 --adapt-steps 0 --admp --mask-steps 20 --tune-steps 5";
const BUDGET: &str = "--budget latency=0.3 --latency-table table.json";

#[test]
fn a_budget_of_latency_removes_channels_and_tells_what_was_measured() {
    let place = Workplace::new().with_wide_teacher();
    let summary = place.run(&format!("{JOB} {SHORT} {BUDGET} --json")).ends_with(&[0, 1]).json();
    let latency = &summary["latency"];
    assert_eq!(keys(latency), ["budget_ms", "predicted_ms", "measured_ms", "identity"]);
    assert_eq!((&latency["identity"]["threads"], &latency["identity"]["precision"]), (&1.into(), &"f32".into()));
    // How exactly it is met depends on who else uses this machine: that has no place in a test.
    assert!(["budget_ms", "predicted_ms", "measured_ms"].iter().all(|key| latency[key].as_f64().unwrap() > 0.0));
    assert_eq!(latency["measured_ms"], summary["student"]["latency_ms"]);
    // On a machine that got faster meanwhile the channels come back.
    let met = latency["measured_ms"].as_f64() <= latency["budget_ms"].as_f64();
    let fewer = summary["student"]["channels"].as_u64() < summary["teacher"]["channels"].as_u64();
    assert!(fewer || met, "{summary}");
    let report = if summary["gate"]["accepted"] == true { place.report() } else { place.refused_report() };
    assert_eq!(report["latency"], *latency);
    let table: Value = serde_json::from_slice(&place.bytes("table.json")).unwrap();
    assert!(!table["networks"].as_array().unwrap().is_empty() && !table["candidates"].as_array().unwrap().is_empty());
}

#[test]
fn a_budget_that_is_met_already_removes_nothing() {
    let place = Workplace::new().with_wide_teacher();
    let summary = place.run(&format!("{JOB} {SHORT} --budget latency=10s --json")).ends_with(&[0, 1]).json();
    assert_eq!(summary["student"]["channels"], summary["teacher"]["channels"]);
}

#[test]
fn the_same_table_gives_the_same_bytes() {
    let place = Workplace::new().with_wide_teacher();
    let student = || {
        let _ = fs::remove_file(place.path("student.safetensors.refused"));
        let finished = place.run(&format!("{JOB} {SHORT} {BUDGET}")).ends_with(&[0, 1]);
        let refused = place.path("student.safetensors.refused").exists();
        (place.bytes(if refused { "student.safetensors.refused" } else { "student.safetensors" }), finished.stderr)
    };
    let ((first, measured), (second, known)) = (student(), student());
    assert!(measured.contains("latency table written") && !known.contains("latency table written"), "{known}");
    assert!(first == second, "the same table gives two students");
}

#[test]
fn a_table_goes_to_the_cache_if_no_file_is_named() {
    let place = Workplace::new().with_wide_teacher();
    place.run(&format!("{JOB} {SHORT} --budget latency=0.3")).ends_with(&[0, 1]);
    let files: Vec<String> = fs::read_dir(place.path("cache/secateur"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(files.len() == 1 && files[0].starts_with("latency-lenet_bn-") && files[0].ends_with(".json"), "{files:?}");
}

#[test]
fn what_is_no_table_is_refused_and_kept() {
    let place = Workplace::new();
    place.write("notes.json", "{\"mine\": 1}");
    let budget = "--budget latency=0.3 --latency-table";
    place.run(&format!("{JOB} {budget} notes.json")).fails_naming(&["notes.json: not a latency table"]);
    assert_eq!(place.bytes("notes.json"), b"{\"mine\": 1}");
    place.run(&format!("{JOB} {budget} teacher.safetensors")).fails_naming(&["would overwrite what --teacher reads"]);
}

#[test]
fn a_latency_out_of_reach_says_how_far_it_can_go() {
    let finished = Workplace::new().run(&format!("{JOB} --budget latency=1us"));
    finished.fails_naming(&["budget latency=0.001ms: at most 1.0 us of", "leave at least"]);
}

#[test]
fn the_report_is_a_page_too() {
    let place = Workplace::new();
    place.write("images/ring/broken.png", "no image");
    place.adapt("");
    let page = String::from_utf8(place.bytes("report.html")).unwrap();
    for part in ["Student accepted", "Phase: prune", "<polyline", "conv4", "broken.png", "adapted teacher"] {
        assert!(page.contains(part), "{part} is missing");
    }
    assert!(!page.contains("http:") && !page.contains("https:") && !page.contains("<script"));
}
