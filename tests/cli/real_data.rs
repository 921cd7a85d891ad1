//! A published network on photographs, where they are at hand: `SECATEUR_SHARED` or `../shared`.

use std::fs;
use std::path::{Path, PathBuf};

use super::program;

/// Photographs of each class.
const PER_CLASS: usize = 8;
const CLASSES: [&str; 8] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse"];

fn shared() -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    std::env::var_os("SECATEUR_SHARED").map_or(beside, PathBuf::from)
}

#[test]
fn a_published_resnet_is_adapted_to_photographs() {
    let teacher = shared().join("teachers/cifar_resnet20-cifar10.safetensors");
    let photographs = shared().join("data/cifar10/test");
    if !teacher.exists() || !photographs.exists() {
        eprintln!("skipped: {} or {} is not there", teacher.display(), photographs.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for class in CLASSES {
        let to = folder.path().join("images").join(class);
        fs::create_dir_all(&to).unwrap();
        let mut files: Vec<PathBuf> =
            fs::read_dir(photographs.join(class)).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        for from in files.iter().take(PER_CLASS) {
            fs::copy(from, to.join(from.file_name().unwrap())).unwrap();
        }
    }
    fs::copy(teacher, folder.path().join("teacher.safetensors")).unwrap();
    let finished = program::run(
        folder.path(),
        "adapt --teacher teacher.safetensors --target images --out student.safetensors --json --batch-size 16 \
         --budget channels=0.4 --adapt-steps 2 --admp --mask-steps 2 --tune-steps 3",
    )
    .ends_with(&[0, 1]);
    let summary = finished.json();
    assert!(summary["teacher"]["accuracy"].as_f64().unwrap() > 75.0, "{summary}");
    let channels = |model: &str| summary[model]["channels"].as_u64().unwrap();
    assert_eq!(channels("student"), channels("teacher") * 6 / 10);
}
