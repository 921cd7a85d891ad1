//! Operations that move values without computing: they need no kernels of their own.

use candle_core::{Result as CandleResult, Shape, Tensor};

use super::Backend;
use super::host::{self, with_float};
use super::tape::{Call, Kernel, Tape, Value, wrong_arity};
use crate::error::{Error, Result};

/// Keeps every `stride`-th row and column, from the first: `x[:, :, ::s, ::s]`.
///
/// # Errors
/// [`Error::Shape`] if a stride is zero or `x` does not have rank 4.
pub fn subsample(backend: Backend, x: &Tensor, stride: [usize; 2]) -> Result<Tensor> {
    let len = kept(backend, x, stride)?;
    let slide = Slide { first_dim: backend.height_dim(), stride, len };
    let mut views = shifted(x, slide, std::iter::once([0, 0]))?;
    views.pop().ok_or_else(|| Error::Shape("subsample: nothing left".into()))
}

/// Rows and columns that [`subsample`] keeps.
fn kept(backend: Backend, x: &Tensor, stride: [usize; 2]) -> Result<[usize; 2]> {
    let dims = backend.dims("subsample", x)?;
    if stride.contains(&0) {
        return Err(Error::Shape(format!("subsample: expected strides of at least 1, got {stride:?}")));
    }
    Ok([dims.size[0].div_ceil(stride[0]), dims.size[1].div_ceil(stride[1])])
}

/// Adds `before` channels of zeros in front and `after` behind.
///
/// # Errors
/// [`Error::Shape`] if `x` does not have rank 4.
pub fn pad_channels(backend: Backend, x: &Tensor, before: usize, after: usize) -> Result<Tensor> {
    backend.dims("pad_channels", x)?;
    Ok(x.pad_with_zeros(backend.channel_dim(), before, after)?)
}

/// Joins activations along their channels.
///
/// # Errors
/// [`Error::Shape`] if there are none or they differ in batch, height or width.
pub fn concat(backend: Backend, xs: &[&Tensor]) -> Result<Tensor> {
    let Some(first) = xs.first() else {
        return Err(Error::Shape("concat: expected at least one input, got none".into()));
    };
    let expected = backend.dims("concat", first)?;
    for x in xs {
        let got = backend.dims("concat", x)?;
        if (got.batch, got.size) != (expected.batch, expected.size) {
            let (want, got) = (first.dims(), x.dims());
            return Err(Error::Shape(format!("concat: expected {want:?} but for channels, got {got:?}")));
        }
    }
    Ok(Tensor::cat(xs, backend.channel_dim())?)
}

/// One vector per image, in PyTorch's channel-major order.
///
/// # Shapes
/// An activation to `[N, C·H·W]`.
///
/// # Errors
/// [`Error::Shape`] if `x` does not have rank 4.
pub fn flatten(backend: Backend, x: &Tensor) -> Result<Tensor> {
    let dims = backend.dims("flatten", x)?;
    let x = match backend {
        Backend::Kernels if dims.size != [1, 1] => x.permute((0, 3, 1, 2))?,
        _ => x.clone(),
    };
    Ok(x.flatten_from(1)?)
}

impl Tape {
    /// See [`subsample`].
    ///
    /// # Errors
    /// As [`subsample`].
    pub fn subsample(&mut self, x: &Value, stride: [usize; 2]) -> Result<Value> {
        let len = kept(Backend::Kernels, x.tensor(), stride)?;
        self.apply(Move::Subsample(stride, len), &[x])
    }

    /// See [`pad_channels`].
    ///
    /// # Errors
    /// As [`pad_channels`].
    pub fn pad_channels(&mut self, x: &Value, before: usize, after: usize) -> Result<Value> {
        Backend::Kernels.dims("pad_channels", x.tensor())?;
        self.apply(Move::PadChannels(before, after), &[x])
    }

    /// See [`concat()`].
    ///
    /// # Errors
    /// As [`concat()`].
    pub fn concat(&mut self, xs: &[&Value]) -> Result<Value> {
        self.apply(Move::Concat, xs)
    }

    /// See [`flatten`].
    ///
    /// # Errors
    /// As [`flatten`].
    pub fn flatten(&mut self, x: &Value) -> Result<Value> {
        Backend::Kernels.dims("flatten", x.tensor())?;
        self.apply(Move::Flatten, &[x])
    }

    /// The same values in another shape.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the shape has another number of values.
    pub(super) fn reshape(&mut self, x: &Value, shape: &[usize]) -> Result<Value> {
        self.apply(Move::Reshape(shape.to_vec()), &[x])
    }
}

/// One of these on a tape.
enum Move {
    /// Strides, and rows and columns that are kept.
    Subsample([usize; 2], [usize; 2]),
    PadChannels(usize, usize),
    Concat,
    Flatten,
    Reshape(Vec<usize>),
}

