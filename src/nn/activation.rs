//! Elementwise non-linearities.
//!
//! Gradients at the kinks are PyTorch's for ReLU and ReLU6 (zero); HardSwish and HardSigmoid are flat there.

use candle_core::{CpuStorage, CustomOp1, Layout, Result as CandleResult, Shape, Tensor};

use super::Backend;
use super::host::{self, build_rows, with_float};
use super::simd::{Element, simd_fn};
use super::tape::{Call, Kernel, Tape, Value, wrong_arity};
use crate::error::Result;
use crate::graph::Activation;

/// A non-linearity as kernels see it. NaN in, NaN out.
pub(super) trait Function {
    /// f(z).
    fn value<T: Element>(z: T) -> T;
    /// f′(z).
    fn slope<T: Element>(z: T) -> T;
}

/// f(z) = z: no activation.
pub(super) struct Identity;
pub(super) struct Relu;
pub(super) struct Relu6;
pub(super) struct Silu;
pub(super) struct HardSwish;
pub(super) struct HardSigmoid;
pub(super) struct Sigmoid;

/// Evaluates `$body` with `$f` as the [`Function`] of an `Option<Activation>`.
macro_rules! with_function {
    ($activation:expr, $f:ident => $body:expr) => {
        with_function!(@ $activation, $f, $body,
            None => Identity,
            Some($crate::graph::Activation::Relu) => Relu,
            Some($crate::graph::Activation::Relu6) => Relu6,
            Some($crate::graph::Activation::Silu) => Silu,
            Some($crate::graph::Activation::HardSwish) => HardSwish,
            Some($crate::graph::Activation::HardSigmoid) => HardSigmoid,
            Some($crate::graph::Activation::Sigmoid) => Sigmoid)
    };
    (@ $activation:expr, $f:ident, $body:expr, $($pattern:pat => $function:ident),+) => {
        match $activation {
            $($pattern => {
                type $f = $crate::nn::activation::$function;
                $body
            })+
        }
    };
}
pub(super) use with_function;

#[inline(always)]
fn number<T: Element>(v: f64) -> T {
    T::from_f64(v)
}

#[inline(always)]
fn clamp06<T: Element>(z: T) -> T {
    // Comparisons in this order let NaN through.
    let z = if z < T::ZERO { T::ZERO } else { z };
    if z > number(6.0) { number(6.0) } else { z }
}

#[inline(always)]
fn sigmoid<T: Element>(z: T) -> T {
    T::ONE / (T::ONE + (T::ZERO - z).exp())
}

impl Function for Identity {
    #[inline(always)]
    fn value<T: Element>(z: T) -> T {
        z
    }

    #[inline(always)]
    fn slope<T: Element>(_: T) -> T {
        T::ONE
    }
}

impl Function for Relu {
    #[inline(always)]
    fn value<T: Element>(z: T) -> T {
        if z < T::ZERO { T::ZERO } else { z }
    }

    #[inline(always)]
    fn slope<T: Element>(z: T) -> T {
        if z > T::ZERO { T::ONE } else { T::ZERO }
    }
}

impl Function for Relu6 {
    #[inline(always)]
    fn value<T: Element>(z: T) -> T {
        clamp06(z)
    }

    #[inline(always)]
    fn slope<T: Element>(z: T) -> T {
        if z > T::ZERO && z < number(6.0) { T::ONE } else { T::ZERO }
    }
}

impl Function for Silu {
    #[inline(always)]
    fn value<T: Element>(z: T) -> T {
        z * sigmoid(z)
    }

    #[inline(always)]
    fn slope<T: Element>(z: T) -> T {
        let s = sigmoid(z);
        s * (T::ONE + z * (T::ONE - s))
    }
}

impl Function for HardSwish {
    #[inline(always)]
    fn value<T: Element>(z: T) -> T {
        z * HardSigmoid::value(z)
    }

