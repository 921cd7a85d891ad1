//! Logits, gradients and training steps beside PyTorch's, on both backends.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};

use super::testing::assert_close;
use super::{ChannelMask, Forward, Mode, Output, Params, Student};
use crate::graph::{Activation, ChannelGroups, Conv2d, Graph, GraphBuilder, NodeId, Op, Pool2d, Scope};
use crate::nn::Backend;
use crate::nn::testing::places;
use crate::optim::{Optimizer, Sgd, SgdConfig, take_grads};

/// f32 beside PyTorch's f64.
const TOLERANCE: f32 = 1e-4;
const RATES: [f64; 3] = [0.1, 0.08, 0.05];

fn conv_bn(b: &mut GraphBuilder, name: &str, conv: Conv2d, x: NodeId) -> NodeId {
    let x = b.conv(&format!("{name}.conv"), conv, x);
    b.batch_norm(&format!("{name}.bn"), 1e-5, x)
}

/// The network of `tests/fixtures/model/generate.py`.
fn network() -> Graph {
    let mut b = GraphBuilder::new("parity", [3, 7, 6]);
    let x = conv_bn(&mut b, "stem", Conv2d::new(8, 3).padding(1), 0);
    let x = b.activation("stem.act", Activation::Relu, x);
    let y = conv_bn(&mut b, "dw", Conv2d::new(8, 3).padding(1).groups(8), x);
    let y = b.activation("dw.act", Activation::Relu6, y);
    let y = conv_bn(&mut b, "pw", Conv2d::new(8, 1), y);
    let x = b.node("add", Op::Add, &[x, y]);
    let x = b.activation("add.act", Activation::Relu, x);
    let y = conv_bn(&mut b, "grow", Conv2d::new(4, 1), x);
    let y = b.activation("grow.act", Activation::Silu, y);
    let x = b.node("concat", Op::Concat, &[x, y]);
    let x = b.conv("down", Conv2d::new(6, 3).stride(2).padding(1).with_bias(), x);
    let x = b.max_pool("pool", Pool2d::new(3, 1).padding(1), x);
    let x = b.conv("tail", Conv2d::new(6, 3).padding(1).groups(6).with_bias(), x);
    let x = b.activation("tail.act", Activation::HardSwish, x);
    b.classifier("fc", 5, x);
    b.finish().unwrap()
}

struct Fixture {
    graph: Graph,
    tensors: BTreeMap<String, Tensor>,
    layout: ChannelMask,
}

impl Fixture {
    fn read(device: &Device) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/model/model.safetensors");
        let tensors = candle_core::safetensors::load(path, device).unwrap().into_iter().collect();
        let graph = network();
        let groups = ChannelGroups::new(&graph, Scope::All);
        let widths: Vec<(&str, usize)> = groups.prunable().map(|g| (g.name.as_str(), g.width)).collect();
        assert_eq!(widths, [("stem.conv", 8), ("grow.conv", 4), ("down", 6)], "the order of the fixture's mask");
        let names = |node: NodeId| graph.nodes()[node].name.clone();
        let points: Vec<String> = groups.mask_points().iter().map(|p| names(p.node)).collect();
        assert_eq!(points, ["stem.bn", "dw.bn", "pw.bn", "grow.bn", "tail"]);
        let layout = ChannelMask::new(&groups, device).unwrap();
        Self { graph, tensors, layout }
    }

    fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the fixture has no {name}"))
    }

    fn student(&self) -> Student {
        let start: Params =
            self.graph.params().map(|s| (s.name.clone(), self.get(&format!("start.{}", s.name)).clone())).collect();
        Student::new(&self.graph, &start).unwrap()
    }

    fn run(&self, student: &Student, mask: &Tensor, mode: Mode, backend: Backend) -> (Output, Tensor) {
        let params = student.params();
        let forward = Forward::new(&self.graph, &params, mode).masked(self.layout.gather(mask).unwrap());
        let output = forward.with_backend(backend).run(self.get("images")).unwrap();
        let labels = self.get("labels").to_dtype(DType::U32).unwrap();
        let log_probs = candle_nn::ops::log_softmax(&output.logits, 1).unwrap();
        let picked = log_probs.gather(&labels.unsqueeze(1).unwrap(), 1).unwrap();
        (output, picked.mean_all().unwrap().neg().unwrap())
    }
}

#[test]
fn logits_and_every_gradient_agree_with_pytorch() {
    for (backend, device) in places() {
        let fixture = Fixture::read(&device);
        for (mode, name) in [(Mode::Eval, "eval"), (Mode::Train, "train")] {
            let student = fixture.student();
            let mask = Var::from_tensor(fixture.get("mask")).unwrap();
            let (output, loss) = fixture.run(&student, mask.as_tensor(), mode, backend);
            let what = |of: &str| format!("{backend:?} {device:?} {name} {of}");
            assert_close(&what("logits"), &output.logits, fixture.get(&format!("{name}.logits")), TOLERANCE);
            let store = output.backward(&loss).unwrap();
            let want = fixture.get(&format!("{name}.grad.mask"));
            assert_close(&what("mask"), store.get(&mask).unwrap(), want, TOLERANCE);
            for (param, var) in student.trainable() {
                let got = store.get(&var).unwrap_or_else(|| panic!("{param} has no gradient"));
                let want = fixture.get(&format!("{name}.grad.{param}"));
                // Batch statistics cancel a shift in front of them: what is left of the gradient is rounding.
                let zero = want.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-7;
                if !zero {
                    assert_close(&what(&param), got, want, TOLERANCE);
                }
            }
        }
    }
}

#[test]
fn batch_statistics_agree_with_pytorch() {
    for (backend, device) in places() {
        let fixture = Fixture::read(&device);
        let student = fixture.student();
        let (output, _) = fixture.run(&student, fixture.get("mask"), Mode::Train, backend);
        let names: Vec<&str> = output.statistics.iter().map(|s| fixture.graph.nodes()[s.0].name.as_str()).collect();
        assert_eq!(names, ["stem.bn", "dw.bn", "pw.bn", "grow.bn"]);
        for (name, (_, batch)) in names.iter().zip(&output.statistics) {
            let want = |suffix: &str| fixture.get(&format!("train.stat.{name}.{suffix}"));
            assert_close(&format!("{backend:?} {device:?} {name} mean"), &batch.mean, want("running_mean"), TOLERANCE);
            assert_close(&format!("{backend:?} {device:?} {name} var"), &batch.var, want("running_var"), TOLERANCE);
        }
        assert!(fixture.run(&student, fixture.get("mask"), Mode::Eval, backend).0.statistics.is_empty());
    }
}

#[test]
fn three_training_steps_agree_with_pytorch() {
    for (backend, device) in places() {
        let fixture = Fixture::read(&device);
        let student = fixture.student();
        let mut sgd = Sgd::new(SgdConfig { weight_decay: 0.05, ..SgdConfig::default() }).unwrap();
        for lr in RATES {
            let (output, loss) = fixture.run(&student, fixture.get("mask"), Mode::Train, backend);
            let mut store = output.backward(&loss).unwrap();
            let vars = student.trainable();
            let grads = take_grads(&vars, &mut store);
            assert_eq!(grads.len(), vars.len());
            sgd.step(&vars, &grads, lr).unwrap();
        }
        let end = student.snapshot().unwrap();
        for name in student.trainable().keys() {
            assert_close(
                &format!("{backend:?} {device:?} {name}"),
                &end[name],
                fixture.get(&format!("end.{name}")),
                TOLERANCE,
            );
        }
    }
}
