//! Mistakes on the command line and in files: exit code 2 and a message that names the thing.

use std::fs;

use secateur::weights::{ModelDescription, write_atomic};

use super::program;
use super::workplace::{JOB, Workplace};
use super::{shapes, teacher};

#[test]
fn every_command_has_help_and_the_program_a_version() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["", "adapt", "eval", "predict", "inspect", "export", "demo"] {
        let finished = program::run(folder.path(), &format!("{command} --help")).ends_with(&[0]);
        assert!(finished.stdout.contains("Usage: secateur"), "{command}: {}", finished.stdout);
    }
    let version = program::run(folder.path(), "--version").ends_with(&[0]).stdout;
    assert_eq!(version.trim(), format!("secateur {}", env!("CARGO_PKG_VERSION")));
    program::run(folder.path(), "").ends_with(&[2]);
    program::run(folder.path(), "prune").fails_naming(&["prune"]);
}

#[test]
fn missing_files_are_named() {
    let place = Workplace::new();
    for arguments in [
        JOB.replace("teacher.safetensors", "absent.safetensors"),
        JOB.replace("--target images", "--target absent"),
        format!("{JOB} --source absent"),
        "eval absent.safetensors images".into(),
        "eval teacher.safetensors absent".into(),
        "inspect absent.safetensors".into(),
        "inspect teacher.safetensors --graph absent.json".into(),
        "predict absent.safetensors images/rows/00.png".into(),
        "predict teacher.safetensors --input absent.safetensors --output out.safetensors".into(),
    ] {
        place.run(&arguments).fails_naming(&["absent"]);
    }
    assert!(!place.path("student.safetensors").exists());
}

#[test]
fn a_crowd_of_threads_is_refused() {
    let crowd = JOB.replace("--threads 1", "--threads 60000");
    Workplace::new().run(&crowd).fails_naming(&["--threads 60000", "for each processor"]);
}

#[test]
fn outputs_that_cannot_be_written_are_refused_before_the_work() {
    let place = Workplace::new();
    place.write("student.safetensors", "the student in use");
    place.write("student.safetensors.tmp", "somebody's file");
    place.write("student.safetensors.refused", "a teacher");
    for (more, reason) in [
        ("--report images", "--report images: expected a file, got a folder"),
        ("--adapted-out images", "--adapted-out images: expected a file, got a folder"),
        ("--checkpoint images", "--checkpoint images: expected a file, got a folder"),
        ("--adapted-out teacher.safetensors", "teacher.safetensors: would overwrite what --teacher reads"),
        ("--report /dev/null", "--report /dev/null: expected a file, got a pipe, socket or device"),
        ("--adapted-out teacher.safetensors/adapted", "teacher.safetensors: cannot create folder"),
        ("--report student.safetensors", "--report student.safetensors: expected another file than --out"),
        ("--checkpoint student.safetensors", "--checkpoint student.safetensors: expected another file than --out"),
        ("--adapted-out report.json", "--adapted-out report.json: expected another file than --report"),
        (
            "--adapted-out images/../report.json",
            "--adapted-out images/../report.json: expected another file than --report",
        ),
        ("--adapted-out student.safetensors.refused", "expected another file than a refused --out"),
        ("--progress report.refused.json", "expected another file than a refused --report"),
        (
            "--teacher student.safetensors.refused",
            "a refused --out student.safetensors.refused: would overwrite what --teacher reads",
        ),
    ] {
        let job =
            if more.starts_with("--teacher") { JOB.replace("--teacher teacher.safetensors", "") } else { JOB.into() };
        let finished = place.run(&format!("{job} {more}")).fails_naming(&[reason]);
        assert!(!finished.stderr.contains("adaptation started"), "{more}: refused only after work");
    }
    place
        .run(&JOB.replace("--out student.safetensors", "--out images"))
        .fails_naming(&["--out images: expected a file"]);
    assert_eq!(place.bytes("student.safetensors"), b"the student in use");
    assert_eq!(place.bytes("student.safetensors.tmp"), b"somebody's file");
}

#[test]
fn mistaken_values_are_named() {
    let place = Workplace::new();
    for (more, parts) in [
        ("--batch-size 1", ["batch_size", "got 1"]),
        ("--holdout 0.95", ["holdout", "0.95"]),
        ("--lr-scale nan", ["--lr-scale", "NaN"]),
        ("--lr-scale=-1", ["--lr-scale", "-1"]),
        ("--min-keep 1.5", ["min_keep", "1.5"]),
        ("--cap conv4", ["--cap", "LAYER=FRACTION"]),
        ("--cap nowhere=0.5", ["nowhere", "cap"]),
        ("--device tpu", ["--device", "tpu"]),
        ("--device cuda:x", ["--device", "cuda:x"]),
        ("--soft-mask maybe", ["--soft-mask", "maybe"]),
        ("--resume --restart", ["--resume", "--restart"]),
        ("--no-prune --budget channels=0.5", ["--no-prune", "--budget"]),
        ("--class-names a,b", ["class_names", "got 2"]),
        ("--input-size 12,12", ["--input-size", "three numbers"]),
        ("--mean 2", ["mean", "teacher.safetensors"]),
    ] {
        place.run(&format!("{JOB} {more}")).fails_naming(&parts);
    }
}

