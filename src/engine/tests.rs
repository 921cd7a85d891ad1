//! The engine beside the training-time forward.

use candle_core::{DType, Device, Tensor};

use super::{Calibration, Engine, EngineConfig, Folded, Isa};
use crate::arch::{ArchOptions, build, default_input, names};
use crate::bench::narrowed;
use crate::graph::{Activation, Conv2d, Graph, GraphBuilder, Op, Padding, Pool2d};
use crate::model::testing::{random_images, random_params, values};
use crate::model::{Forward, Mode, Params};
use crate::nn::Backend;
use crate::rng::Rng;

/// Of the largest logit.
const TOLERANCE: f32 = 1e-4;

fn expected(graph: &Graph, params: &Params, images: &Tensor) -> Vec<f32> {
    let forward = Forward::new(graph, params, Mode::Eval).with_backend(Backend::TensorOps);
    values(&forward.run(images).unwrap().logits)
}

fn largest_error(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().all(|x| x.is_finite()));
    let scale = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    got.iter().zip(want).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / scale
}

/// Numbers of threads, each with some sizes of batches.
const CASES: [(usize, [usize; 2]); 3] = [(1, [3, 1]), (2, [1, 2]), (3, [2, 3])];

/// Compiles and compares for every instruction set.
fn check(graph: &Graph, seed: u64, cases: &[(usize, [usize; 2])]) {
    let mut rng = Rng::new(seed);
    let params = random_params(graph, &mut rng);
    let images = random_images(graph, 3, &mut rng);
    let want = expected(graph, &params, &images);
    let classes = graph.num_classes();
    let pixels = values(&images);
    let per_image = pixels.len() / 3;
    for isa in Isa::available() {
        for &(threads, batches) in cases {
            let config = EngineConfig { threads, max_batch: 3, isa };
            let mut engine = Engine::compile(graph, params.clone(), config).unwrap();
            for batch in batches {
                let mut logits = vec![f32::NAN; batch * classes];
                engine.infer(&pixels[..batch * per_image], &mut logits).unwrap();
                let error = largest_error(&logits, &want[..batch * classes]);
                assert!(error < TOLERANCE, "{}: {isa}, {threads} threads, batch {batch}: {error}", graph.name());
            }
        }
    }
}

/// Every architecture but VGG, which exists only for multiples of 224 and has 100 million weights: its parts are in
/// [`odd_network`]. Those for photographs are small and narrow, because every combination is run, on some processors
/// emulated; in odd sizes and widths, so that nothing divides evenly.
fn architectures() -> impl Iterator<Item = (&'static str, Graph)> {
    names().iter().filter(|name| !name.starts_with("vgg")).map(|name| {
        let [c, h, _] = default_input(name).unwrap();
        let side = if h > 64 { 33 } else { h };
        let graph = build(name, &ArchOptions { num_classes: 7, input: [c, side, side] }).unwrap();
        (*name, if h > 64 { narrowed(&graph, 0.5, 0).unwrap() } else { graph })
    })
}

#[test]
fn every_architecture_gives_the_logits_of_the_training_forward() {
    for (_, graph) in architectures() {
        check(&graph, 1, &[(2, [1, 3])]);
    }
}

#[test]
fn layers_no_architecture_has() {
    check(&odd_network(), 2, &CASES);
}

fn odd_network() -> Graph {
    let mut b = GraphBuilder::new("odd", [3, 13, 10]);
    let x = b.conv("dilated", Conv2d { dilation: [2, 1], ..Conv2d::new(13, 3).padding(1).with_bias() }, 0);
    let x = b.activation("dilated.act", Activation::Silu, x);
    let uneven = Padding { top: 0, bottom: 1, left: 2, right: 0 };
    let x = b.conv("uneven", Conv2d { padding: uneven, ..Conv2d::new(21, 3).stride(2) }, x);
    let x = b.batch_norm("uneven.bn", 1e-5, x);
    let grouped = b.conv("grouped", Conv2d::new(42, 3).padding(1).groups(3).with_bias(), x);
    let wide = b.conv("wide", Conv2d { kernel: [1, 3], ..Conv2d::new(9, 1) }, grouped);
    let x = b.activation("wide.act", Activation::HardSwish, wide);
    let dw = Conv2d { padding: uneven, ..Conv2d::new(9, 3).groups(9).with_bias() };
    let y = b.conv("depthwise", dw, x);
    let y = b.activation("depthwise.act", Activation::HardSigmoid, y);
    let y = b.batch_norm("alone", 1e-3, y);
    let y = b.node("pad", Op::PadChannels { before: 3, after: 2 }, &[y]);
    let z = b.node("subsample", Op::Subsample { stride: [2, 3] }, &[y]);
    let z = b.max_pool(
        "max",
        Pool2d { kernel: [2, 2], stride: [1, 1], padding: Padding { top: 0, bottom: 1, left: 1, right: 0 } },
        z,
    );
    let z = b.node("average", Op::AvgPool(Pool2d::new(2, 1).padding(1)), &[z]);
    let z = b.conv("expand", Conv2d::new(17, 3).padding(1).with_bias(), z);
    let shared = b.activation("shared", Activation::Sigmoid, z);
    let sum = b.node("three", Op::Add, &[z, shared, z]);
    let joined = b.node("joined", Op::Concat, &[sum, shared, z]);
    let gate = b.node("gate", Op::GlobalAvgPool, &[joined]);
    let gate = b.conv("gate.conv", Conv2d::new(51, 1).with_bias(), gate);
    let gate = b.activation("gate.act", Activation::HardSigmoid, gate);
    let scaled = b.node("scaled", Op::Scale, &[joined, gate]);
    let scaled = b.activation("scaled.act", Activation::Relu6, scaled);
    let flat = b.node("flat", Op::Flatten, &[scaled]);
    let hidden = b.node("hidden", Op::Linear { out_features: 30, bias: true }, &[flat]);
    let hidden = b.activation("hidden.act", Activation::Relu, hidden);
    b.node("fc", Op::Linear { out_features: 5, bias: false }, &[hidden]);
    b.finish().unwrap()
}

