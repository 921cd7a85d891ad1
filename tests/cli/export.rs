//! ONNX files answer as the program does.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use secateur::arch;
use secateur::rng::Rng;
use secateur::weights::{TensorFile, write_atomic};
use serde_json::{Value, json};

use super::onnx_runtime::OnnxRuntime;
use super::program;
use super::shapes::NAMES;
use super::workplace::Workplace;

/// Largest difference of logits, relative to the largest: sums in another order.
const TOLERANCE: f32 = 1e-4;
/// Images per comparison: the batch is not in the file.
const BATCH: usize = 3;

/// Exports with `arguments`, runs the file and compares with the program; returns what the file says of itself.
#[track_caller]
fn agrees(runtime: &mut OnnxRuntime, folder: &Path, arguments: &str) -> Value {
    let files = "--onnx model.onnx --safetensors model.safetensors --json";
    let export = program::run(folder, &format!("export {arguments} {files}")).ends_with(&[0]).json();
    let shape: Vec<usize> = serde_json::from_value(export["input"].clone()).unwrap();
    let mut rng = Rng::new(5);
    let noise: Vec<f32> = (0..BATCH * shape.iter().product::<usize>()).map(|_| rng.normal()).collect();
    let images = Tensor::from_slice(&noise, [&[BATCH], &shape[..]].concat(), &Device::Cpu).unwrap();
    write_atomic(folder.join("in.safetensors"), &BTreeMap::from([("input".into(), images)]), &BTreeMap::new()).unwrap();
    let predict = "predict model.safetensors --input in.safetensors --output out.safetensors";
    program::run(folder, predict).ends_with(&[0]);
    let want = TensorFile::open(folder.join("out.safetensors")).unwrap().read_f32("logits").unwrap();

    let (said, got) = runtime.run(folder, &noise);
    assert_eq!(said["shape"], json!([BATCH, export["classes"]]), "{arguments}");
    assert_eq!(got.len(), want.len(), "{arguments}");
    let largest = want.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
    assert!(largest > 0.05 && largest < 100.0, "{arguments}: largest logit {largest}");
    for (got, want) in got.iter().zip(&want) {
        let difference = (got - want).abs() / largest;
        assert!(difference <= TOLERANCE, "{arguments}: expected {want}, got {got} (largest {largest})");
    }
    said
}

/// Compares random networks, each in a folder of its own.
fn all_agree(cases: impl IntoIterator<Item = String>) {
    let Some(mut runtime) = OnnxRuntime::start() else { return };
    for case in cases {
        let folder = tempfile::tempdir().unwrap();
        agrees(&mut runtime, folder.path(), &case);
    }
}

#[test]
fn every_architecture_gives_the_same_logits_in_onnx_runtime() {
    all_agree(arch::names().iter().map(|name| {
        let size = match *name {
            // The classifier reads a map of 7×7; narrow, because there are 100 million weights in it.
            "vgg11_bn" | "vgg16_bn" => "--channels 0.3",
            // The only ones with asymmetric padding, which shows on maps larger than the kernel.
            "tf_mobilenetv3_large_100" | "tf_efficientnet_lite0" => "--size 64",
            "lenet_bn" => "--size 28",
            _ => "--size 32",
        };
        format!("--arch {name} {size} --classes 10")
    }));
}

#[test]
fn pruned_networks_give_the_same_logits_in_onnx_runtime() {
    let names = ["resnet50", "cifar_resnet20", "densenet121", "tf_mobilenetv3_large_100", "tf_efficientnet_lite0"];
    all_agree(names.map(|name| format!("--arch {name} --size 64 --classes 7 --channels 0.4 --seed 1")));
}

#[test]
fn every_operation_gives_the_same_logits_in_onnx_runtime() {
    let Some(mut runtime) = OnnxRuntime::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("net.json"), every_operation().to_string()).unwrap();
    let said = agrees(&mut runtime, folder.path(), "--graph net.json");
    assert_eq!(said["input"], json!(["input", "tensor(float)", ["N", 3, 15, 13]]));
}

