//! The demo on its embedded data.

use super::adapt::assert_summary_keys;
use super::program;

#[test]
fn the_demo_prints_its_summary_and_keeps_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let finished = program::run(folder.path(), "demo --steps 1 --images 16 --json --out-dir kept").ends_with(&[0, 1]);
    let summary = finished.json();
    assert_summary_keys(&summary);
    assert_eq!(summary["gate"]["accepted"], !finished.stderr.contains("the gate refused the student"));
    assert!(summary["teacher"]["accuracy"].as_f64().is_some_and(|a| a > 20.0 && a < 90.0), "{summary}");
    let channels = |model: &str| summary[model]["channels"].as_u64().unwrap();
    assert!(channels("student") * 10 <= channels("teacher") * 4, "{summary}");
    // Two images held out are too few to judge by, and what is refused goes by another name.
    assert_eq!(summary["gate"]["accepted"], false);
    for file in ["teacher.safetensors", "adapted.safetensors.refused", "report.refused.json", "report.refused.html"] {
        assert!(folder.path().join("kept").join(file).exists(), "{file}");
    }
    assert_eq!(finished.stderr.matches(" meets 16 digits ").count(), 1, "{}", finished.stderr);
    program::run(folder.path(), "inspect kept/adapted.safetensors.refused").ends_with(&[0]);
    program::run(folder.path(), "demo --images 3").fails_naming(&["at least 8 readable images, got 3"]);
}
