//! What the tests of this module share: random tensors, comparison, central differences, naive loops.

use candle_core::{DType, Device, Tensor, Var};

use super::Backend;
use crate::error::Result;
use crate::graph::Activation;
use crate::rng::Rng;

pub const BACKENDS: [Backend; 2] = [Backend::Kernels, Backend::TensorOps];

/// The first NVIDIA GPU, if there is one and this build has the feature `cuda`; says why not.
pub fn gpu() -> Option<Device> {
    Device::new_cuda(0).inspect_err(|error| eprintln!("skipped on a GPU: {error}")).ok()
}

/// Every backend with a device to try it on: both on the processor, plain operations on a GPU too if there is one.
pub fn places() -> Vec<(Backend, Device)> {
    let processor = BACKENDS.map(|backend| (backend, Device::Cpu));
    processor.into_iter().chain(gpu().map(|gpu| (Backend::for_device(&gpu), gpu))).collect()
}

pub const ALL_ACTIVATIONS: [Activation; 6] = [
    Activation::Relu,
    Activation::Relu6,
    Activation::Silu,
    Activation::HardSwish,
    Activation::HardSigmoid,
    Activation::Sigmoid,
];

/// For values that are moved, not computed.
pub const EXACT: f64 = 0.0;
/// For two orders of summation in f64.
pub const F64_TOLERANCE: f64 = 1e-11;
/// For two orders of summation in f32, relative to the largest element.
pub const F32_TOLERANCE: f64 = 2e-5;
/// For central differences in f64 with step `STEP`, relative to the largest element.
const DIFFERENCE_TOLERANCE: f64 = 1e-6;
const STEP: f64 = 1e-5;

/// Normal values in f64.
pub fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = Rng::new(seed);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| f64::from(rng.normal())).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Asserts equal shapes and |a − b| ≤ tolerance · max(1, largest |b|), naming the worst element.
pub fn assert_close(what: &str, a: &Tensor, b: &Tensor, tolerance: f64) {
    assert_eq!(a.dims(), b.dims(), "{what}: shapes differ");
    let (a, b) = (naive::values(a), naive::values(b));
    let largest = b.iter().fold(1f64, |m, v| m.max(v.abs()));
    let worst = a
        .iter()
        .zip(&b)
        .map(|(a, b)| (a - b).abs())
        .enumerate()
        .fold((0, 0.0), |worst, (i, d)| if d > worst.1 || d.is_nan() { (i, d) } else { worst });
    let (i, d) = worst;
    assert!(
        d <= tolerance * largest,
        "{what}: worst element {i}: {} and {} differ by {d:e}, allowed {:e}",
        a[i],
        b[i],
        tolerance * largest
    );
}

/// Asserts equal lengths and |got − want| ≤ tolerance · largest |want|.
pub fn assert_near(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    let largest = want.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let worst = got.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
    assert!(got.len() == want.len() && worst <= tolerance * largest, "{what}: {worst:e} of {largest}");
}

/// Runs `f` in both layouts on an NCHW tensor and returns both results as NCHW.
pub fn on_both(x: &Tensor, f: impl Fn(Backend, &Tensor) -> Result<Tensor>) -> [Tensor; 2] {
    BACKENDS.map(|backend| {
        let y = f(backend, &backend.from_nchw(x).unwrap()).unwrap();
        backend.to_nchw(&y).unwrap()
    })
}

/// A gradient check with a name for failures.
pub struct Check(String);

impl Check {
    pub fn new(name: &str) -> Self {
        Self(name.to_string())
    }

    /// Compares the gradient of a random projection of `f` with central differences, for every element of every
    /// argument.
    pub fn gradients(&self, args: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
        let shape = f(args).unwrap().dims().to_vec();
        let direction = random(&shape, 99);
        let project = |args: &[Tensor]| (f(args).unwrap() * &direction).unwrap().sum_all().unwrap();
        let vars: Vec<Var> = args.iter().map(|a| Var::from_tensor(&a.copy().unwrap()).unwrap()).collect();
        let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let grads = project(&tracked).backward().unwrap();
        for (i, arg) in args.iter().enumerate() {
            let values = naive::values(arg);
            let at = |j: usize, step: f64| {
                let mut values = values.clone();
                values[j] += step;
                let mut args = args.to_vec();
                args[i] = Tensor::from_vec(values, arg.shape(), &Device::Cpu).unwrap();
                project(&args).to_scalar::<f64>().unwrap()
            };
            let expected = (0..values.len()).map(|j| (at(j, STEP) - at(j, -STEP)) / (2.0 * STEP)).collect::<Vec<_>>();
            let expected = Tensor::from_vec(expected, arg.shape(), &Device::Cpu).unwrap();
            let got = grads.get(&vars[i]).unwrap_or_else(|| panic!("{}: argument {i} has no gradient", self.0));
            assert_close(&format!("{} gradient of argument {i}", self.0), got, &expected, DIFFERENCE_TOLERANCE);
        }
    }
}

/// Each argument alone, tracked among plain ones, gets its gradient, and no other argument gets one.
pub fn check_frozen(args: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    assert!(!f(args).unwrap().track_op(), "plain arguments leave a tape");
    for tracked in 0..args.len() {
        let var = Var::from_tensor(&args[tracked]).unwrap();
        let mut mixed = args.to_vec();
        mixed[tracked] = var.as_tensor().clone();
        let grads = f(&mixed).unwrap().backward().unwrap();
        assert!(grads.get(&var).is_some(), "argument {tracked} has no gradient");
        for (i, arg) in mixed.iter().enumerate().filter(|(i, _)| *i != tracked) {
            assert!(grads.get(arg).is_none(), "frozen argument {i} has a gradient");
        }
    }
}

/// References by the definition, on NCHW data in f64.
pub mod naive {
    use super::*;

    pub fn values(t: &Tensor) -> Vec<f64> {
        t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// A tensor of four dimensions from a function of the index.
    pub fn build(dims: [usize; 4], f: impl Fn([usize; 4]) -> f64) -> Tensor {
        let [_, b, c, d] = dims;
        let count = dims.iter().product::<usize>();
        let values: Vec<f64> = (0..count).map(|i| f([i / (b * c * d), i / (c * d) % b, i / d % c, i % d])).collect();
        Tensor::from_vec(values, dims.as_slice(), &Device::Cpu).unwrap()
    }
}
