//! Files that are no images.

use std::fs;

use super::workplace::{JOB, PER_CLASS, Workplace};

#[test]
fn broken_images_are_named_and_counted_and_the_rest_is_used() {
    let place = Workplace::new();
    let jpeg = place.bytes("images/ring/01.jpg");
    place.write("images/block/empty.png", "");
    place.write("images/ring/half.jpg", &jpeg[..jpeg.len() / 2]);
    place.write("images/rows/text.png", "these are words");
    let finished = place.adapt("");
    let report = place.report();
    let broken = report["images"]["broken"].as_array().unwrap();
    let files = ["images/block/empty.png", "images/ring/half.jpg", "images/rows/text.png"];
    assert_eq!(broken.iter().map(|entry| entry[0].as_str().unwrap()).collect::<Vec<_>>(), files);
    assert!(broken.iter().all(|entry| !entry[1].as_str().unwrap().is_empty()), "{broken:?}");
    finished.logs(&files);
    finished.logs(&["broken=3"]);
    let images = &report["images"];
    assert_eq!(images["train"].as_u64().unwrap() + images["held_out"].as_u64().unwrap(), 4 * PER_CLASS as u64);
}

#[test]
fn a_folder_of_nothing_but_broken_images_is_an_error() {
    let place = Workplace::new();
    fs::create_dir(place.path("junk")).unwrap();
    (0..20).for_each(|index| place.write(&format!("junk/{index:02}.png"), "junk"));
    let arguments = JOB.replace("--target images", "--target junk");
    place.run(&arguments).fails_naming(&["junk: expected a usable image", "20 of 20 broken", "junk/00.png"]);
    assert!(!place.path("student.safetensors").exists() && !place.path("report.json").exists());
}

#[test]
fn too_few_images_are_an_error() {
    let place = Workplace::new();
    fs::create_dir(place.path("few")).unwrap();
    (0..7).for_each(|index| place.write(&format!("few/{index}.png"), place.bytes("images/rows/00.png")));
    let arguments = JOB.replace("--target images", "--target few");
    place.run(&arguments).fails_naming(&["few: expected at least 8 readable images, got 7"]);
}
