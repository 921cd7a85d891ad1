//! What every optimiser is held to.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};

use super::{Grads, Optimizer, Params, State, take_grads};
use crate::error::{Error, Result};
use crate::loss::testing::{F32_TOLERANCE, F64_TOLERANCE, assert_close, fixture, values};
use crate::rng::Rng;

/// The learning rates of the fixture's steps.
const RATES: [f64; 5] = [0.1, 0.08, 0.06, 0.04, 0.02];
/// The step of the fixture in which the bias has no gradient.
const WITHOUT_BIAS: usize = 2;
const NAMES: [&str; 2] = ["bias", "weight"];

/// The fixture's parameters before the first step; `F32` takes the fused path, `F64` the tensor path.
pub(super) fn params_of(dtype: DType) -> Params {
    let given = fixture("optim/optim");
    let param = |name: &str| Var::from_tensor(&given[&format!("start.{name}")].to_dtype(dtype).unwrap()).unwrap();
    NAMES.iter().map(|&name| (name.to_owned(), param(name))).collect()
}

fn grads_of(given: &HashMap<String, Tensor>, step: usize, dtype: DType) -> Grads {
    let named = NAMES.iter().filter(|&&name| !(name == "bias" && step == WITHOUT_BIAS));
    let grad = |name: &str| given[&format!("grad.{name}")].get(step).unwrap().to_dtype(dtype).unwrap();
    named.map(|&name| (name.to_owned(), grad(name))).collect()
}

/// Five steps beside PyTorch's, on both paths.
#[track_caller]
pub(super) fn check_fixture<O: Optimizer>(case: &str, make: impl Fn() -> Result<O>) {
    let given = fixture("optim/optim");
    for (dtype, tolerance) in [(DType::F64, F64_TOLERANCE), (DType::F32, F32_TOLERANCE)] {
        let (params, mut optimizer) = (params_of(dtype), make().unwrap());
        for (step, lr) in RATES.into_iter().enumerate() {
            optimizer.step(&params, &grads_of(&given, step, dtype), lr).unwrap();
            for (name, param) in &params {
                let want = given[&format!("{case}.{name}")].get(step).unwrap();
                assert_close(&format!("{case} step {step} {name} {dtype:?}"), param, &want, tolerance);
            }
        }
    }
}

/// Stopping after two steps, saving to a file, and going on elsewhere changes no bit.
#[track_caller]
pub(super) fn check_resume<O: Optimizer>(make: impl Fn() -> Result<O>) {
    let given = fixture("optim/optim");
    let folder = tempfile::tempdir().unwrap();
    for dtype in [DType::F64, DType::F32] {
        let run = |optimizer: &mut O, params: &Params, steps: std::ops::Range<usize>| {
            for step in steps {
                optimizer.step(params, &grads_of(&given, step, dtype), RATES[step]).unwrap();
            }
        };
        let (whole, mut optimizer) = (params_of(dtype), make().unwrap());
        run(&mut optimizer, &whole, 0..5);
        let end = optimizer.state().unwrap();

        let (before, mut first) = (params_of(dtype), make().unwrap());
        run(&mut first, &before, 0..2);
        let file = folder.path().join("state.safetensors");
        let saved: HashMap<String, Tensor> = first.state().unwrap().into_iter().collect();
        candle_core::safetensors::save(&saved, &file).unwrap();
        let after: Params = copies(&before);
        // Going on with the first run must change neither what was saved nor the copies.
        run(&mut first, &before, 2..5);

        let state: State = candle_core::safetensors::load(&file, &Device::Cpu).unwrap().into_iter().collect();
        let mut second = make().unwrap();
        second.load_state(&after, &state).unwrap();
        run(&mut second, &after, 2..5);
        for (name, param) in &whole {
            assert_eq!(bits(param), bits(&after[name]), "{name} {dtype:?}");
        }
        let resumed = second.state().unwrap();
        assert_eq!(end.keys().collect::<Vec<_>>(), resumed.keys().collect::<Vec<_>>());
        for (key, tensor) in &end {
            assert_eq!(bits(tensor), bits(&resumed[key]), "{key} {dtype:?}");
            assert_eq!(tensor.dims(), resumed[key].dims(), "{key}");
        }
    }
}

fn copies(params: &Params) -> Params {
    let copy = |param: &Var| Var::from_tensor(&param.as_detached_tensor().copy().unwrap()).unwrap();
    params.iter().map(|(name, param)| (name.clone(), copy(param))).collect()
}

fn bits(tensor: &Tensor) -> Vec<u64> {
    values(tensor).into_iter().map(f64::to_bits).collect()
}