    #[inline(always)]
    fn slope<T: Element>(z: T) -> T {
        z * HardSigmoid::slope(z) + HardSigmoid::value(z)
    }
}

impl Function for HardSigmoid {
    #[inline(always)]
    fn value<T: Element>(z: T) -> T {
        clamp06(z + number(3.0)) * number(1.0 / 6.0)
    }

    #[inline(always)]
    fn slope<T: Element>(z: T) -> T {
        if z > number(-3.0) && z < number(3.0) { number(1.0 / 6.0) } else { T::ZERO }
    }
}

impl Function for Sigmoid {
    #[inline(always)]
    fn value<T: Element>(z: T) -> T {
        sigmoid(z)
    }

    #[inline(always)]
    fn slope<T: Element>(z: T) -> T {
        let s = sigmoid(z);
        s * (T::ONE - s)
    }
}

/// An activation on its own, elementwise on a tensor of any shape.
///
/// # Errors
/// [`crate::Error::Tensor`] if candle fails.
pub fn activation(backend: Backend, x: &Tensor, function: Activation) -> Result<Tensor> {
    match backend {
        Backend::Kernels => Ok(x.contiguous()?.apply_op1(ActivationOp(function))?),
        Backend::TensorOps => tensor_ops(x, function),
    }
}

/// The same function from candle operations, with the gradients above at the kinks.
pub(super) fn tensor_ops(x: &Tensor, function: Activation) -> Result<Tensor> {
    let relu = |x: &Tensor| -> CandleResult<Tensor> {
        let zeros = x.zeros_like()?;
        x.gt(&zeros)?.where_cond(x, &zeros)
    };
    let relu6 = |x: &Tensor| -> CandleResult<Tensor> {
        let six = (x.ones_like()? * 6.0)?;
        let x = relu(x)?;
        x.lt(&six)?.where_cond(&x, &six)
    };
    // Through tanh: 1 / (1 + exp(-x)) overflows in its gradient.
    let sigmoid = |x: &Tensor| -> CandleResult<Tensor> { (x * 0.5)?.tanh()?.affine(0.5, 0.5) };
    let hard_sigmoid = |x: &Tensor| -> CandleResult<Tensor> { relu6(&(x + 3.0)?)? / 6.0 };
    Ok(match function {
        Activation::Relu => relu(x)?,
        Activation::Relu6 => relu6(x)?,
        Activation::Silu => (x * sigmoid(x)?)?,
        Activation::HardSwish => (x * hard_sigmoid(x)?)?,
        Activation::HardSigmoid => hard_sigmoid(x)?,
        Activation::Sigmoid => sigmoid(x)?,
    })
}

/// Elements per task.
const BLOCK: usize = 1 << 15;

struct ActivationOp(Activation);

impl ActivationOp {
    fn forward<T: Element>(&self, x: &[T]) -> Vec<T> {
        build_rows(x.len(), 1, BLOCK, |at, y| {
            with_function!(Some(self.0), F => value::<T, F>(&x[at..at + y.len()], y));
        })
    }

    fn backward<T: Element>(&self, x: &[T], dy: &[T]) -> Vec<T> {
        build_rows(x.len(), 1, BLOCK, |at, dx| {
            let range = at..at + dx.len();
            with_function!(Some(self.0), F => slope::<T, F>(&x[range.clone()], &dy[range], dx));
        })
    }

    fn gradient(&self, x: &Tensor, dy: &Tensor) -> CandleResult<Tensor> {
        with_float!(x.dtype(), T => host::tensor(host::read2(x, dy, |x, dy| self.backward::<T>(x, dy))?, x.shape()))
    }
}

