//! The main job: what it writes and prints.

use serde_json::Value;

use super::program::keys;
use super::teacher::PRUNABLE;
use super::workplace::{JOB, PER_CLASS, SHORT, Workplace};

const FIGURES: [&str; 6] = ["accuracy", "channels", "params", "macs", "bytes", "latency_ms"];

/// Fails unless `summary` has the keys that `adapt --json` and `demo --json` promise.
#[track_caller]
pub fn assert_summary_keys(summary: &Value) {
    assert_eq!(keys(summary), ["teacher", "adapted", "student", "wall_s", "peak_rss_mb", "gate"]);
    for model in ["teacher", "adapted", "student"] {
        assert_eq!(keys(&summary[model]), FIGURES, "{model}");
    }
    assert_eq!(keys(&summary["gate"]), ["accepted", "reason"]);
}

#[test]
fn the_student_can_be_inspected_measured_and_asked() {
    let place = Workplace::new();
    let summary = place.adapt("--json --adapted-out adapted.safetensors").json();
    assert_summary_keys(&summary);
    assert_eq!(summary["gate"]["accepted"], true);
    assert!(summary["wall_s"].as_f64().unwrap() > 0.0 && summary["peak_rss_mb"].as_u64().unwrap() > 0);
    assert!(!place.path("student.safetensors.checkpoint").exists(), "a finished run needs no checkpoint");

    for (model, file) in [("teacher", "teacher"), ("adapted", "adapted"), ("student", "student")] {
        let eval = place.run(&format!("eval {file}.safetensors images --json")).ends_with(&[0]).json();
        assert_eq!(keys(&eval), ["model", "images", "correct", "accuracy"]);
        assert_eq!((&eval["model"], &eval["images"]), (&format!("{file}.safetensors").into(), &(4 * PER_CLASS).into()));
        let percent = 100.0 * eval["correct"].as_f64().unwrap() / (4 * PER_CLASS) as f64;
        assert!((eval["accuracy"].as_f64().unwrap() - percent).abs() < 1e-9, "{eval}");
        assert_eq!(eval["accuracy"], summary[model]["accuracy"], "{model}");

        let inspect = place.run(&format!("inspect {file}.safetensors --json")).ends_with(&[0]).json();
        for key in ["arch", "params", "macs", "channels", "groups", "layers"] {
            assert!(keys(&inspect).contains(&key), "{key} is missing");
        }
        for key in ["params", "macs", "channels", "bytes"] {
            assert_eq!(inspect[key], summary[model][key], "{model} {key}");
        }
    }
    let best = place.run("predict student.safetensors images/rows/00.png --top 2 --json").ends_with(&[0]).json();
    assert_eq!(best["predictions"][0]["classes"].as_array().unwrap().len(), 2);
}

#[test]
fn the_report_holds_every_phase_and_its_losses() {
    let place = Workplace::new();
    let summary = place.adapt("--json").json();
    let report = place.report();
    assert_eq!(report["student"], summary["student"]);
    let inputs = &report["inputs"];
    assert_eq!((&inputs["teacher"], &inputs["target"]), (&"teacher.safetensors".into(), &"images".into()));
    assert_eq!(inputs["class_names"].as_array().unwrap().len(), 4);
    let page = String::from_utf8(place.bytes("report.html")).unwrap();
    assert!(page.contains("teacher.safetensors, adapted to images, by secateur"));
    assert!(page.contains("Classes among the images"));
    assert!(page.contains("channels chosen by ADMP, student trained by distillation"), "{page}");
    assert!(report["surgery_difference"].as_f64().unwrap() <= 1e-4);
    let phases = report["phases"].as_array().unwrap();
    let expected =
        [("teacher", 6, "information_maximisation"), ("prune", 20, "imitation"), ("fine_tune", 200, "imitation")];
    assert_eq!(phases.len(), expected.len());
    for (phase, (name, steps, loss)) in phases.iter().zip(expected) {
        assert_eq!((&phase["phase"], &phase["steps"]), (&name.into(), &steps.into()));
        let found = keys(&phase["metrics"]);
        assert!(found.contains(&loss), "{name}: expected {loss} among {found:?}");
        let losses = phase["metrics"][loss].as_array().unwrap();
        assert!(losses.len() == steps && losses.iter().all(Value::is_f64), "{name}: {losses:?}");
    }
    let images = &report["images"];
    assert_eq!(images["train"].as_u64().unwrap() + images["held_out"].as_u64().unwrap(), 4 * PER_CLASS as u64);
    assert_eq!(images["held_out"], report["gate"]["images"]);
}

