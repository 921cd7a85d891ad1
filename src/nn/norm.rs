//! Batch normalisation with an optional activation behind it, fused.

mod kernels;
mod late;
mod moments;

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result as CandleResult, Shape, Tensor};

pub(super) use self::kernels::column_sums;
use self::kernels::{Normaliser, ParameterGradients, Terms};
pub(super) use self::late::FillRows;
pub use self::late::LateGradient;
pub(super) use self::moments::{Moments, PartialMoments};
use super::activation::{optional, with_function};
use super::backend::expect_shape;
use super::host::{self, with_float};
use super::simd::Element;
use super::tape::{Call, Kernel, Tape, Value, wrong_arity};
use super::{Backend, activation};
use crate::error::Result;
use crate::graph::Activation;

/// What batch normalisation applies to its input besides statistics.
#[derive(Debug, Clone, Copy)]
pub struct BatchNorm<'a> {
    /// Scale γ, `[C]`.
    pub weight: &'a Tensor,
    /// Shift β, `[C]`.
    pub bias: &'a Tensor,
    /// Added to the variance.
    pub eps: f64,
    /// Applied to the result.
    pub activation: Option<Activation>,
}

/// The same on a [`Tape`].
#[derive(Debug, Clone, Copy)]
pub struct NormValues<'a> {
    /// Scale γ, `[C]`.
    pub weight: &'a Value,
    /// Shift β, `[C]`.
    pub bias: &'a Value,
    /// Added to the variance.
    pub eps: f64,
    /// Applied to the result.
    pub activation: Option<Activation>,
}

/// Mean and variance per channel of one batch, as running statistics use them. Carries no gradient.
#[derive(Debug, Clone)]
pub struct BatchStatistics {
    /// Mean, `[C]`.
    pub mean: Tensor,
    /// Variance, `[C]`: unbiased (divided by N·H·W − 1) as in PyTorch, biased if there is only one value.
    pub var: Tensor,
}

/// Normalises by the statistics of the batch: y = act((x − mean) / √(var + eps) · γ + β), var biased.
///
/// # Shapes
/// `x` an activation of `backend`; gradient to `x`, weight and bias.
///
/// # Errors
/// [`crate::Error::Shape`] if weight or bias do not have one value per channel.
///
/// # Source
/// Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1.
pub fn batch_norm_train(backend: Backend, x: &Tensor, norm: BatchNorm) -> Result<(Tensor, BatchStatistics)> {
    let dims = backend.dims("batch_norm", x)?;
    norm.check(dims.channels)?;
    let count = dims.batch * dims.size[0] * dims.size[1];
    let (y, mean, var) = match backend {
        Backend::Kernels => norm.apply(x, OnceLock::new())?,
        Backend::TensorOps => norm.train_by_tensor_ops(x)?,
    };
    let var = if count > 1 { (var * (count as f64 / (count - 1) as f64))? } else { var };
    Ok((y, BatchStatistics { mean, var }))
}

/// Normalises by given statistics, `running_mean` and `running_var`, each `[C]` and without gradient.
///
/// # Shapes
/// `x` an activation of `backend`; gradient to `x`, weight and bias.
///
/// # Errors
/// [`crate::Error::Shape`] if a parameter does not have one value per channel.
pub fn batch_norm_eval(
    backend: Backend,
    x: &Tensor,
    norm: BatchNorm,
    running_mean: &Tensor,
    running_var: &Tensor,
) -> Result<Tensor> {
    let channels = backend.dims("batch_norm", x)?.channels;
    norm.check(channels)?;
    expect_shape("batch_norm", "running_mean", running_mean, &[channels])?;
    expect_shape("batch_norm", "running_var", running_var, &[channels])?;
    let (mean, var) = (running_mean.detach(), running_var.detach());
    match backend {
        Backend::Kernels => {
            let wide = |t: &Tensor| t.to_dtype(DType::F64)?.to_vec1::<f64>();
            let moments = Moments { mean: wide(&mean)?, var: wide(&var)?, of_batch: false };
            Ok(norm.apply(x, OnceLock::from(moments))?.0)
        }
        Backend::TensorOps => {
            let per_channel = backend.per_channel(channels);
            let scale = (norm.weight / (var + norm.eps)?.sqrt()?)?.reshape(&per_channel)?;
            let y = x.broadcast_sub(&mean.reshape(&per_channel)?)?.broadcast_mul(&scale)?;
            optional(backend, y.broadcast_add(&norm.bias.reshape(&per_channel)?)?, norm.activation)
        }
    }
}

