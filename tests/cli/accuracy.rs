//! Methods side by side.

use std::fs;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::workplace::{PER_CLASS, Workplace};
use super::{program, shapes, teacher};

const SUITE: &str = "bench accuracy --suite office31 --data data --teachers teachers --out results --seeds 1 \
    --methods source,statistics,adapted,prune-then-adapt,tcp,admp --removed 0.5 \
    --adapt-steps 4 --mask-steps 12 --tune-steps 20 --json";
const MORE: &str = "-- --batch-size 16 --holdout 0.3 --threads 1";

/// The place's teacher as one of *amazon*, its images as *webcam*.
fn place() -> Workplace {
    let place = Workplace::new();
    for folder in ["teachers", "data"] {
        fs::create_dir(place.path(folder)).unwrap();
    }
    fs::rename(place.path("teacher.safetensors"), place.path("teachers/tiny-amazon.safetensors")).unwrap();
    fs::rename(place.path("images"), place.path("data/webcam")).unwrap();
    place
}

fn outcomes(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_method_has_its_figures_and_nothing_is_computed_twice() {
    let place = place();
    let first = place.run(&format!("{SUITE} {MORE}")).ends_with(&[0]);
    let rows = outcomes(&first.stdout);
    let methods: Vec<&str> = rows.iter().map(|row| row["method"].as_str().unwrap()).collect();
    assert_eq!(methods, ["source", "statistics", "adapted", "prune-then-adapt", "tcp", "admp"]);
    for row in &rows {
        assert_eq!(row["task"], "tiny-amazon-to-webcam");
        let right = row["accuracy"].as_f64().unwrap() / 100.0 * (4 * PER_CLASS) as f64;
        assert!((right - right.round()).abs() < 1e-6, "a part of the images: {row}");
        assert!(row["gate"]["agreement"].as_f64().is_some(), "{row}");
    }
    let channels = |i: usize| rows[i]["channels"].as_u64().unwrap();
    assert_eq!((channels(0), channels(1)), (channels(2), channels(2)));
    for row in &rows[3..] {
        assert_eq!(row["channels"], channels(0) / 2, "{row}");
    }
    let eval = place.run("eval teachers/tiny-amazon.safetensors data/webcam --json").ends_with(&[0]).json();
    assert_eq!(rows[0]["accuracy"], eval["accuracy"]);

    let written = fs::metadata(place.path("results/tiny-amazon-to-webcam/admp-0.5-seed0/student.json")).unwrap();
    let again = place.run(&format!("{SUITE} {MORE}")).ends_with(&[0]);
    assert_eq!(again.stdout, first.stdout);
    let now = fs::metadata(place.path("results/tiny-amazon-to-webcam/admp-0.5-seed0/student.json")).unwrap();
    assert_eq!(now.modified().unwrap(), written.modified().unwrap());
    for file in ["results.md", "results.html"] {
        let text = String::from_utf8(place.bytes(&format!("results/{file}"))).unwrap();
        assert!(text.contains("prune-then-adapt") && text.contains("tiny-amazon-to-webcam"), "{file}: {text}");
    }
}

#[test]
fn other_settings_or_another_teacher_are_computed_anew_and_not_mixed() {
    let place = place();
    let suite = SUITE.replace("source,statistics,adapted,prune-then-adapt,tcp,admp", "source,adapted");
    let run = |suite: &str| outcomes(&place.run(&format!("{suite} {MORE}")).ends_with(&[0]).stdout);
    let first = run(&suite);
    let longer = run(&suite.replace("--adapt-steps 4", "--adapt-steps 5").replace("source,adapted", "adapted"));
    assert_eq!(longer.len(), 1, "the row of four steps is not beside the one of five: {longer:?}");
    let kept = String::from_utf8(place.bytes("results/results.jsonl")).unwrap();
    assert_eq!(outcomes(&kept), [first.clone(), longer.clone()].concat(), "nor is it lost");
    assert_ne!(longer[0]["gate"], first[1]["gate"]);
    assert_eq!(run(&suite)[1]["gate"], first[1]["gate"], "the same again");
    teacher::write_untrained(&place.path("teachers/tiny-amazon.safetensors"), 8);
    let source = run(&suite.replace("source,adapted", "source"));
    assert_eq!(source.len(), 1, "no row of the other teacher is beside it: {source:?}");
    let other = run(&suite);
    assert_ne!(other[0]["accuracy"], first[0]["accuracy"]);
    assert_ne!(other[1]["gate"], first[1]["gate"]);
}

#[test]
fn a_pruning_method_alone_adapts_its_teacher_first() {
    let place = place();
    let alone = SUITE.replace("source,statistics,adapted,prune-then-adapt,tcp,admp", "tcp");
    let rows = outcomes(&place.run(&format!("{alone} {MORE}")).ends_with(&[0]).stdout);
    assert_eq!((rows.len(), &rows[0]["method"]), (1, &"tcp".into()));
    assert!(place.path("results/tiny-amazon-to-webcam/adapted-seed0/student.json").exists());
}

#[test]
fn a_suite_without_teachers_or_with_a_failing_run_says_what_is_wrong() {
    let place = place();
    let elsewhere = SUITE.replace("office31", "digits");
    place.run(&format!("{elsewhere} {MORE}")).fails_naming(&["no task", "data", "teachers"]);
    place.run(&format!("{SUITE} --task dslr {MORE}")).fails_naming(&["--task dslr", "office31"]);
    fs::create_dir(place.path("data/dslr")).unwrap();
    shapes::write_folders(&place.path("shapes"), 3);
    for (index, class) in fs::read_dir(place.path("shapes")).unwrap().enumerate() {
        for image in fs::read_dir(class.unwrap().path()).unwrap().map(Result::unwrap) {
            let name = format!("data/dslr/{index}-{}", image.file_name().display());
            fs::rename(image.path(), place.path(&name)).unwrap();
        }
    }
    place.run(&format!("{SUITE} --task dslr {MORE}")).fails_naming(&["data/dslr", "labelled with"]);
    fs::remove_dir_all(place.path("data/dslr")).unwrap();
    place.run(&format!("{SUITE} -- --memory 1MB")).fails_naming(&["student.log", "adapt"]);
}

#[test]
fn arguments_that_a_method_cannot_have_are_refused_before_the_first_run() {
    let place = place();
    for (arguments, parts) in [
        ("--batch-size 0", ["--", "batch_size"]),
        ("--batch-size many", ["--", "many"]),
        ("--seed 3", ["--", "--seed"]),
        ("--adapt-steps 3", ["--", "--adapt-steps"]),
        ("--no-distillation", ["--", "--no-prune"]),
        ("--importance magnitude", ["--", "--importance"]),
        ("--no-such-flag", ["--", "--no-such-flag"]),
        ("more", ["--", "more"]),
    ] {
        place.run(&format!("{SUITE} -- {arguments}")).fails_naming(&[&["arguments behind "], &parts[..]].concat());
        assert!(!place.path("results").exists(), "{arguments}");
    }
    let worst =
        "bench accuracy --suite office31 --data data --teachers teachers --out results --worst -- --admp --no-prune";
    place.run(worst).fails_naming(&["arguments behind --", "--no-prune"]);
}

#[test]
fn updates_follow_what_every_run_is_given() {
    let place = place();
    shapes::write_folders(&place.path("data/dslr"), 2 * PER_CLASS);
    let suite = "bench accuracy --suite office31 --data data --teachers teachers --task dslr --out results --seeds 1 \
        --methods adapted --tune-steps 2 -- --threads 1";
    for (batch, steps) in [(64, 300), (2, 360)] {
        place.run(&format!("{suite} --batch-size {batch}")).ends_with(&[0]);
        let report: Value =
            serde_json::from_slice(&place.bytes("results/tiny-amazon-to-dslr/adapted-seed0/student.json")).unwrap();
        assert_eq!(report["phases"][0]["steps"], steps, "{}", report["phases"]);
    }
}

/// The program in the middle of a run that takes hours, and that run.
fn in_progress(place: &Workplace) -> (Child, String, i32) {
    let arguments = format!("{} {MORE}", SUITE.replace("--adapt-steps 4", "--adapt-steps 1000000"));
    let child = program::command(&place.path(""), &arguments).spawn().unwrap();
    wait_until(|| log(place).contains("phase started"));
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    (child, arguments, children.trim().parse().expect("one run"))
}

fn log(place: &Workplace) -> String {
    fs::read_to_string(place.path("results/tiny-amazon-to-webcam/adapted-seed0/student.log")).unwrap_or_default()
}

#[track_caller]
fn wait_until(mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(120), "waited in vain");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_signal_to_it_alone_stops_the_run_in_progress_too() {
    let place = place();
    let (child, arguments, _) = in_progress(&place);
    // SAFETY: no memory is involved, and the child was not waited for.
    assert_eq!(unsafe { libc::kill(i32::try_from(child.id()).unwrap(), libc::SIGTERM) }, 0);
    let finished = program::wait(child, &arguments).ends_with(&[130]);
    assert!(finished.stderr.contains("repeat the command to go on"), "{}", finished.stderr);
    assert!(log(&place).contains("stopped in phase"), "{}", log(&place));
}

#[test]
fn killed_it_leaves_no_run_behind() {
    let place = place();
    let (mut child, arguments, run) = in_progress(&place);
    place.run(&format!("{SUITE} {MORE}")).fails_naming(&["results/.lock", "another process"]);
    child.kill().unwrap();
    program::wait(child, &arguments).ended_by_a_signal();
    // What has ended has no command line, even if nobody has asked how.
    wait_until(|| fs::read(format!("/proc/{run}/cmdline")).unwrap_or_default().is_empty());
}

#[test]
fn every_bad_case_is_adapted_to_and_judged_on_all_images() {
    let place = place();
    let worst = "bench accuracy --suite office31 --data data --teachers teachers --out results --seeds 1 --worst \
        --adapt-steps 2 --mask-steps 4 --tune-steps 2 --json -- --batch-size 8 --holdout 0.3 --threads 1";
    let rows = outcomes(&place.run(worst).ends_with(&[0]).stdout);
    let cases: Vec<&str> = rows.iter().map(|row| row["case"].as_str().unwrap()).collect();
    let in_a_row = ["in-a-row"; 5];
    assert_eq!(cases, [&["few", "missing-class", "one-class", "noise", "sorted", "stream"][..], &in_a_row].concat());
    let all = 4 * PER_CLASS;
    for row in &rows {
        for figure in ["accuracy", "replaced"] {
            let right = row[figure].as_f64().unwrap() / 100.0 * all as f64;
            assert!((right - right.round()).abs() < 1e-6, "{figure}: {row}");
        }
        assert!(row["gate"]["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{row}");
    }
    let images: Vec<u64> = rows.iter().map(|row| row["images"].as_u64().unwrap()).collect();
    assert_eq!(images[..7], [32, 45, 19, 60, 60, 15, 12], "{images:?}");
    let table = String::from_utf8(place.bytes("results/worst.md")).unwrap();
    assert!(table.contains("| in-a-row 5 | 0 | 12 |"), "{table}");
    let one = worst.replace("--worst", "--worst --cases few,few");
    let again = outcomes(&place.run(&one).ends_with(&[0]).stdout);
    assert_eq!(again, rows, "what was done is not done again, and the other cases stay");
    let longer = outcomes(&place.run(&one.replace("--adapt-steps 2", "--adapt-steps 3")).ends_with(&[0]).stdout);
    assert_eq!(longer.len(), 1, "other settings are not beside it: {longer:?}");
    let kept = String::from_utf8(place.bytes("results/worst.jsonl")).unwrap();
    assert_eq!(outcomes(&kept), [rows, longer].concat(), "nor lost");
    place.run(&worst.replace("--worst", "--cases few")).fails_naming(&["--worst"]);
}