impl Kernel for Move {
    fn forward(&self, args: &[&Tensor]) -> CandleResult<Tensor> {
        let [x, ..] = args else { return Err(wrong_arity("reshape", args)) };
        let moved = match self {
            Self::Subsample(stride, len) => return gather(x, *stride, *len),
            Self::PadChannels(before, after) => return widen(x, *before, *after),
            Self::Concat => concat(Backend::Kernels, args),
            Self::Flatten => flatten(Backend::Kernels, x),
            Self::Reshape(shape) => return x.reshape(shape.as_slice()),
        };
        moved.map_err(candle_core::Error::wrap)?.contiguous()
    }

    fn backward(&self, call: &Call) -> CandleResult<Vec<Option<Tensor>>> {
        let (dy, shape) = (call.gradient()?, &call.shapes[0]);
        let dx = match self {
            Self::Subsample(stride, _) => spread(dy, shape, *stride)?,
            Self::PadChannels(before, _) => narrow(dy, shape, *before)?,
            Self::Concat => {
                let mut first = 0;
                let mut part = |shape: &Shape| {
                    let width = shape.dims()[3];
                    first += width;
                    Ok(Some(dy.narrow(3, first - width, width)?.contiguous()?))
                };
                return call.shapes.iter().map(&mut part).collect();
            }
            Self::Flatten => {
                let (n, h, w, c) = shape.dims4()?;
                dy.reshape((n, c, h, w))?.permute((0, 2, 3, 1))?.contiguous()?
            }
            Self::Reshape(_) => dy.reshape(shape)?,
        };
        Ok(vec![Some(dx)])
    }

    fn reads(&self, _: usize, _: &[bool]) -> bool {
        false
    }

    fn passes_on(&self) -> bool {
        // A vector's flattened map may be the map itself.
        matches!(self, Self::Reshape(_) | Self::Flatten)
    }
}

/// `[N, C, H, W]` as `[N, H, W, C]`, in one pass and without a gradient.
pub(super) fn channels_last(x: &Tensor) -> CandleResult<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    with_float!(x.dtype(), T => {
        let y = host::read::<T, _>(&x.contiguous()?, |x| {
            host::build_lines(x.len(), width * channels, |line, y| {
                let (image, row) = (line / height, line % height);
                for channel in 0..channels {
                    let from = &x[((image * channels + channel) * height + row) * width..][..width];
                    y[channel..].iter_mut().step_by(channels).zip(from).for_each(|(to, from)| *to = *from);
                }
            })
        })?;
        host::tensor(y, (batch, height, width, channels))
    })
}

/// [`subsample`] to `len` rows and columns, in one pass.
fn gather(x: &Tensor, stride: [usize; 2], [rows, columns]: [usize; 2]) -> CandleResult<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    with_float!(x.dtype(), T => {
        let y = host::read::<T, _>(&x.contiguous()?, |x| {
            host::build_lines(batch * rows * columns * channels, columns * channels, |line, y| {
                let (n, row) = (line / rows, line % rows);
                let line = &x[(n * height + row * stride[0]) * width * channels..][..width * channels];
                for (to, from) in y.chunks_exact_mut(channels).zip(line.chunks(stride[1] * channels)) {
                    to.copy_from_slice(&from[..channels]);
                }
            })
        })?;
        host::tensor(y, (batch, rows, columns, channels))
    })
}

/// [`pad_channels`], in one pass.
fn widen(x: &Tensor, before: usize, after: usize) -> CandleResult<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let wider = before + channels + after;
    with_float!(x.dtype(), T => {
        let y = host::read::<T, _>(&x.contiguous()?, |x| {
            host::build_lines(x.len() / channels * wider, width * wider, |line, y| {
                let line = &x[line * width * channels..][..width * channels];
                for (to, from) in y.chunks_exact_mut(wider).zip(line.chunks_exact(channels)) {
                    to[before..before + channels].copy_from_slice(from);
                }
            })
        })?;
        host::tensor(y, (batch, height, width, wider))
    })
}

/// The gradient of [`pad_channels`]: what of `dy` belongs to channels that were there `before`.
fn narrow(dy: &Tensor, shape: &Shape, before: usize) -> CandleResult<Tensor> {
    let ((_, _, width, channels), wider) = (shape.dims4()?, dy.dim(3)?);
    with_float!(dy.dtype(), T => {
        let dx = host::read::<T, _>(dy, |dy| {
            host::build_lines(shape.elem_count(), width * channels, |line, dx| {
                let line = &dy[line * width * wider..][..width * wider];
                for (to, from) in dx.chunks_exact_mut(channels).zip(line.chunks_exact(wider)) {
                    to.copy_from_slice(&from[before..before + channels]);
                }
            })
        })?;
        host::tensor(dx, shape.clone())
    })
}