impl BatchNorm<'_> {
    fn check(&self, channels: usize) -> Result<()> {
        expect_shape("batch_norm", "weight", self.weight, &[channels])?;
        expect_shape("batch_norm", "bias", self.bias, &[channels])
    }

    /// Runs the kernel op; without given moments it takes those of the batch. Returns output, mean, biased variance.
    fn apply(&self, x: &Tensor, moments: OnceLock<Moments>) -> Result<(Tensor, Tensor, Tensor)> {
        let moments = Arc::new(moments);
        let op = NormOp { eps: self.eps, activation: self.activation, moments: moments.clone() };
        let y = x.contiguous()?.apply_op3(&self.weight.contiguous()?, &self.bias.contiguous()?, op)?;
        let found = moments.get().ok_or_else(missing)?;
        let vector = |v: &[f64]| Tensor::new(v, x.device())?.to_dtype(x.dtype());
        Ok((y, vector(&found.mean)?, vector(&found.var)?))
    }

    fn train_by_tensor_ops(&self, x: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let dims = (0, 2, 3);
        let mean = x.mean_keepdim(dims)?;
        let centred = x.broadcast_sub(&mean)?;
        let var = centred.sqr()?.mean_keepdim(dims)?;
        let shape = mean.shape();
        let scale = self.weight.reshape(shape)?.div(&(&var + self.eps)?.sqrt()?)?;
        let y = centred.broadcast_mul(&scale)?.broadcast_add(&self.bias.reshape(shape)?)?;
        let y = match self.activation {
            Some(function) => activation::tensor_ops(&y, function)?,
            None => y,
        };
        Ok((y, mean.flatten_all()?.detach(), var.flatten_all()?.detach()))
    }
}

fn missing() -> candle_core::Error {
    candle_core::Error::Msg("batch_norm: statistics are taken in the forward pass".into()).bt()
}

/// Arguments: x `[N, H, W, C]`, weight, bias.
struct NormOp {
    eps: f64,
    activation: Option<Activation>,
    /// Set by the forward pass unless given; the backward pass recomputes the rest from the input.
    moments: Arc<OnceLock<Moments>>,
}

impl NormOp {
    fn normaliser<T: Element>(&self, weight: &[T], bias: &[T]) -> CandleResult<Normaliser<T>> {
        let Moments { mean, var, .. } = self.moments.get().ok_or_else(missing)?;
        Ok(Normaliser::new(mean, var, self.eps, [weight, bias]))
    }

    fn forward<T: Element>(&self, x: &[T], weight: &[T], bias: &[T]) -> CandleResult<Vec<T>> {
        self.moments.get_or_init(|| Moments::of(x, weight.len()));
        let normaliser = self.normaliser(weight, bias)?;
        Ok(with_function!(self.activation, F => normaliser.forward::<F>(x)))
    }

    /// Gradients of x, weight and bias, each only if wanted.
    fn backward<T: Element>(
        &self,
        args: [&Tensor; 3],
        dy: &Tensor,
        [for_x, for_weight, for_bias]: [bool; 3],
    ) -> CandleResult<[Option<Tensor>; 3]> {
        let dy = dy.contiguous()?;
        let found = self.sums::<T>(args, &dy, for_x, for_weight || for_bias)?;
        let dx = for_x.then(|| {
            host::read2(
                &found.x,
                &dy,
                |x, dy| with_function!(self.activation, F => found.normaliser.input_gradient::<F>(x, dy, &found.terms)),
            )
        });
        let dx = dx.transpose()?.map(|dx| host::tensor(dx, found.x.shape())).transpose()?;
        let [dweight, dbias] = found.parameter_gradients([for_weight, for_bias])?;
        Ok([dx, dweight, dbias])
    }

    /// What all of x has to be gone through for before the gradient of any of it can be told.
    fn sums<T: Element>(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        dy: &Tensor,
        for_x: bool,
        for_parameters: bool,
    ) -> CandleResult<Sums<T>> {
        let of_batch = self.moments.get().ok_or_else(missing)?.of_batch;
        let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.contiguous()?);
        let normaliser = host::read2(&weight, &bias, |w, b| self.normaliser::<T>(w, b))??;
        let sums = (for_parameters || (for_x && of_batch)).then(|| {
            host::read2(
                &x,
                dy,
                |x, dy| with_function!(self.activation, F => normaliser.parameter_gradients::<F>(x, dy)),
            )
        });
        let sums = sums.transpose()?;
        let rows = x.elem_count() / weight.elem_count();
        let terms = normaliser.terms(rows, sums.as_ref().filter(|_| of_batch));
        Ok(Sums { x, normaliser, sums, terms })
    }
}

/// See [`NormOp::sums`].
struct Sums<T> {
    x: Tensor,
    normaliser: Normaliser<T>,
    sums: Option<ParameterGradients>,
    terms: Terms<T>,
}