#[test]
fn every_width_has_its_tail() {
    for width in (1..=34).chain([40, 47, 48, 56, 72, 88]) {
        let mut b = GraphBuilder::new(&format!("width {width}"), [1, 9, 7]);
        let x = b.conv("a", Conv2d::new(width, 3).padding(1).with_bias(), 0);
        let x = b.activation("a.act", Activation::Relu, x);
        let y = b.conv("b", Conv2d::new(width, 3).padding(1).with_bias(), x);
        let y = b.node("add", Op::Add, &[x, y]);
        let y = b.conv("c", Conv2d::new(width, 1).stride(2), y);
        b.classifier("fc", width, y);
        check(&b.finish().unwrap(), width as u64, &CASES);
    }
}

#[test]
fn both_winograd_tiles_are_chosen_and_accurate() {
    for (channels, side, kernel) in [(64, 28, "winograd 4×4"), (160, 14, "winograd 2×2"), (8, 14, "direct")] {
        let mut b = GraphBuilder::new("winograd", [3, side, side]);
        let x = b.conv("stem", Conv2d::new(channels, 1).with_bias(), 0);
        let x = b.conv("conv", Conv2d::new(channels, 3).padding(1).with_bias(), x);
        let x = b.activation("act", Activation::Relu, x);
        b.classifier("fc", 10, x);
        let graph = b.finish().unwrap();
        let mut rng = Rng::new(3);
        let params = random_params(&graph, &mut rng);
        let mut engine = Engine::compile(&graph, params.clone(), EngineConfig::default()).unwrap();
        let images = random_images(&graph, 1, &mut rng);
        let mut logits = vec![0.0; 10];
        let profile = engine.profile(&values(&images), &mut logits).unwrap();
        let step = profile.iter().find(|step| step.layer == "conv").unwrap();
        assert_eq!(step.kernel, kernel);
        let error = largest_error(&logits, &expected(&graph, &params, &images));
        assert!(error < TOLERANCE, "{kernel}: {error}");
    }
}

#[test]
fn folding_keeps_the_logits() {
    let graph = build("cifar_resnet20", &ArchOptions { num_classes: 10, input: [3, 32, 32] }).unwrap();
    let mut rng = Rng::new(4);
    let params = random_params(&graph, &mut rng);
    let images = random_images(&graph, 2, &mut rng);
    let folded = Folded::new(&graph, params.clone()).unwrap();
    assert!(!folded.graph.nodes().iter().any(|node| matches!(node.op, Op::BatchNorm { .. })));
    let got = expected(&folded.graph, &folded.params, &images);
    assert!(largest_error(&got, &expected(&graph, &params, &images)) < 1e-5);
}

#[test]
fn what_does_not_fit_is_refused() {
    let graph = build("cifar_resnet20", &ArchOptions { num_classes: 10, input: [3, 32, 32] }).unwrap();
    let mut params = random_params(&graph, &mut Rng::new(5));
    let compile = |params: &Params, config| Engine::compile(&graph, params.clone(), config);
    let config = EngineConfig { threads: 1, ..EngineConfig::default() };
    let message = compile(&params, EngineConfig { threads: 0, ..config }).unwrap_err().to_string();
    assert!(message.contains("threads"), "{message}");
    let mut engine = compile(&params, config).unwrap();
    let image = vec![0.0; 3 * 32 * 32];
    for (images, logits) in [(0, 0), (1, 9), (2, 20)] {
        let message = engine.infer(&image.repeat(images), &mut vec![0.0; logits]).unwrap_err().to_string();
        assert!(message.contains("3×32×32"), "{message}");
    }
    let name = format!("{}.weight", graph.nodes()[graph.output()].name);
    params.insert(name.clone(), Tensor::zeros((10, 3), DType::F32, &Device::Cpu).unwrap());
    let message = compile(&params, config).unwrap_err().to_string();
    assert!(message.contains(&name) && message.contains("[10, 3]"), "{message}");
    params.remove(&name);
    let message = compile(&params, config).unwrap_err().to_string();
    assert!(message.contains(&format!("{name} is missing")), "{message}");
}