#[test]
fn mistaken_budgets_are_named() {
    let place = Workplace::new();
    for (budget, reason) in [
        ("channels", "expected MEASURE=AMOUNT"),
        ("channels=most", "is not a number"),
        ("weights=0.5", "unknown measure"),
        ("channels=-1", "non-negative"),
        ("channels=0.99", "budget"),
        ("params=10", "budget"),
    ] {
        let finished = place.run(&format!("{JOB} --budget {budget}")).fails_naming(&[reason]);
        assert!(!finished.stderr.contains("phase started"), "{budget}: refused only after work");
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn cuda_is_refused_by_a_build_without_it() {
    let place = Workplace::new();
    for arguments in [JOB, "eval teacher.safetensors images", "predict teacher.safetensors images/rows/00.png", "demo"]
    {
        place.run(&format!("{arguments} --device cuda:0")).fails_naming(&["cuda:0", "no CUDA"]);
    }
}

#[test]
fn unknown_or_unfitting_architectures_are_named() {
    let place = Workplace::new();
    let write = |description: ModelDescription| {
        write_atomic(place.path("other.safetensors"), teacher::params(), &description.to_metadata()).unwrap();
        place.run("inspect other.safetensors")
    };
    let named = |arch: &str| ModelDescription { arch: Some(arch.into()), ..ModelDescription::default() };
    write(named("resnet19")).fails_naming(&["other.safetensors", "resnet19", "resnet18"]);
    write(named("resnet18")).fails_naming(&["other.safetensors"]);
    write(ModelDescription::default()).fails_naming(&["other.safetensors", "--arch"]);

    let mut graph = teacher::graph_json();
    graph["nodes"][4]["op"] = "convolution".into();
    write(teacher::description(graph)).fails_naming(&["other.safetensors", "conv2", "convolution"]);
    let mut graph = teacher::graph_json();
    graph["nodes"][4]["out_channels"] = 9.into();
    write(teacher::description(graph)).fails_naming(&["other.safetensors"]);
}

#[test]
fn a_graph_file_serves_a_teacher_without_metadata() {
    let place = Workplace::new();
    write_atomic(place.path("bare.safetensors"), teacher::params(), &Default::default()).unwrap();
    place.write("net.json", teacher::graph_json().to_string());
    let flags = format!("--graph net.json --class-names {} --mean 0.3 --std 0.3", shapes::NAMES.join(","));
    let bare = place.run(&format!("eval bare.safetensors images --json {flags}")).ends_with(&[0]).json();
    let full = place.run("eval teacher.safetensors images --json").ends_with(&[0]).json();
    assert_eq!(bare["correct"], full["correct"]);
    place.write("net.json", "{");
    place.run(&format!("eval bare.safetensors images {flags}")).fails_naming(&["net.json"]);
}

#[test]
fn truncated_teachers_are_named() {
    let place = Workplace::new();
    let whole = place.bytes("teacher.safetensors");
    for length in [0, 7, 100, whole.len() - 1] {
        place.write("teacher.safetensors", &whole[..length]);
        place.run(JOB).fails_naming(&["teacher.safetensors"]);
    }
    fs::remove_file(place.path("teacher.safetensors")).unwrap();
    fs::create_dir(place.path("teacher.safetensors")).unwrap();
    place.run(JOB).fails_naming(&["teacher.safetensors"]);
}

#[test]
fn eval_tells_classes_and_confusion_on_request() {
    let place = Workplace::new();
    let json = place.run("eval teacher.safetensors images --json --per-class --confusion").ends_with(&[0]).json();
    let confusion = json["confusion"].as_array().unwrap();
    let diagonal: u64 = (0..4).map(|c| confusion[c][c].as_u64().unwrap()).sum();
    assert_eq!(diagonal, json["correct"].as_u64().unwrap());
    let names: Vec<&str> = json["per_class"].as_array().unwrap().iter().map(|c| c["class"].as_str().unwrap()).collect();
    assert_eq!(names, shapes::NAMES);
    let text = place.run("eval teacher.safetensors images --per-class --confusion").ends_with(&[0]).stdout;
    assert!(text.contains("accuracy") && shapes::NAMES.iter().all(|name| text.contains(name)), "{text}");
}
