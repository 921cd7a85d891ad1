//! Classes of images and logits of raw tensors.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use secateur::graph::Graph;
use secateur::model::{Forward, Mode};
use secateur::rng::Rng;
use secateur::weights::{TensorFile, write_atomic};

use super::shapes::NAMES;
use super::teacher;
use super::workplace::{PER_CLASS, Workplace};

#[test]
fn raw_tensors_give_the_logits_of_the_library() {
    let place = Workplace::new();
    let mut rng = Rng::new(11);
    let classes: Vec<Tensor> = (0..NAMES.len()).map(|class| teacher::batch(class, 2, &mut rng)).collect();
    let images = Tensor::cat(&classes, 0).unwrap();
    let tensors = BTreeMap::from([("input".to_string(), images.clone())]);
    write_atomic(place.path("in.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    place.run("predict teacher.safetensors --input in.safetensors --output out.safetensors").ends_with(&[0]);

    let got = TensorFile::open(place.path("out.safetensors")).unwrap();
    assert!(got.names().eq(["logits"]));
    let got = got.read_tensor("logits", &Device::Cpu).unwrap();
    let graph = Graph::from_json(&teacher::graph_json()).unwrap();
    let want = Forward::new(&graph, teacher::params(), Mode::Eval).run(&images).unwrap().logits;
    assert_eq!(got.dims(), [2 * NAMES.len(), NAMES.len()]);
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (got, want) in values(&got).into_iter().zip(values(&want)) {
        assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "expected {want}, got {got}");
    }
}

#[test]
fn tensors_of_another_shape_or_name_are_refused() {
    let place = Workplace::new();
    let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    let ask = |name: &str, shape: &[usize]| {
        let tensors = BTreeMap::from([(name.to_string(), zeros(shape))]);
        write_atomic(place.path("in.safetensors"), &tensors, &BTreeMap::new()).unwrap();
        place.run("predict teacher.safetensors --input in.safetensors --output out.safetensors")
    };
    ask("input", &[2, 3, 12, 12])
        .fails_naming(&["in.safetensors: input: expected shape [N, 1, 12, 12]", "[2, 3, 12, 12]"]);
    ask("images", &[2, 1, 12, 12]).fails_naming(&["in.safetensors", "input"]);
    assert!(!place.path("out.safetensors").exists());
}

#[test]
fn shapes_are_recognised() {
    let place = Workplace::new();
    let files = NAMES.map(|name| format!("images/{name}/00.png images/{name}/01.jpg")).join(" ");
    let answers = place.run(&format!("predict teacher.safetensors {files} --top 4 --json")).ends_with(&[0]).json();
    let answers = answers["predictions"].as_array().unwrap();
    assert_eq!(answers.len(), 2 * NAMES.len());
    for (answer, file) in answers.iter().zip(files.split(' ')) {
        assert_eq!(answer["image"], file);
        let classes = answer["classes"].as_array().unwrap();
        assert!(file.contains(classes[0]["class"].as_str().unwrap()), "{answer}");
        let probs: Vec<f64> = classes.iter().map(|class| class["probability"].as_f64().unwrap()).collect();
        assert!(probs.is_sorted_by(|a, b| a >= b) && (probs.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{probs:?}");
    }
}

#[test]
fn a_broken_image_does_not_keep_the_others_from_their_answer() {
    let place = Workplace::new();
    place.write("broken.png", "no image");
    let files = "images/ring/00.png broken.png missing.png images/rows/00.png";
    let finished = place.run(&format!("predict teacher.safetensors {files}")).ends_with(&[2]);
    let answered: Vec<&str> = finished.stdout.lines().filter_map(|line| line.split_once(": ")).map(|l| l.0).collect();
    assert_eq!(answered, ["images/ring/00.png", "images/rows/00.png"]);
    finished.logs(&["broken.png: ", "missing.png: cannot open"]);

    let finished = place.run(&format!("predict teacher.safetensors {files} --json")).ends_with(&[2]);
    let json = finished.json();
    let failed: Vec<bool> = json["predictions"].as_array().unwrap().iter().map(|p| p.get("error").is_some()).collect();
    assert_eq!(failed, [false, true, true, false]);
}

#[test]
fn a_folder_stands_for_its_images() {
    let place = Workplace::new();
    let told = |what: &str| place.run(&format!("predict teacher.safetensors {what}")).ends_with(&[0]).stdout;
    let all = told("images/ring images/rows/00.png");
    assert_eq!(all.lines().count(), PER_CLASS + 1);
    assert!(all.contains(told("images/ring/00.png").trim()) && all.contains(told("images/rows/00.png").trim()));
    std::fs::copy(place.path("images/ring/00.png"), place.path("images/beside.png")).unwrap();
    assert_eq!(told("images").lines().count(), 4 * PER_CLASS + 1, "in the folder and below");
    std::fs::create_dir(place.path("empty")).unwrap();
    place.run("predict teacher.safetensors empty images/rows/00.png").ends_with(&[2]).logs(&["empty: "]);
}