#[test]
fn a_channels_budget_is_met_exactly_and_the_file_tells_the_widths_before() {
    let place = Workplace::new();
    let summary = place.adapt("--json").json();
    assert_eq!(summary["teacher"]["channels"], PRUNABLE);
    assert_eq!(summary["student"]["channels"], PRUNABLE / 2);
    let inspect = place.run("inspect student.safetensors --json").ends_with(&[0]).json();
    let layers = inspect["layers"].as_array().unwrap();
    let widths = |name: &str| {
        let layer = layers.iter().find(|layer| layer["name"] == name).unwrap();
        (layer["channels_before"].as_u64().unwrap(), layer["shape"][0].as_u64().unwrap())
    };
    for tied in ["conv1", "conv3"] {
        assert_eq!(widths(tied), (8, 8));
    }
    let ((before2, after2), (before4, after4)) = (widths("conv2"), widths("conv4"));
    assert_eq!((before2, before4, after2 + after4), (8, 16, PRUNABLE / 2));
    let groups = place.report()["groups"].clone();
    let after = groups.as_array().unwrap().iter().map(|group| group["after"].as_u64().unwrap());
    assert_eq!(after.collect::<Vec<_>>(), [after2, after4]);
}

#[test]
fn absolute_budgets_are_kept() {
    for (budget, key, most) in
        [("macs=150k", "macs", 150_000), ("params=2k", "params", 2000), ("bytes=8kB", "bytes", 8000)]
    {
        let place = Workplace::new();
        let more = "--json --scope all --no-admm --soft-mask off --importance magnitude";
        let summary = place.run(&format!("{JOB} {SHORT} --budget {budget} {more}"));
        let left = summary.ends_with(&[0, 1]).json()["student"][key].as_u64().unwrap();
        assert!(left <= most && left > most * 3 / 4, "{budget}: {left} left");
    }
}

#[test]
fn without_pruning_the_student_is_the_adapted_teacher() {
    let place = Workplace::new();
    let summary = place.run(&format!("{JOB} {SHORT} --no-prune --json")).ends_with(&[0]).json();
    assert_eq!(summary["student"]["channels"], PRUNABLE);
    assert_eq!(summary["student"]["accuracy"], summary["adapted"]["accuracy"]);
}

#[test]
fn a_student_can_be_pruned_again() {
    let place = Workplace::new();
    place.adapt("");
    let again = "adapt --teacher student.safetensors --target images --out smaller.safetensors --budget channels=0.5";
    let summary = place.run(&format!("{again} {SHORT} --threads 1 --json")).ends_with(&[0, 1]).json();
    assert_eq!(summary["student"]["channels"], PRUNABLE / 4);
}

#[test]
fn flat_folders_have_no_accuracy() {
    let place = Workplace::new();
    std::fs::create_dir(place.path("flat")).unwrap();
    for (index, file) in ["block/00.png", "rows/01.jpg", "ring/02.png", "columns/03.jpg"].repeat(4).iter().enumerate() {
        let extension = &file[file.len() - 3..];
        place.write(&format!("flat/{index}.{extension}"), place.bytes(&format!("images/{file}")));
    }
    let arguments = JOB.replace("--target images", "--target flat");
    let summary = place.run(&format!("{arguments} {SHORT} --json")).ends_with(&[0, 1]).json();
    assert!(summary["teacher"]["accuracy"].is_null() && summary["student"]["accuracy"].is_null(), "{summary}");
    place
        .run("eval teacher.safetensors flat")
        .fails_naming(&["flat: expected images in sub-folders", "block, columns"]);
}

#[test]
fn without_admp_channels_go_in_rounds() {
    let place = Workplace::new();
    let job = "--batch-size 16 --holdout 0.3 --adapt-steps 6 --budget channels=0.5 --json";
    let run = |steps: &str| {
        let summary = place.run(&format!("{JOB} {job} {steps}")).ends_with(&[0]).json();
        assert_eq!(summary["student"]["channels"], PRUNABLE / 2);
        let report = place.report();
        assert!(report["surgery_difference"].as_f64().unwrap() <= 1e-4);
        report["phases"].as_array().unwrap().clone()
    };
    let names = |phases: &[Value]| phases.iter().map(|phase| phase["phase"].clone()).collect::<Vec<_>>();
    let phases = run("--mask-steps 20 --tune-steps 200");
    assert_eq!(names(&phases), ["teacher", "prune", "fine_tune"]);
    let kept: Vec<u64> = (phases[1]["metrics"]["entries_kept"].as_array().unwrap().iter())
        .map(|kept| kept.as_f64().unwrap() as u64)
        .collect();
    assert_eq!(kept.len(), 20);
    assert!(kept[0] < PRUNABLE && kept[19] > PRUNABLE / 2, "the last round comes after: {kept:?}");
    let rounds = kept.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!(rounds == 4 && kept.is_sorted_by(|a, b| a >= b), "{kept:?}");
    let at_once = run("--mask-steps 0 --tune-steps 220");
    assert_eq!(names(&at_once), ["teacher", "fine_tune"]);
    for masks in ["--no-admm", "--soft-mask off"] {
        place.run(&format!("{JOB} {masks}")).fails_naming(&["--admp"]);
    }
}

