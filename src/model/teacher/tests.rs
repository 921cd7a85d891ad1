//! Loading: real files, round trips, fallbacks, and each refusal.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde_json::json;

use super::*;
use crate::model::testing::{random_images, random_params, values};
use crate::model::{CompactModel, Forward, Mode, Provenance};
use crate::rng::Rng;
use crate::weights::test_support::teachers;

type Metadata = [(&'static str, &'static str)];

fn lenet(classes: usize) -> Graph {
    arch::build("lenet_bn", &ArchOptions { num_classes: classes, input: [1, 28, 28] }).unwrap()
}

/// Loads a lenet of seven classes, whose file carries `metadata`.
fn load(metadata: &Metadata, flags: ModelDescription) -> Result<Teacher> {
    load_params(random_params(&lenet(7), &mut Rng::new(1)), metadata, flags)
}

fn load_params(params: Params, metadata: &Metadata, flags: ModelDescription) -> Result<Teacher> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("teacher.safetensors");
    let metadata: BTreeMap<String, String> = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    weights::write_atomic(&path, &params, &metadata).unwrap();
    Teacher::load(&path, flags, &Device::Cpu)
}

/// The refusal of a lenet with `metadata`; every one names the file.
fn refusal(metadata: &Metadata, flags: ModelDescription) -> String {
    let error = load(metadata, flags).unwrap_err();
    assert!(matches!(error, Error::Weights { .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("teacher.safetensors: "), "{message}");
    message
}

fn nothing() -> ModelDescription {
    ModelDescription::default()
}

#[test]
fn trained_teachers_load_and_answer() {
    let Some(folder) = teachers() else { return };
    for (name, classes) in [
        ("cifar_resnet20-cifar10", 10),
        ("cifar_resnet56-cifar10", 10),
        ("efficientnet_lite0-office31-amazon", 31),
        ("efficientnet_lite0-office31-webcam", 31),
    ] {
        let path = folder.join(format!("{name}.safetensors"));
        if !path.is_file() {
            println!("skipped: {} is absent", path.display());
            continue;
        }
        let teacher = Teacher::load(&path, nothing(), &Device::Cpu).unwrap();
        assert_eq!((teacher.graph.num_classes(), teacher.info.class_names.len()), (classes, classes));
        assert_eq!(teacher.sha256.len(), 64);
        let images = random_images(&teacher.graph, 2, &mut Rng::new(1));
        let logits = Forward::new(&teacher.graph, &teacher.params, Mode::Eval).run(&images).unwrap().logits;
        assert_eq!(logits.dims(), [2, classes]);
        assert!(values(&logits).iter().all(|v| v.is_finite()), "{name}");
    }
}

#[test]
fn a_saved_student_loads_as_a_teacher_and_saves_to_the_same_bytes() {
    let graph = crate::graph::testing::random_graph(11);
    let mut rng = Rng::new(1);
    let channels = graph.input_shape()[0];
    let calibration = Calibration { images: 3, ranges: BTreeMap::from([("input".to_string(), [-1.5, 2.25])]) };
    let model = CompactModel {
        int8: Some(calibration.clone()),
        params: random_params(&graph, &mut rng),
        info: ModelInfo {
            class_names: ["a, b", "ü", "[c]"].map(String::from).to_vec(),
            preprocess: Preprocess {
                channels,
                height: graph.input_shape()[1],
                width: graph.input_shape()[2],
                mean: vec![0.1; channels],
                std: vec![0.3; channels],
                crop_pct: 0.9,
                interpolation: Interpolation::Bicubic,
            },
        },
        provenance: Provenance {
            version: "1".into(),
            teacher_sha256: "t".into(),
            data_sha256: "d".into(),
            config: json!({"budget": "channels=0.6"}),
            widths_before: BTreeMap::from([("conv1".to_string(), 8)]),
        },
        graph,
    };
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first.safetensors", "second.safetensors"].map(|name| folder.path().join(name));
    model.save(&first).unwrap();
    let loaded = Teacher::load(&first, nothing(), &Device::Cpu).unwrap();
    assert_eq!((&loaded.graph, &loaded.info), (&model.graph, &model.info));
    assert_eq!(loaded.sha256, weights::sha256_file(&first).unwrap());
    assert_eq!((&loaded.int8, &loaded.provenance), (&Some(calibration), &Some(model.provenance.clone())));
    let images = random_images(&model.graph, 3, &mut rng);
    let logits = |params: &Params| values(&Forward::new(&model.graph, params, Mode::Eval).run(&images).unwrap().logits);
    assert_eq!(logits(&loaded.params), logits(&model.params));
    let again = CompactModel { params: loaded.params, info: loaded.info, graph: loaded.graph, ..model.clone() };
    again.save(&second).unwrap();
    assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
}

#[test]
fn the_class_count_is_read_off_the_classifier() {
    let teacher = load(&[("arch", "lenet_bn")], nothing()).unwrap();
    assert_eq!(teacher.graph.num_classes(), 7);
    assert_eq!(teacher.info.class_names, ["0", "1", "2", "3", "4", "5", "6"]);
    let wrapped = random_params(&lenet(7), &mut Rng::new(1)).into_iter();
    let wrapped = wrapped.map(|(name, tensor)| (format!("module.{name}"), tensor)).collect();
    assert_eq!(load_params(wrapped, &[("arch", "lenet_bn")], nothing()).unwrap().graph.num_classes(), 7);
}

#[test]
fn a_grey_model_without_statistics_gets_the_mean_of_the_colours() {
    let info = load(&[("arch", "lenet_bn")], nothing()).unwrap().info.preprocess;
    assert_eq!((info.channels, info.height, info.width), (1, 28, 28));
    assert!((info.mean[0] - 0.449).abs() < 1e-3 && (info.std[0] - 0.226).abs() < 1e-3, "{info:?}");
    assert_eq!((info.mean.len(), info.std.len()), (1, 1));
    let given = [("arch", "lenet_bn"), ("mean", "[0.5]"), ("std", "[0.25]"), ("crop_pct", "0.9")];
    let info = load(&given, nothing()).unwrap().info.preprocess;
    assert_eq!((info.mean, info.std, info.crop_pct), (vec![0.5], vec![0.25], 0.9));
    assert_eq!(
        load(&[("arch", "lenet_bn"), ("interpolation", "lanczos")], nothing()).unwrap().info.preprocess.interpolation,
        Interpolation::Bicubic
    );
}

#[test]
fn flags_go_before_what_the_file_says() {
    let flags = ModelDescription { arch: Some("lenet_bn".into()), crop_pct: Some(0.8), ..nothing() };
    let teacher = load(&[("arch", "resnet18"), ("crop_pct", "0.9")], flags).unwrap();
    assert_eq!((teacher.graph.name(), teacher.info.preprocess.crop_pct), ("lenet_bn", 0.8));
}

#[test]
fn what_does_not_fit_is_refused_with_file_and_field() {
    let arch = |name: &str| ModelDescription { arch: Some(name.into()), ..nothing() };
    assert!(refusal(&[], nothing()).contains("--arch, got none; known: resnet18"));
    assert!(refusal(&[], arch("lenet")).contains("did you mean lenet_bn?"));
    let sized = ModelDescription { input_size: Some([1, 28, 28]), ..arch("lenet") };
    assert!(refusal(&[], sized).contains("did you mean lenet_bn?"));
    assert!(refusal(&[], arch("densenet121")).contains("there is no tensor classifier.weight"));
    let lenet = ("arch", "lenet_bn");
    assert!(refusal(&[lenet, ("num_classes", "9")], nothing()).contains("has 7 classes, expected 9"));
    assert!(refusal(&[lenet, ("class_names", "a,b")], nothing()).contains("has 7 classes, expected 2"));
    assert!(refusal(&[lenet, ("mean", "[0.5, 0.5, 0.5]")], nothing()).contains("1 finite values for mean"));
    assert!(refusal(&[lenet, ("crop_pct", "0.01")], nothing()).contains("crop_pct"));
    assert!(refusal(&[lenet, ("input_size", "[1, 2, 2]")], nothing()).contains("does not fit"));
    assert!(refusal(&[("graph", "{}")], nothing()).contains("graph"));
    let missing = Teacher::load(Path::new("/nonexistent/teacher"), nothing(), &Device::Cpu);
    assert!(matches!(missing, Err(Error::Io { .. })));
}

#[test]
fn a_file_with_its_own_graph_is_held_to_it() {
    let graph = lenet(7).to_json().to_string();
    let stored = |extra: &[(&str, &str)], flags: ModelDescription| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("teacher.safetensors");
        let mut metadata = BTreeMap::from([("graph".to_string(), graph.clone())]);
        metadata.extend(extra.iter().map(|(k, v)| (k.to_string(), v.to_string())));
        weights::write_atomic(&path, &random_params(&lenet(7), &mut Rng::new(1)), &metadata).unwrap();
        Teacher::load(&path, flags, &Device::Cpu)
    };
    assert_eq!(stored(&[], nothing()).unwrap().graph, lenet(7));
    let message = |extra: &[(&str, &str)], flags| stored(extra, flags).unwrap_err().to_string();
    assert!(message(&[("num_classes", "9")], nothing()).contains("num_classes: expected 7"));
    assert!(message(&[("class_names", "a,b")], nothing()).contains("class_names: expected 7 names, got 2"));
    let sized = |input_size| ModelDescription { input_size: Some(input_size), ..nothing() };
    assert!(message(&[], sized([3, 28, 28])).contains("input_size: expected 1 channels, got 3"));
    assert!(message(&[], sized([1, 2, 2])).contains("does not fit"));
    assert_eq!(stored(&[], sized([1, 64, 64])).unwrap().graph.input_shape(), [1, 64, 64]);
    let nan = Tensor::full(f32::NAN, 7, &Device::Cpu).unwrap();
    let mut params = random_params(&lenet(7), &mut Rng::new(1));
    let last = params.keys().rfind(|name| name.ends_with(".bias") && params[*name].dims() == [7]).cloned().unwrap();
    params.insert(last, nan);
    let message = load_params(params, &[("arch", "lenet_bn")], nothing()).unwrap_err().to_string();
    assert!(message.contains("expected finite values, got NaN"), "{message}");
}
