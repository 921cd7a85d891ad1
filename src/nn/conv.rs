//! 2-D convolution and the fully connected layer.

mod dense;
mod depthwise;
mod tensor_ops;
mod window;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result as CandleResult, Shape, Tensor};

use super::Backend;
use super::backend::{Dims, expect_shape};
use super::host::{self, with_float};
use super::simd::Element;
use crate::error::{Error, Result};
use crate::graph::Conv2d;

/// Cross-correlation of `x` with `weight`, plus `bias`.
///
/// # Shapes
/// `x` an activation of `backend` with I channels, `weight` `[O, I/groups, kh, kw]`, `bias` `[O]`; gradient to all
/// three, each only where it is tracked.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit `conv` or the kernel does not fit the padded input.
pub fn conv2d(backend: Backend, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, conv: &Conv2d) -> Result<Tensor> {
    let geometry = Geometry::new(backend.dims("conv2d", x)?, conv)?;
    let Geometry { in_channels, out_channels, conv: Conv2d { kernel: [kh, kw], groups, .. }, .. } = geometry;
    expect_shape("conv2d", "weight", weight, &[out_channels, in_channels / groups, kh, kw])?;
    if let Some(bias) = bias {
        expect_shape("conv2d", "bias", bias, &[out_channels])?;
    }
    match backend {
        Backend::Kernels => {
            let (x, weight) = (x.contiguous()?, weight.contiguous()?);
            Ok(match bias {
                Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, ConvOp(geometry))?,
                None => x.apply_op2(&weight, ConvOp(geometry))?,
            })
        }
        Backend::TensorOps => tensor_ops::conv2d(x, weight, bias, &geometry),
    }
}

/// The fully connected layer y = x·Wᵀ + b.
///
/// # Shapes
/// `x` `[N, F]`, `weight` `[O, F]`, `bias` `[O]`; gradient to all three.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit together.
pub fn linear(backend: Backend, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (&[n, features], &[out, _]) = (x.dims(), weight.dims()) else {
        let got = (x.dims(), weight.dims());
        return Err(Error::Shape(format!("linear: expected x and weight of rank 2, got {:?} and {:?}", got.0, got.1)));
    };
    expect_shape("linear", "weight", weight, &[out, features])?;
    let x = match backend {
        Backend::Kernels => x.reshape((n, 1, 1, features))?,
        Backend::TensorOps => x.reshape((n, features, 1, 1))?,
    };
    // A 1×1 convolution on a 1×1 map is the same product.
    let y = conv2d(backend, &x, &weight.reshape((out, features, 1, 1))?, bias, &Conv2d::new(out, 1))?;
    Ok(y.reshape((n, out))?)
}

/// A convolution's attributes with the sizes they meet.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    batch: usize,
    in_channels: usize,
    out_channels: usize,
    input: [usize; 2],
    output: [usize; 2],
    conv: Conv2d,
}

impl Geometry {
    fn new(dims: Dims, conv: &Conv2d) -> Result<Self> {
        let Dims { batch, channels, size } = dims;
        let Some(output) = conv.output_size(size) else {
            return Err(Error::Shape(format!("conv2d: kernel {:?} does not fit input {size:?}", conv.kernel)));
        };
        let groups = conv.groups;
        if groups == 0 || !channels.is_multiple_of(groups) || !conv.out_channels.is_multiple_of(groups) {
            let expected = format!("expected {groups} groups to divide {channels} input channels and outputs");
            return Err(Error::Shape(format!("conv2d: {expected}, got {} outputs", conv.out_channels)));
        }
        if conv.out_channels == 0 {
            return Err(Error::Shape("conv2d: expected at least one output channel, got 0".into()));
        }
        Ok(Self { batch, in_channels: channels, out_channels: conv.out_channels, input: size, output, conv: *conv })
    }

    /// One filter per channel.
    fn is_depthwise(&self) -> bool {
        self.conv.groups == self.in_channels && self.in_channels == self.out_channels
    }

    /// Taps of one filter.
    fn taps(&self) -> usize {
        self.conv.kernel[0] * self.conv.kernel[1]
    }

    /// Input channels of one group.
    fn group_in(&self) -> usize {
        self.in_channels / self.conv.groups
    }

    /// Output channels of one group.
    fn group_out(&self) -> usize {
        self.out_channels / self.conv.groups
    }

    /// Output positions of the batch.
    fn out_rows(&self) -> usize {
        self.batch * self.output[0] * self.output[1]
    }
}

/// Arguments: x `[N, H, W, I]`, weight, and bias where there is one.
struct ConvOp(Geometry);

impl ConvOp {
    fn forward<T: Element>(&self, x: &[T], weight: &[T], bias: Option<&[T]>) -> (CpuStorage, Shape) {
        let y = if self.0.is_depthwise() {
            depthwise::forward(&self.0, x, weight, bias)
        } else {
            dense::forward(&self.0, x, weight, bias)
        };
        let Geometry { batch, output: [h, w], out_channels, .. } = self.0;
        (host::storage(y), (batch, h, w, out_channels).into())
    }

    /// Gradients of x and weight, each only if tracked.
    fn backward<T: Element>(&self, x: &Tensor, weight: &Tensor, dy: &Tensor) -> CandleResult<[Option<Tensor>; 2]> {
        let depthwise = self.0.is_depthwise();
        let dx = if x.track_op() {
            let dx = host::read2::<T, _>(&weight.contiguous()?, dy, |weight, dy| match depthwise {
                true => depthwise::input_gradient(&self.0, weight, dy),
                false => dense::input_gradient(&self.0, weight, dy),
            })?;
            Some(host::tensor(dx, x.shape())?)
        } else {
            None
        };
        let dweight = if weight.track_op() {
            let dweight = host::read2::<T, _>(&x.contiguous()?, dy, |x, dy| match depthwise {
                true => depthwise::weight_gradient(&self.0, x, dy),
                false => dense::weight_gradient(&self.0, x, dy),
            })?;
            Some(host::tensor(dweight, weight.shape())?)
        } else {
            None
        };
        Ok([dx, dweight])
    }

    fn bias_gradient<T: Element>(&self, bias: &Tensor, dy: &Tensor) -> CandleResult<Option<Tensor>> {
        if !bias.track_op() {
            return Ok(None);
        }
        let sums = host::read::<T, _>(dy, |dy| super::norm::column_sums(dy, self.0.out_channels))?;
        Ok(Some(host::tensor(sums, bias.shape())?))
    }
}

impl CustomOp2 for ConvOp {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        with_float!(host::dtype(s1), T => Ok(self.forward::<T>(host::slice(s1, l1)?, host::slice(s2, l2)?, None)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let [dx, dweight] = with_float!(dy.dtype(), T => self.backward::<T>(x, weight, &dy))?;
        Ok((dx, dweight))
    }
}

impl CustomOp3 for ConvOp {
    fn name(&self) -> &'static str {
        "conv2d"
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
            Ok(self.forward::<T>(host::slice(s1, l1)?, host::slice(s2, l2)?, Some(host::slice(s3, l3)?)))
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
        let dy = dy.contiguous()?;
        let [dx, dweight] = with_float!(dy.dtype(), T => self.backward::<T>(x, weight, &dy))?;
        let dbias = with_float!(dy.dtype(), T => self.bias_gradient::<T>(bias, &dy))?;
        Ok((dx, dweight, dbias))
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod timing;