#[test]
fn a_student_can_learn_without_its_teachers_answers() {
    let place = Workplace::new();
    let in_rounds = SHORT.replace("--admp ", "");
    let tcp = "--budget channels=0.5 --importance transfer --no-distillation --report told.json";
    place.run(&format!("{JOB} {in_rounds} {tcp}")).ends_with(&[0, 1]);
    let page = String::from_utf8(place.bytes("told.html")).unwrap();
    let how = "channels chosen in rounds by the Taylor term of phase 1's loss, student trained by phase 1's loss";
    assert!(page.replace("&#39;", "'").contains(how), "{page}");
    let report: Value = serde_json::from_slice(&place.bytes("told.json")).unwrap();
    assert_eq!(report["config"]["distillation"], false);
    for phase in &report["phases"].as_array().unwrap()[1..] {
        let metrics = keys(&phase["metrics"]);
        assert!(metrics.contains(&"transfer") && !metrics.contains(&"imitation"), "{metrics:?}");
    }
    for clash in ["--admp", "--no-prune"] {
        place.run(&format!("{JOB} --no-distillation {clash}")).fails_naming(&[clash, "--no-distillation"]);
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let place = Workplace::new();
    let student = |more: &str| {
        place.adapt(more);
        (place.bytes("student.safetensors"), place.bytes("adapted.safetensors"))
    };
    let first = student("--adapted-out adapted.safetensors --seed 5");
    assert!(first == student("--adapted-out adapted.safetensors --seed 5"), "two runs of one seed differ");
    let other = student("--adapted-out adapted.safetensors --seed 6");
    assert!(first.0 != other.0 && first.1 != other.1, "the seed changes nothing");
}

#[test]
fn a_memory_limit_is_planned_before_the_start() {
    let place = Workplace::new();
    place.run(&format!("{JOB} {SHORT} --memory 600")).fails_naming(&["expected a size of at least 1MB", "600 bytes"]);
    let refused = place.run(&format!("{JOB} {SHORT} --memory 2MB"));
    refused.fails_naming(&["memory: expected at least", "with 16 images per step, got 2MB"]);
    place.run(&format!("{JOB} {SHORT} --memory much")).fails_naming(&["expected a size such as 600MB"]);
    let limited = place.run(&format!("{JOB} {SHORT} --memory 900MB --json")).ends_with(&[0, 1]);
    limited.logs(&["memory planned", "limit_mb=900", "parts=1", "training expected to take_s="]);
    assert!(limited.json()["peak_rss_mb"].as_u64().unwrap() <= 900);
}

#[test]
fn training_steps_keep_to_the_limit_by_recomputing_and_by_parts() {
    let place = Workplace::new();
    let bench = |more: &str| {
        let steps = "--arch efficientnet_lite0 --size 96 --batch 8 --steps 2 --threads 2";
        place.run(&format!("bench adapt {steps} --json {more}")).ends_with(&[0]).json()
    };
    let whole = bench("");
    let planned = whole["planned_mb"].as_u64().unwrap();
    assert!(whole["parts"] == 1 && whole["peak_rss_mb"].as_u64().unwrap() <= planned, "{whole}");
    let told = whole["peak_rss_mb"].as_f64().unwrap() / whole["expected_mb"].as_f64().unwrap();
    assert!((0.8..1.2).contains(&told), "{told}: {whole}");
    assert!(whole["expected_images_per_s"].as_f64().unwrap() > 0.0, "{whole}");
    let peak = |of: &serde_json::Value| of["peak_rss_mb"].as_u64().unwrap();
    for (limit, in_parts) in [(planned - 30, false), (planned - 60, true)] {
        let limited = bench(&format!("--memory {limit}MB"));
        assert!(limited["recomputes"] == true || in_parts, "{limited}");
        assert_eq!(limited["parts"].as_u64().unwrap() > 1, in_parts, "{limited}");
        assert!(peak(&limited) <= limit && peak(&limited) < peak(&whole), "{whole} {limited}");
    }
}

#[test]
fn fewer_layers_can_be_trained() {
    let place = Workplace::new();
    for scope in ["head", "bn", "last:2"] {
        place.run(&format!("{JOB} {SHORT} --budget channels=0.5 --train {scope}")).ends_with(&[0, 1]);
        assert_eq!(place.report()["config"]["train"], scope);
    }
    place.run(&format!("{JOB} {SHORT} --train last:99")).fails_naming(&["train: last:99: expected at most last:"]);
    place.run(&format!("{JOB} {SHORT} --train some")).fails_naming(&["expected all, head, bn or last:N", "some"]);
}
