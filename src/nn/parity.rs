//! Values and gradients of both backends beside PyTorch's (`tests/fixtures/nn/generate.py`).

use std::collections::HashMap;

use candle_core::{Device, Tensor, Var};

use super::testing::{F32_TOLERANCE, assert_close, places};
use super::*;
use crate::error::Result;
use crate::graph::{Activation, Conv2d, Pool2d};

struct Fixture(HashMap<String, Tensor>);

impl Fixture {
    fn load() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/nn/ops.safetensors");
        Self(candle_core::safetensors::load(path, &Device::Cpu).unwrap())
    }

    fn get(&self, case: &str, key: &str) -> &Tensor {
        self.0.get(&format!("{case}.{key}")).unwrap_or_else(|| panic!("{case}.{key} is not in the fixture"))
    }

    /// Runs `f` on tracked arguments (the first is an activation) and compares output and gradients.
    fn check(&self, case: &str, keys: &[&str], f: impl Fn(Backend, &[Tensor]) -> Result<Tensor>) {
        for (backend, device) in places() {
            let get = |key: &str| self.get(case, key).to_device(&device).unwrap();
            let vars: Vec<Var> = keys.iter().map(|key| Var::from_tensor(&get(key)).unwrap()).collect();
            let mut args: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
            args[0] = backend.from_nchw(&args[0]).unwrap();
            let y = backend.to_nchw(&f(backend, &args).unwrap()).unwrap();
            let name = |key: &str| format!("{case}.{key} by {backend:?} on {:?}", device.location());
            assert_close(&name("y"), &y, self.get(case, "y"), F32_TOLERANCE);
            let grads = (y * get("direction")).unwrap().sum_all().unwrap().backward().unwrap();
            for (key, var) in keys.iter().zip(&vars) {
                let key = format!("d{key}");
                assert_close(&name(&key), grads.get(var).unwrap(), self.get(case, &key), F32_TOLERANCE);
            }
        }
    }
}

#[test]
fn convolutions_match_pytorch() {
    let mut dilated = Conv2d::new(6, 3).padding(2).groups(2);
    dilated.dilation = [2, 2];
    let cases = [
        ("dense", Conv2d::new(4, 3).padding(1)),
        ("strided", Conv2d::new(4, 3).stride(2).padding(1)),
        ("dilated", dilated),
        ("depthwise", Conv2d::new(18, 5).stride(2).padding(2).groups(18)),
    ];
    let fixture = Fixture::load();
    for (case, conv) in cases {
        fixture.check(case, &["x", "weight", "bias"], |b, t| conv2d(b, &t[0], &t[1], Some(&t[2]), &conv));
    }
}

#[test]
fn pooling_matches_pytorch_with_ties() {
    let (fixture, pool) = (Fixture::load(), Pool2d::new(3, 2).padding(1));
    fixture.check("max_pool", &["x"], |b, t| max_pool2d(b, &t[0], &pool));
    fixture.check("avg_pool", &["x"], |b, t| avg_pool2d(b, &t[0], &pool));
}

#[test]
fn batch_norm_with_activation_matches_pytorch() {
    let cases = [
        ("norm_relu", Activation::Relu),
        ("norm_relu6", Activation::Relu6),
        ("norm_silu", Activation::Silu),
        ("norm_hard_swish", Activation::HardSwish),
        ("norm_hard_sigmoid", Activation::HardSigmoid),
        ("norm_sigmoid", Activation::Sigmoid),
    ];
    let fixture = Fixture::load();
    for (case, function) in cases {
        fixture.check(case, &["x", "weight", "bias"], |backend, t| {
            let norm = BatchNorm { weight: &t[1], bias: &t[2], eps: 1e-5, activation: Some(function) };
            let (y, stats) = batch_norm_train(backend, &t[0], norm)?;
            assert_close("mean", &stats.mean, fixture.get(case, "mean"), F32_TOLERANCE);
            assert_close("var", &stats.var, fixture.get(case, "var"), F32_TOLERANCE);
            Ok(y)
        });
    }
}