/// A network with every operation, and with what architectures seldom have: padding and strides that differ on all
/// sides, dilation, groups, sums of three, gates of every kind.
fn every_operation() -> Value {
    let uneven = json!({"top": 0, "bottom": 1, "left": 2, "right": 1});
    let act = |name: &str, function: &str, input: &str| json!({"name": name, "op": "activation", "function": function, "inputs": [input]});
    json!({"name": "everything", "nodes": [
        {"name": "input", "op": "input", "shape": [3, 15, 13]},
        {"name": "a", "op": "conv2d", "out_channels": 8, "kernel": [3, 5], "padding": uneven, "stride": [1, 2], "bias": true},
        {"name": "a.bn", "op": "batch_norm", "eps": 0.001},
        act("a.silu", "silu", "a.bn"),
        {"name": "b", "op": "conv2d", "out_channels": 8, "kernel": [3, 3], "padding": {"top": 2, "bottom": 2, "left": 2, "right": 2}, "dilation": [2, 2], "groups": 2},
        {"name": "b.bn", "op": "batch_norm"},
        act("b.hard_swish", "hard_swish", "b.bn"),
        {"name": "c", "op": "conv2d", "out_channels": 8, "kernel": [3, 3], "padding": {"top": 1, "bottom": 1, "left": 1, "right": 1}, "groups": 8},
        {"name": "c.bn", "op": "batch_norm"},
        act("c.relu6", "relu6", "c.bn"),
        {"name": "sum", "op": "add", "inputs": ["a.silu", "b.hard_swish", "c.relu6"]},
        {"name": "squeeze", "op": "global_avg_pool"},
        {"name": "excite", "op": "conv2d", "out_channels": 8, "kernel": [1, 1], "bias": true},
        act("soft", "sigmoid", "excite"),
        act("hard", "hard_sigmoid", "excite"),
        {"name": "scaled_soft", "op": "scale", "inputs": ["sum", "soft"]},
        {"name": "scaled_hard", "op": "scale", "inputs": ["sum", "hard"]},
        {"name": "max", "op": "max_pool", "kernel": [4, 3], "stride": [2, 2], "padding": {"top": 1, "bottom": 2, "left": 0, "right": 1}, "inputs": ["scaled_soft"]},
        {"name": "avg", "op": "avg_pool", "kernel": [4, 3], "stride": [2, 2], "padding": {"top": 1, "bottom": 2, "left": 0, "right": 1}, "inputs": ["scaled_hard"]},
        {"name": "joined", "op": "concat", "inputs": ["max", "avg"]},
        act("joined.relu", "relu", "joined"),
        {"name": "every_other", "op": "subsample", "stride": [2, 3]},
        {"name": "padded", "op": "pad_channels", "before": 1, "after": 2},
        {"name": "flat", "op": "flatten"},
        {"name": "drop", "op": "dropout", "p": 0.2},
        {"name": "hidden", "op": "linear", "out_features": 9, "bias": false},
        act("hidden.relu", "relu", "hidden"),
        {"name": "fc", "op": "linear", "out_features": 5},
    ]})
}

#[test]
fn the_file_says_what_the_model_is() {
    let Some(mut runtime) = OnnxRuntime::start() else { return };
    let place = Workplace::new();
    let said = agrees(&mut runtime, place.folder(), "teacher.safetensors");
    assert_eq!(said["input"], json!(["input", "tensor(float)", ["N", 1, 12, 12]]));
    assert_eq!(said["output"], json!(["logits", "tensor(float)", ["N", NAMES.len()]]));
    assert_eq!((&said["opset"], &said["ir_version"]), (&json!([["", 17]]), &json!(8)));
    assert_eq!(said["producer"], json!(["secateur", env!("CARGO_PKG_VERSION")]));
    let metadata = |key: &str| serde_json::from_str::<Value>(said["metadata"][key].as_str().unwrap()).unwrap();
    assert_eq!(metadata("class_names"), json!(NAMES));
    assert_eq!(metadata("input_size"), json!([1, 12, 12]));
    assert!((metadata("mean")[0].as_f64().unwrap() - 0.3).abs() < 1e-6);
    assert_eq!(said["metadata"]["arch"], "shapes");
    assert!(said["metadata"].get("graph").is_none());
}

#[test]
fn a_random_model_is_reproducible_and_loads_again_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let export = |out: &str, model: &str| {
        program::run(folder.path(), &format!("export {model} --onnx {out}.onnx --safetensors {out}.safetensors"))
            .ends_with(&[0]);
        let read = |kind: &str| std::fs::read(folder.path().join(format!("{out}.{kind}"))).unwrap();
        (read("onnx"), read("safetensors"))
    };
    let random = "--arch cifar_resnet20 --in-channels 1 --size 16 --class-names yes,no --channels 0.5";
    let first = export("a", random);
    assert_eq!(first, export("b", "a.safetensors"));
    assert_ne!(first, export("c", &format!("{random} --seed 1")));
    let inspected = program::run(folder.path(), "inspect a.safetensors --json").ends_with(&[0]).json();
    assert_eq!((&inspected["input"], &inspected["classes"]), (&json!([1, 16, 16]), &json!(["yes", "no"])));
}

#[test]
fn what_makes_no_sense_is_refused_and_nothing_is_written() {
    let place = Workplace::new();
    let random = "export --onnx out.onnx";
    let refused = |arguments: &str, parts: &[&str]| {
        place.run(arguments).fails_naming(parts);
    };
    refused(random, &["expected a model file, or --arch or --graph"]);
    refused(&format!("{random} teacher.safetensors --seed 1"), &["teacher.safetensors: ", "without a model file"]);
    refused(&format!("{random} --arch resnet19"), &["did you mean resnet18"]);
    refused(&format!("{random} --arch resnet18 --channels 1.5"), &["--channels: expected a fraction"]);
    refused(&format!("{random} --arch cifar_resnet20 --channels 0.01"), &["at least"]);
    refused(&format!("{random} --arch resnet18 --size 32 --mean 3,3,3"), &["command line: mean"]);
    refused("export --arch lenet_bn", &["--onnx"]);
    refused("export teacher.safetensors --onnx missing/out.onnx", &["missing/out.onnx: cannot write"]);
    assert!(!place.path("out.onnx").exists());
}