/// `½·Σ k·(p − target)²` with curvatures from ½ to 2 is minimised, on both paths.
#[track_caller]
pub(super) fn check_quadratic<O: Optimizer>(optimizer: Result<O>, lr: f64) {
    let mut optimizer = optimizer.unwrap();
    let mut rng = Rng::new(11);
    let mut random = |count: usize, dtype: DType| {
        let all: Vec<f32> = (0..count).map(|_| rng.range(0.5, 2.0)).collect();
        Tensor::from_vec(all, count, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    };
    let sizes = [("fused", 10, DType::F32), ("by_tensor", 10, DType::F64)];
    let problems: Vec<_> = sizes.iter().map(|&(name, n, dtype)| (name, random(n, dtype), random(n, dtype))).collect();
    let zeros = |like: &Tensor| Var::from_tensor(&like.zeros_like().unwrap()).unwrap();
    let params: Params = problems.iter().map(|(name, target, _)| ((*name).to_owned(), zeros(target))).collect();
    for step in 0..400 {
        for (name, target, curvature) in &problems {
            let residual = (params[*name].as_tensor() - target).unwrap();
            let loss = ((residual.sqr().unwrap() * curvature).unwrap() * 0.5).unwrap().sum_all().unwrap();
            let grads = take_grads(&params, &mut loss.backward().unwrap());
            assert_eq!(grads.len(), 1, "each loss depends on one parameter");
            optimizer.step(&params, &grads, lr * (1.0 - f64::from(step) / 400.0)).unwrap();
        }
    }
    for (name, target, _) in &problems {
        assert_close(name, &params[*name], target, 1e-3);
    }
}

/// A tensor long enough to be updated in several pieces moves as on the tensor path, whatever the layout of its
/// gradient.
#[track_caller]
pub(super) fn check_pieces<O: Optimizer>(make: impl Fn() -> Result<O>) {
    let (rows, columns) = (3, 30_001);
    let mut rng = Rng::new(12);
    let mut random = |shape: (usize, usize)| {
        let all: Vec<f32> = (0..rows * columns).map(|_| rng.normal()).collect();
        Tensor::from_vec(all, shape, &Device::Cpu).unwrap()
    };
    let start = random((rows, columns));
    let grads = [random((columns, rows)).t().unwrap(), random((rows, columns))];
    let run = |dtype: DType| {
        let param = Var::from_tensor(&start.to_dtype(dtype).unwrap()).unwrap();
        let (params, mut optimizer) = (Params::from([("long".to_owned(), param)]), make().unwrap());
        for grad in &grads {
            let grads = Grads::from([("long".to_owned(), grad.to_dtype(dtype).unwrap())]);
            optimizer.step(&params, &grads, 0.1).unwrap();
        }
        params["long"].as_detached_tensor()
    };
    assert_close("long", &run(DType::F32), &run(DType::F64), F32_TOLERANCE);
}

/// A gradient or a state of the wrong shape is refused before anything has changed.
pub(super) fn check_untouched<O: Optimizer>(make: impl Fn() -> Result<O>) -> Result<()> {
    let given = fixture("optim/optim");
    let (params, mut optimizer) = (params_of(DType::F32), make()?);
    optimizer.step(&params, &grads_of(&given, 0, DType::F32), 0.1)?;
    let (before, state) = (copies(&params), optimizer.state()?);

    let mut grads = grads_of(&given, 1, DType::F32);
    grads.insert("weight".into(), Tensor::zeros((4, 3), DType::F32, &Device::Cpu)?);
    assert!(matches!(optimizer.step(&params, &grads, 0.1), Err(Error::Shape(_))));
    for bad in ["nonsense.weight", "momentum_buffer.other", "exp_avg"] {
        let mut broken = state.clone();
        broken.insert(bad.into(), Tensor::zeros((3, 4), DType::F32, &Device::Cpu)?);
        assert!(matches!(optimizer.load_state(&params, &broken), Err(Error::Config(_))), "{bad}");
    }
    for key in state.keys() {
        let mut broken = state.clone();
        broken.insert(key.clone(), Tensor::zeros((2, 2), DType::F32, &Device::Cpu)?);
        assert!(matches!(optimizer.load_state(&params, &broken), Err(Error::Shape(_))), "{key}");
    }

    for (name, param) in &params {
        assert_eq!(bits(param), bits(&before[name]), "{name}");
    }
    for (key, tensor) in optimizer.state()? {
        assert_eq!(bits(&tensor), bits(&state[&key]), "{key}");
    }
    Ok(())
}
