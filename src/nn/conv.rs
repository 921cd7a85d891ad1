//! 2-D convolution and the fully connected layer.

mod dense;
mod depthwise;
mod late;
mod panels;
mod single;
mod tensor_ops;
mod window;
#[allow(
    clippy::needless_range_loop,
    reason = "register tiles are indexed by constants, so that they stay in registers"
)]
mod winograd;

use std::mem::MaybeUninit;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result as CandleResult, Shape, Tensor};

use super::Backend;
use super::backend::{Dims, expect_shape};
use super::host::{self, with_float};
use super::norm::{LateGradient, Moments, PartialMoments};
use super::simd::Element;
use super::tape::{Call, Kernel, Tape, Value, wrong_arity};
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
    geometry.check(weight, bias)?;
    match backend {
        Backend::Kernels => {
            let (x, weight) = (x.contiguous()?, weight.contiguous()?);
            Ok(match bias {
                Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, ConvOp { geometry, moments: None })?,
                None => x.apply_op2(&weight, ConvOp { geometry, moments: None })?,
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

impl Tape {
    /// See [`conv2d`]. With `for_norm`, moments of the result are taken while it is in the caches, for a
    /// [`Tape::batch_norm_train`] of it: that saves a pass through memory.
    ///
    /// # Errors
    /// As [`conv2d`].
    pub fn conv2d(
        &mut self,
        x: &Value,
        weight: &Value,
        bias: Option<&Value>,
        conv: &Conv2d,
        for_norm: bool,
    ) -> Result<Value> {
        let geometry = Geometry::new(Backend::Kernels.dims("conv2d", x.tensor())?, conv)?;
        geometry.check(weight.tensor(), bias.map(Value::tensor))?;
        let moments = for_norm.then(Arc::default);
        let args: Vec<&Value> = [Some(x), Some(weight), bias].into_iter().flatten().collect();
        let y = self.apply(ConvOp { geometry, moments: moments.clone() }, &args)?;
        Ok(y.with_moments(moments))
    }

    /// See [`linear`].
    ///
    /// # Errors
    /// As [`linear`].
    pub fn linear(&mut self, x: &Value, weight: &Value, bias: Option<&Value>) -> Result<Value> {
        let (&[n, features], &[out, _]) = (x.tensor().dims(), weight.tensor().dims()) else {
            let got = (x.tensor().dims(), weight.tensor().dims());
            let expected = "linear: expected x and weight of rank 2";
            return Err(Error::Shape(format!("{expected}, got {:?} and {:?}", got.0, got.1)));
        };
        expect_shape("linear", "weight", weight.tensor(), &[out, features])?;
        let x = self.reshape(x, &[n, 1, 1, features])?;
        let weight = self.reshape(weight, &[out, features, 1, 1])?;
        let y = self.conv2d(&x, &weight, bias, &Conv2d::new(out, 1), false)?;
        self.reshape(&y, &[n, out])
    }
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

    /// Checks the parameters' shapes.
    fn check(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
        let Self { in_channels, out_channels, conv: Conv2d { kernel: [kh, kw], groups, .. }, .. } = *self;
        expect_shape("conv2d", "weight", weight, &[out_channels, in_channels / groups, kh, kw])?;
        bias.map_or(Ok(()), |bias| expect_shape("conv2d", "bias", bias, &[out_channels]))
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

/// A convolution's result, and moments of its channels band by band: none if nobody asked, or if they were not taken.
struct Built<T> {
    values: Vec<T>,
    moments: Vec<PartialMoments>,
}

impl<T: Element> Built<T> {
    /// Values in bands of whole pixels, and where they were asked for, moments of each band.
    ///
    /// # Safety
    /// `fill` writes every element of the band.
    unsafe fn bands(
        [len, size, channels]: [usize; 3],
        for_norm: bool,
        fill: impl Fn(usize, &mut [MaybeUninit<T>]) + Sync,
    ) -> Self {
        let fill_and_look = |band: usize, out: &mut [MaybeUninit<T>]| {
            fill(band, out);
            // SAFETY: `fill` has written all of them.
            for_norm.then(|| unsafe { PartialMoments::of_written(out, channels) })
        };
        // SAFETY: the caller's.
        let (values, moments) = unsafe { host::build_bands(len, size, fill_and_look) };
        Self { values, moments: moments.into_iter().flatten().collect() }
    }
}

/// Arguments: x `[N, H, W, I]`, weight, and bias where there is one.
struct ConvOp {
    geometry: Geometry,
    /// Where moments of the result go, if somebody wants them.
    moments: Option<Arc<OnceLock<Moments>>>,
}

impl ConvOp {
    fn forward<T: Element>(&self, x: &[T], weight: &[T], bias: Option<&[T]>) -> (CpuStorage, Shape) {
        let g = &self.geometry;
        let Built { values, moments } = match g.is_depthwise() {
            true => depthwise::forward(g, x, weight, bias, self.moments.is_some()),
            false => dense::forward(g, x, weight, bias, self.moments.is_some()),
        };
        if let Some(to) = self.moments.as_ref().filter(|_| !moments.is_empty()) {
            to.get_or_init(|| Moments::combine(&moments));
        }
        (host::storage(values), (g.batch, g.output[0], g.output[1], g.out_channels).into())
    }

    fn input_gradient<T: Element>(&self, weight: &Tensor, dy: &Tensor) -> CandleResult<Tensor> {
        let g = &self.geometry;
        let dx = host::read2::<T, _>(&weight.contiguous()?, dy, |weight, dy| match g.is_depthwise() {
            true => depthwise::input_gradient(g, weight, dy),
            false => dense::input_gradient(g, weight, dy),
        })?;
        host::tensor(dx, (g.batch, g.input[0], g.input[1], g.in_channels))
    }

    fn weight_gradient<T: Element>(&self, x: &Tensor, dy: &Tensor) -> CandleResult<Tensor> {
        let g = &self.geometry;
        let dweight = host::read2::<T, _>(&x.contiguous()?, dy, |x, dy| match g.is_depthwise() {
            true => depthwise::weight_gradient(g, x, dy),
            false => dense::weight_gradient(g, x, dy),
        })?;
        host::tensor(dweight, (g.out_channels, g.group_in(), g.conv.kernel[0], g.conv.kernel[1]))
    }

    /// Gradients of input and weight, as far as they are wanted, and none of a bias.
    fn gradients_of_late(&self, call: &Call, dy: &LateGradient) -> CandleResult<Vec<Option<Tensor>>> {
        let g = &self.geometry;
        // Either factor's gradient needs the other.
        let factor =
            |index: usize| call.wanted[1 - index].then(|| call.arg(index).and_then(Tensor::contiguous)).transpose();
        let (x, weight) = (factor(0)?, factor(1)?);
        let [dx, dweight] = host::read_optional(x.as_ref(), |x| {
            host::read_optional(weight.as_ref(), |weight| dy.by_rows(|dy| late::gradients(g, x, weight, dy)))
        })???;
        let wrap = |values: Option<Vec<f32>>, index: usize| {
            values.map(|values| host::tensor(values, &call.shapes[index])).transpose()
        };
        let mut gradients = vec![wrap(dx, 0)?, wrap(dweight, 1)?];
        gradients.resize(call.shapes.len(), None);
        Ok(gradients)
    }

    fn bias_gradient<T: Element>(&self, dy: &Tensor) -> CandleResult<Tensor> {
        let sums = host::read::<T, _>(dy, |dy| super::norm::column_sums(dy, self.geometry.out_channels))?;
        host::tensor(sums, self.geometry.out_channels)
    }
}

impl Kernel for ConvOp {
    fn forward(&self, args: &[&Tensor]) -> CandleResult<Tensor> {
        match *args {
            [x, weight] => x.apply_op2_no_bwd(weight, self),
            [x, weight, bias] => x.apply_op3_no_bwd(weight, bias, self),
            _ => Err(wrong_arity("conv2d", args)),
        }
    }

    fn takes_late(&self) -> bool {
        late::fits(&self.geometry)
    }

    fn backward(&self, call: &Call) -> CandleResult<Vec<Option<Tensor>>> {
        let wanted = call.wanted;
        let whole;
        let dy = match call.late_gradient() {
            Some(dy) if wanted.get(2) != Some(&true) => return self.gradients_of_late(call, dy),
            Some(dy) => {
                whole = dy.tensor()?;
                &whole
            }
            None => call.gradient()?,
        };
        with_float!(dy.dtype(), T => {
            let dx = wanted[0].then(|| self.input_gradient::<T>(call.arg(1)?, dy)).transpose()?;
            let dweight = wanted[1].then(|| self.weight_gradient::<T>(call.arg(0)?, dy)).transpose()?;
            let mut gradients = vec![dx, dweight];
            if call.shapes.len() == 3 {
                gradients.push(wanted[2].then(|| self.bias_gradient::<T>(dy)).transpose()?);
            }
            Ok(gradients)
        })
    }

    fn reads(&self, index: usize, wanted: &[bool]) -> bool {
        // The gradient of either factor needs the other; the bias is needed for none.
        match index {
            0 => wanted[1],
            1 => wanted[0],
            _ => false,
        }
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
        with_float!(dy.dtype(), T => {
            let dx = x.track_op().then(|| self.input_gradient::<T>(weight, &dy)).transpose()?;
            Ok((dx, weight.track_op().then(|| self.weight_gradient::<T>(x, &dy)).transpose()?))
        })
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
        let (dx, dweight) = CustomOp2::bwd(self, x, weight, dy, dy)?;
        let dy = dy.contiguous()?;
        let dbias = bias.track_op().then(|| with_float!(dy.dtype(), T => self.bias_gradient::<T>(&dy)));
        Ok((dx, dweight, dbias.transpose()?))
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod timing;
