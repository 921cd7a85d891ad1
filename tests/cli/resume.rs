//! Interrupted runs: whatever stops them, the resumed run ends with the same bytes.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use secateur::weights::TensorFile;
use serde_json::Value;

use super::program::{self, wait};
use super::teacher;
use super::workplace::Workplace;

/// Long enough to be caught in every phase; a checkpoint after every step.
const ADAPT: &str = "adapt --teacher teacher.safetensors --target images --out student.safetensors \
    --adapted-out adapted.safetensors --threads 1 --batch-size 16 --holdout 0.3 --budget channels=0.5 \
    --adapt-steps 40 --admp --mask-steps 40 --tune-steps 60 --checkpoint-every 0";
const CHECKPOINT: &str = "student.safetensors.checkpoint";
const PHASES: [&str; 3] = ["teacher", "prune", "fine_tune"];

/// Phase and number of steps done.
type Position = (usize, u64);

fn position(checkpoint: &Path) -> Option<Position> {
    let file = TensorFile::open(checkpoint).ok()?;
    let progress: Value = serde_json::from_str(&file.metadata()["secateur.checkpoint"]).unwrap();
    let phase = PHASES.iter().position(|phase| progress["phase"] == *phase).unwrap();
    Some((phase, progress["step"].as_u64().unwrap()))
}

