//! A map times one factor per channel: squeeze-and-excitation gates and channel masks.

use candle_core::{CpuStorage, CustomOp2, Layout, Result as CandleResult, Shape, Tensor};

use super::Backend;
use super::backend::{Dims, expect_shape};
use super::host::{self, build_rows, with_float};
use super::simd::{Element, simd_fn};
use super::tape::{Call, Kernel, Tape, Value, wrong_arity};
use super::threads::{add_up, map, partials};
use crate::error::Result;

/// `x` times a gate per image and channel (squeeze and excitation).
///
/// # Shapes
/// `gate` is an activation of `backend` with height and width 1; gradient to both.
///
/// # Errors
/// [`crate::Error::Shape`] if the gate does not fit.
pub fn scale(backend: Backend, x: &Tensor, gate: &Tensor) -> Result<Tensor> {
    let dims = backend.dims("scale", x)?;
    expect_shape("scale", "gate", gate, &backend.shape(Dims { size: [1, 1], ..dims }))?;
    multiply(backend, x, gate, ScaleOp { channels: dims.channels, gates: dims.batch })
}

/// `x` times one factor per channel, the same for every image.
///
/// # Shapes
/// `mask` `[C]`; gradient to both.
///
/// # Errors
/// [`crate::Error::Shape`] if the mask does not have one value per channel.
pub fn mask_channels(backend: Backend, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let dims = backend.dims("mask_channels", x)?;
    expect_shape("mask_channels", "mask", mask, &[dims.channels])?;
    let mask = mask.reshape(&backend.per_channel(dims.channels))?;
    multiply(backend, x, &mask, ScaleOp { channels: dims.channels, gates: 1 })
}

fn multiply(backend: Backend, x: &Tensor, gate: &Tensor, op: ScaleOp) -> Result<Tensor> {
    Ok(match backend {
        Backend::Kernels => x.contiguous()?.apply_op2(&gate.contiguous()?, op)?,
        Backend::TensorOps => x.broadcast_mul(gate)?,
    })
}

/// Arguments: x `[N, H, W, C]`, gate `[gates, C]` where each gate covers an equal share of the rows.
struct ScaleOp {
    channels: usize,
    gates: usize,
}

/// Elements per task, about.
const BLOCK: usize = 1 << 15;

impl ScaleOp {
    fn block(&self) -> usize {
        self.channels * (BLOCK / self.channels).max(1)
    }

    fn forward<T: Element>(&self, x: &[T], gate: &[T]) -> Vec<T> {
        let (share, channels) = (x.len() / self.gates, self.channels);
        let rows = if self.gates == 1 { self.block() } else { share };
        build_rows(x.len(), 1, rows, |at, y| {
            times(&x[at..at + y.len()], &gate[at / share * channels..][..channels], y);
        })
    }

    /// The gradient of the gate: the sum of x·dy over the rows of each.
    fn gate_gradient<T: Element>(&self, x: &[T], dy: &[T]) -> Vec<T> {
        let (channels, block) = (self.channels, self.block());
        let sum_up = |x: &[T], dy: &[T]| {
            let mut total = vec![0.0; channels];
            let mut sums = vec![T::ZERO; channels];
            for (x, dy) in x.chunks(block).zip(dy.chunks(block)) {
                sums.fill(T::ZERO);
                products(x, dy, &mut sums);
                total.iter_mut().zip(&sums).for_each(|(t, s)| *t += s.to_f64());
            }
            total
        };
        let totals: Vec<f64> = if self.gates == 1 {
            let parts = partials(x.len() / channels, channels, |rows| {
                let range = rows.start * channels..rows.end * channels;
                sum_up(&x[range.clone()], &dy[range])
            });
            add_up(parts)
        } else {
            let share = x.len() / self.gates;
            map(x.chunks(share).zip(dy.chunks(share)).collect(), |(x, dy)| sum_up(x, dy)).concat()
        };
        totals.into_iter().map(T::from_f64).collect()
    }
}

impl ScaleOp {
    fn input_gradient<T: Element>(&self, gate: &Tensor, dy: &Tensor) -> CandleResult<Tensor> {
        host::tensor(host::read2(dy, &gate.contiguous()?, |dy, gate| self.forward::<T>(dy, gate))?, dy.shape())
    }

    fn gate_gradient_of<T: Element>(&self, x: &Tensor, dy: &Tensor) -> CandleResult<Tensor> {
        let dgate = host::read2(&x.contiguous()?, dy, |x, dy| self.gate_gradient::<T>(x, dy))?;
        host::tensor(dgate, self.gates * self.channels)
    }
}