/// The gradient of [`subsample`]: `dy` at the kept rows and columns, zero elsewhere.
fn spread(dy: &Tensor, shape: &Shape, stride: [usize; 2]) -> CandleResult<Tensor> {
    let ((_, height, width, channels), (_, rows, columns, _)) = (shape.dims4()?, dy.dims4()?);
    with_float!(dy.dtype(), T => {
        let dx = host::read::<T, _>(dy, |dy| {
            host::build_lines(shape.elem_count(), width * channels, |line, dx| {
                let (n, y) = (line / height, line % height);
                if y.is_multiple_of(stride[0]) {
                    let line = &dy[(n * rows + y / stride[0]) * columns * channels..][..columns * channels];
                    for (to, from) in dx.chunks_mut(stride[1] * channels).zip(line.chunks(channels)) {
                        to[..channels].copy_from_slice(from);
                    }
                }
            })
        })?;
        host::tensor(dx, shape)
    })
}

/// A strided walk over two neighbouring dimensions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slide {
    /// The dimension of rows; columns are the next.
    pub first_dim: usize,
    pub stride: [usize; 2],
    /// Rows and columns to take.
    pub len: [usize; 2],
}

/// For each start, the elements `start + stride · i` of two dimensions, with gradient.
pub(super) fn shifted(x: &Tensor, slide: Slide, starts: impl Iterator<Item = [usize; 2]>) -> Result<Vec<Tensor>> {
    let Slide { first_dim, stride, len } = slide;
    // Room for whole strides behind the last element; what lies there is never taken.
    let x = x.pad_with_zeros(first_dim, 0, stride[0] - 1)?.pad_with_zeros(first_dim + 1, 0, stride[1] - 1)?;
    starts
        .map(|start| {
            let rows = strided(&x, first_dim, [start[0], stride[0], len[0]])?;
            strided(&rows, first_dim + 1, [start[1], stride[1], len[1]])
        })
        .collect()
}

fn strided(x: &Tensor, dim: usize, [start, stride, len]: [usize; 3]) -> Result<Tensor> {
    let part = x.narrow(dim, start, len * stride)?;
    if stride == 1 {
        return Ok(part);
    }
    let mut dims = x.dims().to_vec();
    dims.splice(dim..=dim, [len, stride]);
    Ok(part.reshape(dims)?.narrow(dim + 1, 0, 1)?.squeeze(dim + 1)?)
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::nn::testing::{BACKENDS, Check, EXACT, assert_close, naive, on_both, random};

    #[test]
    fn gradients_match_central_differences() {
        for backend in BACKENDS {
            let x = backend.from_nchw(&random(&[2, 3, 5, 4], 1)).unwrap();
            let z = backend.from_nchw(&random(&[2, 1, 5, 4], 2)).unwrap();
            let check = Check::new(&format!("{backend:?}"));
            for stride in [[1, 1], [2, 2], [3, 2]] {
                check.gradients(std::slice::from_ref(&x), |t| subsample(backend, &t[0], stride));
            }
            check.gradients(std::slice::from_ref(&x), |t| pad_channels(backend, &t[0], 2, 1));
            check.gradients(&[x.clone(), z], |t| concat(backend, &[&t[0], &t[1], &t[0]]));
            check.gradients(&[x], |t| flatten(backend, &t[0]));
        }
    }

    #[test]
    fn both_layouts_hold_the_same_values() {
        let x = random(&[2, 3, 5, 4], 3);
        let values = naive::values(&x);
        let sub = on_both(&x, |b, x| subsample(b, x, [2, 3]));
        let expected = naive::build([2, 3, 3, 2], |[n, c, y, x]| values[((n * 3 + c) * 5 + y * 2) * 4 + x * 3]);
        sub.iter().for_each(|y| assert_close("subsample", y, &expected, EXACT));
        let padded = on_both(&x, |b, x| pad_channels(b, x, 1, 2));
        assert_close("pad_channels", &padded[0], &padded[1], EXACT);
        assert_eq!(padded[0].dims(), [2, 6, 5, 4]);
        for backend in BACKENDS {
            let y = flatten(backend, &backend.from_nchw(&x).unwrap()).unwrap();
            assert_close("flatten", &y, &x.flatten_from(1).unwrap(), EXACT);
        }
    }

    #[test]
    fn misfits_are_refused() {
        let (a, b) = (random(&[1, 2, 3, 3], 1), random(&[1, 2, 3, 4], 1));
        assert!(matches!(concat(Backend::TensorOps, &[&a, &b]), Err(Error::Shape(_))));
        assert!(matches!(concat(Backend::TensorOps, &[]), Err(Error::Shape(_))));
        assert!(matches!(subsample(Backend::Kernels, &a, [0, 1]), Err(Error::Shape(_))));
    }
}