fn compile_int8(graph: &Graph, params: &Params, images: &[f32], config: EngineConfig) -> Engine {
    let calibration = Calibration::collect(graph, params.clone(), config, [Ok(images.to_vec())]).unwrap();
    Engine::compile_int8(graph, params.clone(), config, &calibration).unwrap()
}

/// Root mean square of the difference, relative to that of the logits.
fn relative_error(got: &[f32], want: &[f32]) -> f32 {
    let power = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
    (power(&mut got.iter().zip(want).map(|(a, b)| a - b)) / power(&mut want.iter().copied())).sqrt()
}

#[test]
fn eight_bits_come_close_for_every_architecture() {
    for (name, graph) in architectures() {
        let mut rng = Rng::new(1);
        let params = random_params(&graph, &mut rng);
        let images = values(&random_images(&graph, 3, &mut rng));
        let config = EngineConfig { threads: 2, max_batch: 3, isa: Isa::detect() };
        let mut engine = compile_int8(&graph, &params, &images, config);
        let (mut got, mut want) = (vec![0.0; 21], vec![0.0; 21]);
        engine.infer(&images, &mut got).unwrap();
        Engine::compile(&graph, params, config).unwrap().infer(&images, &mut want).unwrap();
        let error = relative_error(&got, &want);
        println!("{name}: {error}");
        // With random weights, every linear bottleneck of these adds noise that training would not let through.
        let most = if name.contains("mobilenetv2") || name.contains("mobilenetv3") { 0.4 } else { 0.1 };
        assert!(error < most, "{name}: {error}");
    }
}

#[test]
fn eight_bits_are_the_same_on_every_instruction_set() {
    for width in [1, 3, 8, 15, 16, 17, 24, 31, 32, 33, 40, 48, 70, 88] {
        let mut b = GraphBuilder::new(&format!("width {width}"), [3, 9, 7]);
        let x = b.conv("a", Conv2d::new(width, 3).padding(1).with_bias(), 0);
        let x = b.activation("a.act", Activation::HardSwish, x);
        let y = b.conv("b", Conv2d::new(width, 3).padding(1).with_bias(), x);
        let y = b.node("add", Op::Add, &[x, y]);
        let y = b.conv("c", Conv2d::new(width, 1).stride(2), y);
        b.classifier("fc", width, y);
        let graph = b.finish().unwrap();
        let mut rng = Rng::new(width as u64);
        let params = random_params(&graph, &mut rng);
        let images = values(&random_images(&graph, 2, &mut rng));
        let run = |isa, threads| {
            let config = EngineConfig { threads, max_batch: 2, isa };
            let portable = EngineConfig { threads: 1, max_batch: 1, isa: Isa::Portable };
            let calibration = Calibration::collect(&graph, params.clone(), portable, [Ok(images.clone())]).unwrap();
            let mut engine = Engine::compile_int8(&graph, params.clone(), config, &calibration).unwrap();
            let mut logits = vec![0.0; 2 * width];
            engine.infer(&images, &mut logits).unwrap();
            logits
        };
        let want = run(Isa::Portable, 1);
        for isa in Isa::available() {
            for threads in [1, 3] {
                // Sums are exact; the few roundings between layers may fall to the other side.
                let error = relative_error(&run(isa, threads), &want);
                assert!(error < 2e-3, "{width} on {isa}: {error}");
            }
        }
    }
}

#[test]
fn odd_layers_in_eight_bits() {
    let graph = odd_network();
    let mut rng = Rng::new(2);
    let params = random_params(&graph, &mut rng);
    let images = values(&random_images(&graph, 3, &mut rng));
    let mut want = vec![0.0; 15];
    let config = EngineConfig { threads: 1, max_batch: 3, isa: Isa::detect() };
    Engine::compile(&graph, params.clone(), config).unwrap().infer(&images, &mut want).unwrap();
    for isa in Isa::available() {
        let mut got = vec![0.0; 15];
        compile_int8(&graph, &params, &images, EngineConfig { isa, ..config }).infer(&images, &mut got).unwrap();
        let error = relative_error(&got, &want);
        println!("{isa}: {error}");
        assert!(error < 0.1, "{isa}: {error}");
    }
}

#[test]
fn a_calibration_of_another_network_is_refused() {
    let graph = odd_network();
    let params = random_params(&graph, &mut Rng::new(2));
    let none = Calibration { images: 1, ranges: std::collections::BTreeMap::new() };
    let message = Engine::compile_int8(&graph, params.clone(), EngineConfig::default(), &none).unwrap_err().to_string();
    assert!(message.contains("no range for node"), "{message}");
    let message = Calibration::collect(&graph, params, EngineConfig::default(), []).unwrap_err().to_string();
    assert!(message.contains("at least one image"), "{message}");
}
