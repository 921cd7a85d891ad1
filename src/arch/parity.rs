//! Parity with torchvision and timm: parameter names and shapes, logits.

use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::testing::{formula_input, formula_tensors};
use super::{ArchOptions, build, default_input, names};
use crate::graph::Graph;
use crate::model::{Forward, Mode, Params};
use crate::nn::Backend;

fn options(name: &str) -> ArchOptions {
    ArchOptions { num_classes: 10, input: default_input(name).unwrap() }
}

/// Parameter names and shapes in `state_dict` order.
type Parameters = Vec<(String, Vec<usize>)>;

/// The parameters of each network as `generate.py` wrote them.
fn reference_parameters() -> Vec<(String, Parameters)> {
    let mut networks: Vec<(String, Parameters)> = Vec::new();
    for line in include_str!("../../tests/fixtures/arch/parameters.txt").lines() {
        let (left, right) = line.split_once(' ').unwrap();
        match left {
            "#" => networks.push((right.to_string(), Vec::new())),
            name => {
                let shape = right.split('x').map(|d| d.parse().unwrap()).collect();
                networks.last_mut().unwrap().1.push((name.to_string(), shape));
            }
        }
    }
    networks
}

#[test]
fn parameters_have_the_original_names_shapes_and_order() {
    let reference = reference_parameters();
    let mut covered: Vec<&str> = reference.iter().map(|(name, _)| name.as_str()).collect();
    let mut known = names().to_vec();
    covered.sort_unstable();
    known.sort_unstable();
    assert_eq!(covered, known);
    for (name, expected) in reference {
        let graph = build(&name, &options(&name)).unwrap();
        let got: Vec<(String, Vec<usize>)> = graph.params().map(|p| (p.name, p.shape)).collect();
        for (got, expected) in got.iter().zip(&expected) {
            assert_eq!(got, expected, "{name}");
        }
        assert_eq!(got.len(), expected.len(), "{name}");
    }
}

/// Multiply-accumulates and parameters at 224×224 with 1000 classes.
fn cost(name: &str) -> (u64, u64) {
    let graph: Graph = build(name, &ArchOptions { num_classes: 1000, input: [3, 224, 224] }).unwrap();
    (graph.cost().macs, graph.cost().params)
}

#[test]
fn costs_match_the_published_ones() {
    // Parameters as torchvision and timm print them; MACs as in torchvision's GFLOPS column.
    for (name, params, gigamacs) in [
        ("resnet18", 11_689_512, 1.81),
        ("resnet34", 21_797_672, 3.66),
        ("resnet50", 25_557_032, 4.09),
        ("resnet101", 44_549_160, 7.80),
        ("vgg11_bn", 132_868_840, 7.61),
        ("vgg16_bn", 138_365_992, 15.47),
        ("densenet121", 7_978_856, 2.83),
        ("mobilenetv2_100", 3_504_872, 0.30),
        ("mobilenetv3_large_100", 5_483_032, 0.22),
        ("efficientnet_lite0", 4_652_008, 0.39),
    ] {
        let (macs, got) = cost(name);
        assert_eq!(got, params, "{name}");
        assert_eq!(format!("{:.2}", macs as f64 / 1e9), format!("{gigamacs:.2}"), "{name}: {macs}");
    }
}

/// Rounding only: the same arithmetic in another order.
const EVAL_TOLERANCE: f32 = 2e-5;
/// Statistics of a few pixels amplify rounding: PyTorch's own f32 is up to 5e-5 from f64.
const TRAIN_TOLERANCE: f32 = 2e-4;

/// A case of `logits.safetensors`, from its key `NAME@NxCxHxW/MODE`.
struct Case {
    key: String,
    graph: Graph,
    batch: usize,
    mode: Mode,
    expected: Vec<f32>,
}

fn cases() -> Vec<Case> {
    let file = include_bytes!("../../tests/fixtures/arch/logits.safetensors");
    let tensors = SafeTensors::deserialize(file).unwrap();
    let case = |(key, view): (String, TensorView<'_>)| {
        let (network, mode) = key.split_once('/').unwrap();
        let (name, shape) = network.split_once('@').unwrap();
        let dims: Vec<usize> = shape.split('x').map(|d| d.parse().unwrap()).collect();
        let options = ArchOptions { num_classes: 10, input: [dims[1], dims[2], dims[3]] };
        Case {
            graph: build(name, &options).unwrap(),
            batch: dims[0],
            mode: if mode == "train" { Mode::Train } else { Mode::Eval },
            expected: view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            key,
        }
    };
    tensors.tensors().into_iter().map(case).collect()
}

fn logits(case: &Case, backend: Backend) -> Vec<f32> {
    let device = Device::Cpu;
    let mut values = formula_tensors(&case.graph);
    let params: Params = case
        .graph
        .params()
        .map(|spec| {
            let data = values.remove(&spec.name).unwrap();
            (spec.name, Tensor::from_vec(data, spec.shape, &device).unwrap())
        })
        .collect();
    let [c, h, w] = case.graph.input_shape();
    let images = formula_input(case.batch * c * h * w);
    let images = Tensor::from_vec(images, (case.batch, c, h, w), &device).unwrap();
    let output = Forward::new(&case.graph, &params, case.mode).with_backend(backend).run(&images).unwrap();
    output.logits.flatten_all().unwrap().to_vec1().unwrap()
}

/// Compares the logits of the chosen cases with the reference, in units of the largest logit.
fn check(backend: Backend, chosen: impl Fn(&str) -> bool) {
    let mut checked = 0;
    for case in cases().into_iter().filter(|case| chosen(&case.key)) {
        let tolerance = if case.mode == Mode::Train { TRAIN_TOLERANCE } else { EVAL_TOLERANCE };
        let got = logits(&case, backend);
        assert_eq!(got.len(), case.expected.len(), "{}", case.key);
        let scale = case.expected.iter().fold(0f32, |m, x| m.max(x.abs()));
        let worst = got.iter().zip(&case.expected).map(|(a, b)| (a - b).abs() / scale).fold(0f32, f32::max);
        println!("{}: worst difference {worst:.1e} of the largest logit", case.key);
        assert!(worst <= tolerance, "{}: {worst:e} > {tolerance:e}: {got:?} {:?}", case.key, case.expected);
        checked += 1;
    }
    assert!(checked > 0);
}

#[test]
fn resnet_logits_match_torchvision() {
    check(Backend::Kernels, |key| key.starts_with("resnet"));
}

#[test]
fn cifar_resnet_and_lenet_logits_match_pytorch() {
    check(Backend::Kernels, |key| key.starts_with("cifar") || key.starts_with("lenet"));
}

#[test]
fn densenet_logits_match_torchvision() {
    check(Backend::Kernels, |key| key.starts_with("densenet"));
}

#[test]
fn mobilenet_and_efficientnet_logits_match_timm() {
    check(Backend::Kernels, |key| key.contains("mobilenet") || key.contains("efficientnet"));
}

#[test]
fn vgg_logits_match_torchvision() {
    check(Backend::Kernels, |key| key.starts_with("vgg"));
}

/// The path that runs on CUDA, here on the CPU.
#[test]
fn tensor_op_logits_match_too() {
    let small = ["resnet18@2x1x61x75", "cifar_resnet20@2x3x31x33", "tf_mobilenetv3", "densenet", "lenet"];
    check(Backend::TensorOps, |key| small.iter().any(|name| key.starts_with(name)));
}
