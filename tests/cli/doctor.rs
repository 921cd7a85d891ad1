//! What the program says of the board that runs the tests.

use std::fs;

use super::program::{keys, run};

#[test]
fn every_finding_is_told_to_people_and_to_machines() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("secateur.toml"), "[serve]\nstore = \"models/of/this/board\"\n").unwrap();
    // What is found depends on the board.
    let answer = run(place.path(), "doctor --json --config secateur.toml").ends_with(&[0, 1]).json();
    let expected = ["version", "problems", "findings", "board", "system", "memory", "nvidia", "features", "isa"];
    assert_eq!(keys(&answer), expected);
    let findings = answer["findings"].as_array().unwrap();
    for finding in findings {
        let advised = finding["advice"].is_string();
        assert_eq!(advised, finding["level"] != "good", "{finding}");
    }
    let checks: Vec<&str> = findings.iter().map(|f| f["check"].as_str().unwrap()).collect();
    for check in
        ["board", "processors", "features", "governor", "temperature", "throttling", "memory", "swap", "cuda", "clock"]
    {
        assert!(checks.contains(&check), "{check} is missing in {checks:?}");
    }
    let table = run(place.path(), "doctor --config secateur.toml").ends_with(&[0, 1]).stdout;
    assert!(table.contains("models/of/this/board: not there yet, can be made"), "{table}");
    assert!(!place.path().join("models").exists(), "nothing is made");
}

#[test]
fn a_folder_that_cannot_be_written_to_is_a_problem() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("file"), "").unwrap();
    let finished = run(place.path(), "doctor file").ends_with(&[1]);
    finished.logs(&["this board has problems", "folder"]);
    assert!(finished.stdout.contains("problem  folder      file: file is not a folder"), "{}", finished.stdout);
}

#[test]
fn a_daemons_folders_files_and_sensors_are_checked() {
    let place = tempfile::tempdir().unwrap();
    let text = "[daemon]\nfolder = \"own\"\nteacher = \"none.safetensors\"\nboard_root = \"nowhere\"\n";
    fs::write(place.path().join("secateur.toml"), text).unwrap();
    let table = run(place.path(), "doctor --config secateur.toml").ends_with(&[1]).stdout;
    for part in
        ["own/reservoir: not there yet", "own/inbox: not there yet", "problem  teacher", "none.safetensors", "guards"]
    {
        assert!(table.contains(part), "{part}: {table}");
    }
    fs::write(place.path().join("secateur.toml"), "[adapt]\nbudget = \"all\"\n").unwrap();
    run(place.path(), "doctor --config secateur.toml").fails_naming(&["adapt.budget"]);
}

#[test]
fn a_wrong_configuration_is_an_error() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("secateur.toml"), "[serve]\nstor = 1\n").unwrap();
    run(place.path(), "doctor --config secateur.toml").fails_naming(&["secateur.toml", "stor"]);
}