impl CustomOp1 for ActivationOp {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        with_float!(host::dtype(s), T => {
            Ok((host::storage(self.forward::<T>(host::slice(s, l)?)), l.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> CandleResult<Option<Tensor>> {
        x.track_op().then(|| self.gradient(&x.contiguous()?, &dy.contiguous()?)).transpose()
    }
}

impl Kernel for ActivationOp {
    fn forward(&self, args: &[&Tensor]) -> CandleResult<Tensor> {
        match *args {
            [x] => x.apply_op1_no_bwd(self),
            _ => Err(wrong_arity("activation", args)),
        }
    }

    fn backward(&self, call: &Call) -> CandleResult<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.gradient(call.arg(0)?, call.gradient()?)?)])
    }
}

impl Tape {
    /// See [`activation`].
    ///
    /// # Errors
    /// As [`activation`].
    pub fn activation(&mut self, x: &Value, function: Activation) -> Result<Value> {
        self.apply(ActivationOp(function), &[x])
    }
}

#[inline(always)]
fn value_body<T: Element, F: Function, const FMA: bool>(x: &[T], y: &mut [T]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = F::value(*x);
    }
}

#[inline(always)]
fn slope_body<T: Element, F: Function, const FMA: bool>(x: &[T], dy: &[T], dx: &mut [T]) {
    for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
        *dx = *dy * F::slope(*x);
    }
}

simd_fn! { fn value<T: Element, F: Function>(x: &[T], y: &mut [T]) = value_body }
simd_fn! { fn slope<T: Element, F: Function>(x: &[T], dy: &[T], dx: &mut [T]) = slope_body }

/// Applies an optional activation by candle operations.
pub(super) fn optional(backend: Backend, x: Tensor, function: Option<Activation>) -> Result<Tensor> {
    match function {
        Some(function) => activation(backend, &x, function),
        None => Ok(x),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::nn::testing::{ALL_ACTIVATIONS, Check, F32_TOLERANCE, assert_close, random};

    #[test]
    fn gradients_match_central_differences() {
        for function in ALL_ACTIVATIONS {
            for backend in [Backend::Kernels, Backend::TensorOps] {
                let x = (random(&[3, 37], 5) * 4.0).unwrap();
                Check::new(&format!("{function:?} {backend:?}"))
                    .gradients(&[x], |t| activation(backend, &t[0], function));
            }
        }
    }

    #[test]
    fn kernels_and_tensor_ops_agree_in_single_precision() {
        for function in ALL_ACTIVATIONS {
            let x = (random(&[5, 1001], 6) * 8.0).unwrap().to_dtype(DType::F32).unwrap();
            let a = activation(Backend::Kernels, &x, function).unwrap();
            let b = activation(Backend::TensorOps, &x, function).unwrap();
            assert_close(&format!("{function:?}"), &a, &b, F32_TOLERANCE);
        }
    }

    #[test]
    fn kinks_have_pytorch_gradients() {
        let cases = [(Activation::Relu, [0.0, 0.0, 1.0, 1.0]), (Activation::Relu6, [0.0, 0.0, 1.0, 0.0])];
        for (function, expected) in cases {
            for backend in [Backend::Kernels, Backend::TensorOps] {
                let x = Var::new(&[-1f32, 0.0, 3.0, 6.0], &Device::Cpu).unwrap();
                let grads = activation(backend, &x, function).unwrap().backward().unwrap();
                assert_eq!(grads.get(&x).unwrap().to_vec1::<f32>().unwrap(), expected, "{function:?} {backend:?}");
            }
        }
    }

    #[test]
    fn nan_stays_visible_and_extremes_stay_finite() {
        for function in ALL_ACTIVATIONS {
            let x = Var::new(&[f32::NAN, 1e4, -1e4], &Device::Cpu).unwrap();
            let y = activation(Backend::Kernels, &x, function).unwrap();
            let grads = y.backward().unwrap();
            let (y, dx) = (y.to_vec1::<f32>().unwrap(), grads.get(&x).unwrap().to_vec1::<f32>().unwrap());
            assert!(y[0].is_nan(), "{function:?} hides NaN");
            assert!(y[1..].iter().chain(&dx[1..]).all(|v| v.is_finite()), "{function:?} {y:?} {dx:?}");
        }
    }
}
