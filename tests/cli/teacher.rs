//! A small teacher that is right on the shapes, trained on the spot.

use std::path::Path;
use std::sync::OnceLock;

use candle_core::{Device, Tensor};
use secateur::graph::{Graph, ParamKind};
use secateur::loss::cross_entropy;
use secateur::model::{Forward, Mode, Params, Student};
use secateur::optim::{Optimizer, Sgd, SgdConfig, cosine, take_grads};
use secateur::rng::Rng;
use secateur::weights::{ModelDescription, write_atomic};
use serde_json::{Value, json};

use super::shapes::{NAMES, SIDE, draw};

const FEATURES: usize = 16;
/// Updates it is trained with.
const STEPS: usize = 80;
const MEAN: f32 = 0.3;
const STD: f32 = 0.3;

/// Prunable channels: those of conv2 and conv4; the addition ties conv1 and conv3.
pub const PRUNABLE: u64 = 8 + FEATURES as u64;

/// The architecture as JSON: a residual block, a pool, one more convolution, a classifier.
pub fn graph_json() -> Value {
    let around = json!({"top": 1, "bottom": 1, "left": 1, "right": 1});
    let conv = |name: &str, out: usize| json!({"name": name, "op": "conv2d", "out_channels": out, "kernel": [3, 3], "padding": around});
    let norm = |name: &str| json!({"name": name, "op": "batch_norm"});
    let relu = |name: &str| json!({"name": name, "op": "activation", "function": "relu"});
    json!({"name": "shapes", "nodes": [
        {"name": "input", "op": "input", "shape": [1, SIDE, SIDE]},
        conv("conv1", 8), norm("bn1"), relu("relu1"),
        conv("conv2", 8), norm("bn2"), relu("relu2"),
        conv("conv3", 8), norm("bn3"),
        {"name": "add", "op": "add", "inputs": ["bn3", "relu1"]}, relu("relu3"),
        {"name": "pool", "op": "max_pool", "kernel": [2, 2], "stride": [2, 2]},
        conv("conv4", FEATURES), norm("bn4"), relu("relu4"),
        {"name": "gap", "op": "global_avg_pool"},
        {"name": "flatten", "op": "flatten"},
        {"name": "fc", "op": "linear", "out_features": NAMES.len()},
    ]})
}

/// What the teacher's metadata says, around `graph`.
pub fn description(graph: Value) -> ModelDescription {
    ModelDescription {
        graph: Some(graph),
        class_names: Some(NAMES.map(str::to_string).to_vec()),
        mean: Some(vec![f64::from(MEAN)]),
        std: Some(vec![f64::from(STD)]),
        ..ModelDescription::default()
    }
}

/// Writes the teacher as a safetensors file that carries its graph.
pub fn write(path: &Path) {
    write_atomic(path, params(), &description(graph_json()).to_metadata()).unwrap();
}

/// Writes a teacher with the same graph and random answers.
pub fn write_untrained(path: &Path, seed: u64) {
    let random = random_params(&Graph::from_json(&graph_json()).unwrap(), seed);
    write_atomic(path, &random, &description(graph_json()).to_metadata()).unwrap();
}

/// The teacher's tensors, computed once.
pub fn params() -> &'static Params {
    static PARAMS: OnceLock<Params> = OnceLock::new();
    PARAMS.get_or_init(|| fit(&Graph::from_json(&graph_json()).unwrap()))
}

/// Images of shape `class` as the program would feed them, `[count, 1, SIDE, SIDE]`.
pub fn batch(class: usize, count: usize, rng: &mut Rng) -> Tensor {
    let pixels = (0..count).flat_map(|_| draw(class, rng).into_raw());
    let values: Vec<f32> = pixels.map(|p| (f32::from(p) / 255.0 - MEAN) / STD).collect();
    Tensor::from_vec(values, (count, 1, SIDE, SIDE), &Device::Cpu).unwrap()
}

fn random_params(graph: &Graph, seed: u64) -> Params {
    let mut rng = Rng::new(seed);
    let mut draw = |kind: ParamKind, fan_in: usize| match kind {
        ParamKind::Weight => rng.normal() * (2.0 / fan_in.max(1) as f32).sqrt(),
        ParamKind::Bias | ParamKind::NormBias | ParamKind::RunningMean => rng.range(-0.1, 0.1),
        ParamKind::NormWeight | ParamKind::RunningVar => rng.range(0.8, 1.2),
    };
    let tensor = |shape: &[usize], values: Vec<f32>| Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    let specs = graph.params().map(|spec| {
        let fan_in = spec.shape.iter().skip(1).product();
        let values = (0..spec.shape.iter().product()).map(|_| draw(spec.kind, fan_in)).collect();
        (spec.name, tensor(&spec.shape, values))
    });
    specs.collect()
}

/// Trains the network on random shapes for a second or two.
fn fit(graph: &Graph) -> Params {
    let mut rng = Rng::new(2);
    let mut student = Student::new(graph, &random_params(graph, 3)).unwrap();
    let vars = student.trainable();
    let mut sgd = Sgd::new(SgdConfig::default()).unwrap();
    for step in 0..STEPS {
        let (images, labels) = mixed(8, &mut rng);
        let output = Forward::new(graph, &student.params(), Mode::Train).run(&images).unwrap();
        let loss = cross_entropy(&output.logits, &labels, None).unwrap();
        let grads = take_grads(&vars, &mut output.backward(&loss).unwrap());
        sgd.step(&vars, &grads, 0.05 * cosine(step as f64 / STEPS as f64)).unwrap();
    }
    let (images, _) = mixed(64, &mut rng);
    let statistics = Forward::new(graph, &student.frozen_params(), Mode::Train).run(&images).unwrap().statistics;
    student.set_statistics(&statistics);
    student.snapshot().unwrap()
}

/// `per_class` images of every shape, and their labels.
fn mixed(per_class: usize, rng: &mut Rng) -> (Tensor, Tensor) {
    let images: Vec<Tensor> = (0..NAMES.len()).map(|class| batch(class, per_class, rng)).collect();
    let labels: Vec<u32> = (0..NAMES.len()).flat_map(|class| vec![class as u32; per_class]).collect();
    let count = labels.len();
    (Tensor::cat(&images, 0).unwrap(), Tensor::from_vec(labels, count, &Device::Cpu).unwrap())
}