/// Starts a run and waits until its checkpoint is at `goal` or behind it.
#[track_caller]
fn start_until(place: &Workplace, arguments: &str, goal: Position) -> (Child, Position) {
    let mut child = program::command(place.folder(), arguments).spawn().unwrap();
    let begun = Instant::now();
    loop {
        if let Some(at) = position(&place.path(CHECKPOINT)).filter(|at| *at >= goal) {
            return (child, at);
        }
        if child.try_wait().unwrap().is_some() || begun.elapsed() > Duration::from_secs(120) {
            child.kill().unwrap();
            panic!("{goal:?} was never seen\n{}", wait(child, arguments).stderr);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs to the end and returns the bytes of student and adapted teacher, accepted or not.
#[track_caller]
fn outcome(place: &Workplace, arguments: &str) -> (Vec<u8>, Vec<u8>) {
    place.run(arguments).ends_with(&[0, 1]);
    (place.outcome("student.safetensors"), place.outcome("adapted.safetensors"))
}

/// What [`ADAPT`] ends with when nothing stops it, computed once.
fn uninterrupted() -> &'static (Vec<u8>, Vec<u8>) {
    static OUTCOME: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    OUTCOME.get_or_init(|| outcome(&Workplace::new(), ADAPT))
}

#[test]
fn killed_in_every_phase_the_resumed_run_ends_with_the_same_bytes() {
    let (place, expected) = (Workplace::new(), uninterrupted());
    let mut arguments = ADAPT.to_string();
    let mut last = None;
    for (phase, step) in [(0, 3), (1, 5), (2, 7)] {
        let (mut child, seen) = start_until(&place, &arguments, (phase, step));
        child.kill().unwrap();
        let killed = wait(child, &arguments);
        killed.ended_by_a_signal();
        if let Some((phase, step)) = last {
            assert_resumed(&killed.stderr, phase, step);
        }
        last = Some(position(&place.path(CHECKPOINT)).unwrap());
        assert!(last >= Some(seen) && last.unwrap().0 == phase, "killed too late: {last:?}");
        arguments = format!("{ADAPT} --resume");
    }
    assert!(outcome(&place, &arguments) == *expected, "the resumed run differs from the uninterrupted one");
    assert!(!place.path(CHECKPOINT).exists());
}

#[test]
fn killed_between_rounds_the_resumed_run_ends_with_the_same_bytes() {
    let in_rounds = ADAPT.replace("--admp ", "");
    let expected = outcome(&Workplace::new(), &in_rounds);
    let place = Workplace::new();
    let mut arguments = in_rounds.clone();
    // Five rounds before the last, eight updates between: within one, before one, and after the last.
    for (phase, step) in [(0, 3), (1, 0), (1, 11), (1, 24), (1, 40), (2, 7)] {
        let (mut child, _) = start_until(&place, &arguments, (phase, step));
        child.kill().unwrap();
        wait(child, &arguments).ended_by_a_signal();
        arguments = format!("{in_rounds} --resume");
    }
    assert!(outcome(&place, &arguments) == expected, "the resumed run differs from the uninterrupted one");
}

#[test]
fn killed_without_distillation_the_bytes_stay_the_same() {
    let alone = format!("{} --no-distillation", ADAPT.replace("--admp ", ""));
    let expected = outcome(&Workplace::new(), &alone);
    let place = Workplace::new();
    let mut arguments = alone.clone();
    for goal in [(1, 11), (2, 7)] {
        let (mut child, _) = start_until(&place, &arguments, goal);
        child.kill().unwrap();
        wait(child, &arguments).ended_by_a_signal();
        arguments = format!("{alone} --resume");
    }
    assert!(outcome(&place, &arguments) == expected, "the resumed run differs from the uninterrupted one");
    // The end of a file is weights, the beginning also tells the settings.
    let weights = |bytes: &[u8]| bytes[bytes.len() - 64..].to_vec();
    let distilled = outcome(&Workplace::new(), &ADAPT.replace("--admp ", ""));
    assert!(weights(&expected.0) != weights(&distilled.0), "distillation changes nothing");
    assert!(weights(&expected.1) == weights(&distilled.1), "phase 1 is the same");
}

/// Steps of phase 2 that the progress file tells of, if it does.
fn pruned_steps(progress: &Path) -> Option<u64> {
    let text = fs::read_to_string(progress).ok()?;
    let told: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    told.iter().rev().find(|line| line["phase"] == "prune")?["step"].as_u64()
}

#[test]
fn sigterm_in_a_round_saves_the_updates_before_it() {
    let in_rounds = ADAPT.replace("--admp ", "").replace("--checkpoint-every 0", "--checkpoint-every 3600");
    let expected = outcome(&Workplace::new(), &in_rounds);
    let place = Workplace::new();
    let mut arguments = format!("{in_rounds} --progress progress");
    // Eight updates between rounds: just before the third and the fifth.
    for goal in [16, 32] {
        let child = program::command(place.folder(), &arguments).spawn().unwrap();
        let begun = Instant::now();
        while pruned_steps(&place.path("progress")) < Some(goal) {
            assert!(begun.elapsed() < Duration::from_secs(120), "step {goal} was never seen");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
        wait(child, &arguments).ends_with(&[130]).logs(&["stopped in phase prune after step", "--resume", CHECKPOINT]);
        let saved = position(&place.path(CHECKPOINT)).unwrap();
        assert_eq!(saved, (1, pruned_steps(&place.path("progress")).unwrap()), "no update is lost");
        arguments = format!("{in_rounds} --progress progress --resume");
    }
    assert!(outcome(&place, &arguments) == expected, "the resumed run differs from the uninterrupted one");
}

/// Fails unless the run went on where the checkpoint left it.
#[track_caller]
fn assert_resumed(log: &str, phase: usize, step: u64) {
    let name = ["adapt teacher", "prune", "fine-tune"][phase];
    let line = format!("phase started phase={name:?} step={step} ");
    assert!(log.contains(&line), "expected {line:?} in\n{log}");
}

#[test]
fn killed_under_a_budget_of_latency_the_bytes_stay_the_same() {
    let arguments = format!("{} --latency-table table.json", ADAPT.replace("channels=0.5", "latency=0.3"));
    let first = Workplace::new().with_wide_teacher();
    let expected = outcome(&first, &arguments);
    let place = Workplace::new().with_wide_teacher();
    place.write("table.json", first.bytes("table.json"));
    let (mut child, _) = start_until(&place, &arguments, (1, 20));
    child.kill().unwrap();
    wait(child, &arguments).ended_by_a_signal();
    // What the checkpoint holds is enough.
    fs::remove_file(place.path("table.json")).unwrap();
    assert!(outcome(&place, &format!("{arguments} --resume")) == expected, "the resumed run differs");
}

#[test]
fn killed_repeatedly_in_one_phase_the_bytes_stay_the_same() {
    let (place, expected) = (Workplace::new(), uninterrupted());
    let mut arguments = ADAPT.to_string();
    for step in [1, 12, 24] {
        let (mut child, _) = start_until(&place, &arguments, (1, step));
        child.kill().unwrap();
        wait(child, &arguments).ended_by_a_signal();
        arguments = format!("{ADAPT} --resume");
    }
    assert!(outcome(&place, &arguments) == *expected, "the resumed run differs from the uninterrupted one");
}

#[test]
fn sigterm_stops_with_a_checkpoint_and_the_resumed_run_ends_with_the_same_bytes() {
    let (place, expected) = (Workplace::new(), uninterrupted());
    let (child, _) = start_until(&place, ADAPT, (1, 2));
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let stopped = wait(child, ADAPT).ends_with(&[130]);
    stopped.logs(&["stopped in phase prune after step", "--resume", CHECKPOINT]);
    assert_eq!(stopped.stdout, "");
    let at = position(&place.path(CHECKPOINT)).unwrap();
    assert!(!place.path("student.safetensors").exists());

    let again = place.run(ADAPT).fails_naming(&[CHECKPOINT, "--resume", "--restart"]);
    assert_eq!(again.stdout, "");
    assert_eq!(position(&place.path(CHECKPOINT)), Some(at), "a refused command leaves the checkpoint alone");
    assert!(outcome(&place, &format!("{ADAPT} --resume")) == *expected, "the resumed run differs");
}

#[test]
fn restart_throws_the_checkpoint_away() {
    let (place, expected) = (Workplace::new(), uninterrupted());
    place.write(CHECKPOINT, "whatever is there");
    assert!(outcome(&place, &format!("{ADAPT} --restart")) == *expected);
}

#[test]
fn resume_without_a_checkpoint_starts_anew() {
    let place = Workplace::new();
    place.adapt("--resume").logs(&["no checkpoint, starting anew"]);
}

/// A workplace whose run was killed early in phase 2.
fn killed() -> Workplace {
    let place = Workplace::new();
    let (mut child, _) = start_until(&place, ADAPT, (1, 1));
    child.kill().unwrap();
    wait(child, ADAPT);
    place
}

#[test]
fn a_checkpoint_of_another_run_is_refused_and_kept() {
    let place = killed();
    let before = place.bytes(CHECKPOINT);
    let resume = format!("{ADAPT} --resume");
    place
        .run(&format!("{resume} --seed 9"))
        .fails_naming(&[CHECKPOINT, "the configuration differs, seed was 0 and is 9"]);
    let teacher_bytes = place.bytes("teacher.safetensors");
    teacher::write_untrained(&place.path("teacher.safetensors"), 4);
    place.run(&resume).fails_naming(&[CHECKPOINT, "the teacher differs"]);
    place.write("teacher.safetensors", teacher_bytes);
    fs::remove_file(place.path("images/ring/03.jpg")).unwrap();
    place.run(&resume).fails_naming(&[CHECKPOINT, "the target images differ"]);
    assert!(place.bytes(CHECKPOINT) == before);
}

#[test]
fn a_damaged_checkpoint_is_refused_by_name() {
    let place = killed();
    let whole = place.bytes(CHECKPOINT);
    for length in [0, 5, 200, whole.len() / 2, whole.len() - 1] {
        place.write(CHECKPOINT, &whole[..length]);
        place.run(&format!("{ADAPT} --resume")).fails_naming(&[CHECKPOINT]);
    }
    place.write(CHECKPOINT, place.bytes("teacher.safetensors"));
    place.run(&format!("{ADAPT} --resume")).fails_naming(&[CHECKPOINT, "not a checkpoint"]);
    assert!(!place.path("student.safetensors").exists());
}