impl CustomOp2 for ScaleOp {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        with_float!(host::dtype(s1), T => {
            let y = self.forward::<T>(host::slice(s1, l1)?, host::slice(s2, l2)?);
            Ok((host::storage(y), l1.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        gate: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        with_float!(dy.dtype(), T => {
            let dx = x.track_op().then(|| self.input_gradient::<T>(gate, &dy)).transpose()?;
            let dgate = gate.track_op().then(|| self.gate_gradient_of::<T>(x, &dy)?.reshape(gate.shape())).transpose()?;
            Ok((dx, dgate))
        })
    }
}

impl Kernel for ScaleOp {
    fn forward(&self, args: &[&Tensor]) -> CandleResult<Tensor> {
        match *args {
            [x, gate] => x.apply_op2_no_bwd(gate, self),
            _ => Err(wrong_arity("scale", args)),
        }
    }

    fn backward(&self, call: &Call) -> CandleResult<Vec<Option<Tensor>>> {
        let (dy, shapes) = (call.gradient()?, call.shapes);
        with_float!(dy.dtype(), T => {
            let dx = call.wanted[0].then(|| self.input_gradient::<T>(call.arg(1)?, dy)).transpose()?;
            let dgate = call.wanted[1].then(|| self.gate_gradient_of::<T>(call.arg(0)?, dy)).transpose()?;
            Ok(vec![dx, dgate.map(|dgate| dgate.reshape(&shapes[1])).transpose()?])
        })
    }

    fn reads(&self, index: usize, wanted: &[bool]) -> bool {
        wanted[1 - index]
    }
}

impl Tape {
    /// See [`scale`].
    ///
    /// # Errors
    /// As [`scale`].
    pub fn scale(&mut self, x: &Value, gate: &Value) -> Result<Value> {
        let dims = Backend::Kernels.dims("scale", x.tensor())?;
        expect_shape("scale", "gate", gate.tensor(), &Backend::Kernels.shape(Dims { size: [1, 1], ..dims }))?;
        self.apply(ScaleOp { channels: dims.channels, gates: dims.batch }, &[x, gate])
    }

    /// See [`mask_channels`]; also for vectors `[N, C]`.
    ///
    /// # Errors
    /// As [`mask_channels`].
    pub fn mask_channels(&mut self, x: &Value, mask: &Value) -> Result<Value> {
        let channels = x.tensor().dims().last().copied().unwrap_or(0);
        expect_shape("mask_channels", "mask", mask.tensor(), &[channels])?;
        self.apply(ScaleOp { channels, gates: 1 }, &[x, mask])
    }
}

#[inline(always)]
fn times_body<T: Element, const FMA: bool>(x: &[T], gate: &[T], y: &mut [T]) {
    for (x, y) in x.chunks(gate.len()).zip(y.chunks_mut(gate.len())) {
        for ((y, x), gate) in y.iter_mut().zip(x).zip(gate) {
            *y = *x * *gate;
        }
    }
}

#[inline(always)]
fn products_body<T: Element, const FMA: bool>(x: &[T], dy: &[T], sums: &mut [T]) {
    for (x, dy) in x.chunks(sums.len()).zip(dy.chunks(sums.len())) {
        for ((sum, x), dy) in sums.iter_mut().zip(x).zip(dy) {
            *sum = x.fma::<FMA>(*dy, *sum);
        }
    }
}

simd_fn! { fn times<T: Element>(x: &[T], gate: &[T], y: &mut [T]) = times_body }
simd_fn! { fn products<T: Element>(x: &[T], dy: &[T], sums: &mut [T]) = products_body }

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{BACKENDS, Check, F64_TOLERANCE, assert_close, check_frozen, on_both, random};

    #[test]
    fn gradients_match_central_differences() {
        for backend in BACKENDS {
            for channels in [1, 3, 17] {
                let x = backend.from_nchw(&random(&[2, channels, 3, 2], 1)).unwrap();
                let gate = backend.from_nchw(&random(&[2, channels, 1, 1], 2)).unwrap();
                let check = Check::new(&format!("{backend:?} {channels}"));
                check.gradients(&[x.clone(), gate], |t| scale(backend, &t[0], &t[1]));
                check.gradients(&[x, random(&[channels], 3)], |t| mask_channels(backend, &t[0], &t[1]));
            }
        }
    }

    #[test]
    fn both_backends_agree() {
        let (x, mask) = (random(&[3, 5, 4, 7], 1), random(&[5], 2));
        let [a, b] = on_both(&x, |backend, x| mask_channels(backend, x, &mask));
        assert_close("mask_channels", &a, &b, F64_TOLERANCE);
    }

    #[test]
    fn frozen_arguments_get_no_gradient() {
        let (x, mask) = (random(&[2, 4, 3, 5], 1), random(&[5], 2));
        check_frozen(&[x, mask], |t| mask_channels(Backend::Kernels, &t[0], &t[1]));
    }

    #[test]
    fn gates_that_do_not_fit_are_refused() {
        let x = random(&[2, 4, 3, 5], 1);
        assert!(scale(Backend::Kernels, &x, &random(&[1, 1, 1, 5], 1)).is_err());
        assert!(mask_channels(Backend::Kernels, &x, &random(&[4], 1)).is_err());
    }
}