impl<T: Element> Sums<T> {
    /// Gradients of weight and bias, each only if wanted.
    fn parameter_gradients(&self, wanted: [bool; 2]) -> CandleResult<[Option<Tensor>; 2]> {
        let tensor =
            |values: &[f64]| host::tensor(values.iter().map(|v| T::from_f64(*v)).collect::<Vec<T>>(), values.len());
        let sums = |index: usize| self.sums.as_ref().filter(|_| wanted[index]);
        Ok([sums(0).map(|s| tensor(&s.weight)).transpose()?, sums(1).map(|s| tensor(&s.bias)).transpose()?])
    }
}

impl Kernel for NormOp {
    fn forward(&self, args: &[&Tensor]) -> CandleResult<Tensor> {
        match *args {
            [x, weight, bias] => x.apply_op3_no_bwd(weight, bias, self),
            _ => Err(wrong_arity("batch_norm", args)),
        }
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn backward(&self, call: &Call) -> CandleResult<Vec<Option<Tensor>>> {
        let args = [call.arg(0)?, call.arg(1)?, call.arg(2)?];
        let wanted = [call.wanted[0], call.wanted[1], call.wanted[2]];
        with_float!(args[0].dtype(), T => Ok(self.backward::<T>(args, call.gradient()?, wanted)?.to_vec()))
    }

    fn backward_late(&self, call: &Call) -> CandleResult<Option<(LateGradient, Vec<Option<Tensor>>)>> {
        let dy = call.gradient()?;
        if dy.dtype() != DType::F32 {
            return Ok(None);
        }
        let args = [call.arg(0)?, call.arg(1)?, call.arg(2)?];
        let wanted = [call.wanted[1], call.wanted[2]];
        let found = self.sums::<f32>(args, dy, true, wanted.contains(&true))?;
        let others = found.parameter_gradients(wanted)?.to_vec();
        let late = LateGradient::new(found.x, dy.clone(), self.activation, found.normaliser, found.terms);
        Ok(Some((late, others)))
    }
}

impl Tape {
    /// See [`batch_norm_train`]: output and statistics.
    ///
    /// # Errors
    /// As [`batch_norm_train`].
    pub fn batch_norm_train(&mut self, x: &Value, norm: NormValues) -> Result<(Value, BatchStatistics)> {
        let dims = Backend::Kernels.dims("batch_norm", x.tensor())?;
        let moments = x.moments();
        let y = self.batch_norm(x, norm, moments.clone())?;
        let Moments { mean, var, .. } = moments.get().ok_or_else(missing)?;
        let count = (dims.batch * dims.size[0] * dims.size[1]) as f64;
        let unbiased = if count > 1.0 { count / (count - 1.0) } else { 1.0 };
        let vector = |v: Vec<f64>| Tensor::new(v, x.tensor().device())?.to_dtype(x.tensor().dtype());
        let var = vector(var.iter().map(|v| v * unbiased).collect())?;
        Ok((y, BatchStatistics { mean: vector(mean.clone())?, var }))
    }

    /// See [`batch_norm_eval`].
    ///
    /// # Errors
    /// As [`batch_norm_eval`].
    pub fn batch_norm_eval(&mut self, x: &Value, norm: NormValues, running: [&Tensor; 2]) -> Result<Value> {
        let channels = Backend::Kernels.dims("batch_norm", x.tensor())?.channels;
        expect_shape("batch_norm", "running_mean", running[0], &[channels])?;
        expect_shape("batch_norm", "running_var", running[1], &[channels])?;
        let wide = |t: &Tensor| t.to_dtype(DType::F64)?.to_vec1::<f64>();
        let moments = Moments { mean: wide(running[0])?, var: wide(running[1])?, of_batch: false };
        self.batch_norm(x, norm, Arc::new(OnceLock::from(moments)))
    }

    fn batch_norm(&mut self, x: &Value, norm: NormValues, moments: Arc<OnceLock<Moments>>) -> Result<Value> {
        let NormValues { weight, bias, eps, activation } = norm;
        let channels = Backend::Kernels.dims("batch_norm", x.tensor())?.channels;
        BatchNorm { weight: weight.tensor(), bias: bias.tensor(), eps, activation }.check(channels)?;
        self.apply(NormOp { eps, activation, moments }, &[x, weight, bias])
    }
}

impl CustomOp3 for NormOp {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        with_float!(host::dtype(s1), T => {
            let y = self.forward::<T>(host::slice(s1, l1)?, host::slice(s2, l2)?, host::slice(s3, l3)?)?;
            Ok((host::storage(y), l1.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dweight, dbias] = with_float!(x.dtype(), T => {
            self.backward::<T>([x, weight, bias], dy, [x, weight, bias].map(Tensor::track_op))
        })?;
        Ok((dx, dweight, dbias))
    }
}

#[cfg(test)]
mod tests;
