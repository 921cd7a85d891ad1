//! Max, average and global average pooling.

use candle_core::{CpuStorage, CustomOp1, Layout, Result as CandleResult, Shape, Tensor};

use super::Backend;
use super::backend::Dims;
use super::host::{self, build_lines, build_rows, with_float};
use super::reshape::{Slide, shifted};
use super::simd::{Element, simd_fn};
use super::tape::{Call, Kernel, Tape, Value, wrong_arity};
use crate::error::{Error, Result};
use crate::graph::{Padding, Pool2d};

/// The largest value in each window; the first of equal values receives the gradient, as in PyTorch.
///
/// # Errors
/// [`Error::Shape`] if the window does not fit the padded input, or the padding exceeds half of it.
pub fn max_pool2d(backend: Backend, x: &Tensor, pool: &Pool2d) -> Result<Tensor> {
    let map = Map::new("max_pool2d", backend.dims("max_pool2d", x)?, pool)?;
    map.check_max()?;
    let p = pool.padding;
    if backend == Backend::Kernels {
        return Ok(x.contiguous()?.apply_op1(PoolOp { map, kind: Kind::Max })?);
    }
    let padded =
        (x.pad_with_zeros(2, p.top, p.bottom)?.pad_with_zeros(3, p.left, p.right)?).broadcast_add(&border(x, &map)?)?;
    let mut views = map.views(&padded)?.into_iter();
    let first = views.next().ok_or_else(|| Error::Shape("max_pool2d: the window is empty".into()))?;
    views.try_fold(first, |best, view| Ok(view.gt(&best)?.where_cond(&view, &best)?))
}

/// The mean of each window; padding counts as zeros.
///
/// # Errors
/// [`Error::Shape`] if the window does not fit the padded input.
pub fn avg_pool2d(backend: Backend, x: &Tensor, pool: &Pool2d) -> Result<Tensor> {
    let map = Map::new("avg_pool2d", backend.dims("avg_pool2d", x)?, pool)?;
    average(backend, x, map)
}

/// The mean over height and width.
///
/// # Shapes
/// An activation to one of height and width 1.
///
/// # Errors
/// [`Error::Shape`] if `x` does not have rank 4.
pub fn global_avg_pool(backend: Backend, x: &Tensor) -> Result<Tensor> {
    let dims = backend.dims("global_avg_pool", x)?;
    if backend == Backend::TensorOps {
        return Ok(x.mean_keepdim((2, 3))?);
    }
    let pool = Pool2d { kernel: dims.size, stride: [1, 1], padding: Padding::same(0) };
    average(backend, x, Map::new("global_avg_pool", dims, &pool)?)
}

fn average(backend: Backend, x: &Tensor, map: Map) -> Result<Tensor> {
    if backend == Backend::Kernels {
        return Ok(x.contiguous()?.apply_op1(PoolOp { map, kind: Kind::Average })?);
    }
    let p = map.pool.padding;
    let padded = x.pad_with_zeros(2, p.top, p.bottom)?.pad_with_zeros(3, p.left, p.right)?;
    let mut views = map.views(&padded)?.into_iter();
    let first = views.next().ok_or_else(|| Error::Shape("avg_pool2d: the window is empty".into()))?;
    let sum = views.try_fold(first, |sum, view| sum + view)?;
    Ok((sum / map.window_len() as f64)?)
}

/// Zero inside the input and minus infinity on its padding.
fn border(x: &Tensor, map: &Map) -> Result<Tensor> {
    let (p, [height, width]) = (map.pool.padding, map.input);
    let inside = |i: usize, before: usize, len: usize| i >= before && i < before + len;
    let (rows, columns) = (height + p.top + p.bottom, width + p.left + p.right);
    let values: Vec<f32> = (0..rows * columns)
        .map(|i| match inside(i / columns, p.top, height) && inside(i % columns, p.left, width) {
            true => 0.0,
            false => f32::NEG_INFINITY,
        })
        .collect();
    Ok(Tensor::from_vec(values, (1, 1, rows, columns), x.device())?.to_dtype(x.dtype())?)
}

/// A pooling with the sizes it meets.
#[derive(Debug, Clone, Copy)]
struct Map {
    batch: usize,
    channels: usize,
    input: [usize; 2],
    output: [usize; 2],
    pool: Pool2d,
}

impl Map {
    fn new(op: &str, dims: Dims, pool: &Pool2d) -> Result<Self> {
        let Dims { batch, channels, size } = dims;
        match pool.output_size(size) {
            Some(output) => Ok(Self { batch, channels, input: size, output, pool: *pool }),
            None => Err(Error::Shape(format!("{op}: window {:?} does not fit input {size:?}", pool.kernel))),
        }
    }

    /// Max pooling wants a value in every window.
    fn check_max(&self) -> Result<()> {
        let (p, kernel) = (self.pool.padding, self.pool.kernel);
        if p.top.max(p.bottom) > kernel[0] / 2 || p.left.max(p.right) > kernel[1] / 2 {
            let got = format!("{p:?} for {kernel:?}");
            return Err(Error::Shape(format!("max_pool2d: expected padding of at most half the window, got {got}")));
        }
        Ok(())
    }

    fn window_len(&self) -> usize {
        self.pool.kernel[0] * self.pool.kernel[1]
    }

    /// One strided view of the padded `[N, C, H, W]` input per window element.
    fn views(&self, padded: &Tensor) -> Result<Vec<Tensor>> {
        let [kh, kw] = self.pool.kernel;
        let slide = Slide { first_dim: 2, stride: self.pool.stride, len: self.output };
        shifted(padded, slide, (0..kh * kw).map(|i| [i / kw, i % kw]))
    }

    /// Offsets, in one image, of the input pixels that the window of an output pixel covers, in row-major order.
    #[inline(always)]
    fn covered(&self, [y, x]: [usize; 2]) -> impl Iterator<Item = usize> + use<> {
        let (p, [height, width], channels) = (self.pool.padding, self.input, self.channels);
        let span = |at: usize, axis: usize, before: usize, len: usize| {
            let start = at * self.pool.stride[axis];
            start.saturating_sub(before)..(start + self.pool.kernel[axis]).saturating_sub(before).min(len)
        };
        let (rows, columns) = (span(y, 0, p.top, height), span(x, 1, p.left, width));
        rows.flat_map(move |row| columns.clone().map(move |column| (row * width + column) * channels))
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Max,
    Average,
}

/// Argument: x `[N, H, W, C]`.
struct PoolOp {
    map: Map,
    kind: Kind,
}

impl PoolOp {
    fn forward<T: Element>(&self, x: &[T]) -> Vec<T> {
        let Map { batch, channels, input, output, .. } = self.map;
        let image = input[0] * input[1] * channels;
        build_lines(batch * output[0] * output[1] * channels, output[1] * channels, |line, y| {
            let x = &x[line / output[0] * image..][..image];
            match self.kind {
                Kind::Max => max_line(&self.map, line % output[0], x, y),
                Kind::Average => average_line(&self.map, line % output[0], x, y),
            }
        })
    }

    fn backward<T: Element>(&self, x: &[T], y: &[T], dy: &[T]) -> Vec<T> {
        let Map { batch, channels, input, output, .. } = self.map;
        let (image, out) = (input[0] * input[1] * channels, output[0] * output[1] * channels);
        build_rows(batch * image, image, 1, |n, dx| {
            let dy = &dy[n * out..][..out];
            match self.kind {
                Kind::Max => spread_max(&self.map, [&x[n * image..][..image], &y[n * out..][..out], dy], dx),
                Kind::Average => spread_average(&self.map, dy, dx),
            }
        })
    }

    fn gradient(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> CandleResult<Tensor> {
        with_float!(x.dtype(), T => {
            let dx = host::read2(x, dy, |x, dy| host::read(y, |y| self.backward::<T>(x, y, dy)))??;
            host::tensor(dx, (self.map.batch, self.map.input[0], self.map.input[1], self.map.channels))
        })
    }
}

impl CustomOp1 for PoolOp {
    fn name(&self) -> &'static str {
        "pool2d"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let Map { batch, channels, output: [h, w], .. } = self.map;
        with_float!(host::dtype(s), T => {
            Ok((host::storage(self.forward::<T>(host::slice(s, l)?)), (batch, h, w, channels).into()))
        })
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> CandleResult<Option<Tensor>> {
        x.track_op().then(|| self.gradient(&x.contiguous()?, y, &dy.contiguous()?)).transpose()
    }
}

impl Kernel for PoolOp {
    fn forward(&self, args: &[&Tensor]) -> CandleResult<Tensor> {
        match *args {
            [x] => x.apply_op1_no_bwd(self),
            _ => Err(wrong_arity("pool2d", args)),
        }
    }

    fn backward(&self, call: &Call) -> CandleResult<Vec<Option<Tensor>>> {
        let dy = call.gradient()?;
        let dx = match self.kind {
            Kind::Max => self.gradient(call.arg(0)?, call.output()?, dy)?,
            // An average's gradient does not depend on values.
            Kind::Average => self.gradient(dy, dy, dy)?,
        };
        Ok(vec![Some(dx)])
    }

    fn reads(&self, _: usize, _: &[bool]) -> bool {
        matches!(self.kind, Kind::Max)
    }

    fn reads_output(&self) -> bool {
        matches!(self.kind, Kind::Max)
    }
}

impl Tape {
    /// See [`max_pool2d`].
    ///
    /// # Errors
    /// As [`max_pool2d`].
    pub fn max_pool2d(&mut self, x: &Value, pool: &Pool2d) -> Result<Value> {
        let map = Map::new("max_pool2d", Backend::Kernels.dims("max_pool2d", x.tensor())?, pool)?;
        map.check_max()?;
        self.apply(PoolOp { map, kind: Kind::Max }, &[x])
    }

    /// See [`avg_pool2d`].
    ///
    /// # Errors
    /// As [`avg_pool2d`].
    pub fn avg_pool2d(&mut self, x: &Value, pool: &Pool2d) -> Result<Value> {
        let map = Map::new("avg_pool2d", Backend::Kernels.dims("avg_pool2d", x.tensor())?, pool)?;
        self.apply(PoolOp { map, kind: Kind::Average }, &[x])
    }

    /// See [`global_avg_pool`].
    ///
    /// # Errors
    /// As [`global_avg_pool`].
    pub fn global_avg_pool(&mut self, x: &Value) -> Result<Value> {
        let size = Backend::Kernels.dims("global_avg_pool", x.tensor())?.size;
        self.avg_pool2d(x, &Pool2d { kernel: size, stride: [1, 1], padding: Padding::same(0) })
    }
}

#[inline(always)]
fn max_line_body<T: Element, const FMA: bool>(map: &Map, line: usize, x: &[T], y: &mut [T]) {
    for (column, y) in y.chunks_exact_mut(map.channels).enumerate() {
        y.fill(T::from_f64(f64::NEG_INFINITY));
        for at in map.covered([line, column]) {
            for (y, x) in y.iter_mut().zip(&x[at..at + map.channels]) {
                // The second condition lets NaN through.
                #[allow(clippy::eq_op)]
                let wins = *x > *y || *x != *x;
                *y = if wins { *x } else { *y };
            }
        }
    }
}

#[inline(always)]
fn average_line_body<T: Element, const FMA: bool>(map: &Map, line: usize, x: &[T], y: &mut [T]) {
    let share = T::from_f64(1.0 / map.window_len() as f64);
    for (column, y) in y.chunks_exact_mut(map.channels).enumerate() {
        for at in map.covered([line, column]) {
            for (y, x) in y.iter_mut().zip(&x[at..at + map.channels]) {
                *y += *x;
            }
        }
        y.iter_mut().for_each(|y| *y *= share);
    }
}

#[inline(always)]
fn spread_max_body<T: Element, const FMA: bool>(map: &Map, [x, y, dy]: [&[T]; 3], dx: &mut [T]) {
    let channels = map.channels;
    // What no equal value has received yet: the first one takes all of it.
    let mut left = vec![T::ZERO; channels];
    for (i, (y, dy)) in y.chunks_exact(channels).zip(dy.chunks_exact(channels)).enumerate() {
        left.copy_from_slice(dy);
        for at in map.covered([i / map.output[1], i % map.output[1]]) {
            let pixels = dx[at..at + channels].iter_mut().zip(&x[at..at + channels]);
            for ((dx, x), (y, left)) in pixels.zip(y.iter().zip(&mut left)) {
                let share = if *x == *y { *left } else { T::ZERO };
                *dx += share;
                *left -= share;
            }
        }
    }
}

#[inline(always)]
fn spread_average_body<T: Element, const FMA: bool>(map: &Map, dy: &[T], dx: &mut [T]) {
    let share = T::from_f64(1.0 / map.window_len() as f64);
    for (i, dy) in dy.chunks_exact(map.channels).enumerate() {
        for at in map.covered([i / map.output[1], i % map.output[1]]) {
            for (dx, dy) in dx[at..at + map.channels].iter_mut().zip(dy) {
                *dx = dy.fma::<FMA>(share, *dx);
            }
        }
    }
}

simd_fn! { fn max_line<T: Element>(map: &Map, line: usize, x: &[T], y: &mut [T]) = max_line_body }
simd_fn! { fn average_line<T: Element>(map: &Map, line: usize, x: &[T], y: &mut [T]) = average_line_body }
simd_fn! { fn spread_max<T: Element>(map: &Map, inputs: [&[T]; 3], dx: &mut [T]) = spread_max_body }
simd_fn! { fn spread_average<T: Element>(map: &Map, dy: &[T], dx: &mut [T]) = spread_average_body }

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::nn::testing::{BACKENDS, Check, F64_TOLERANCE, assert_close, check_frozen, naive, on_both, random};

    /// Channels, input size, pooling.
    fn cases() -> Vec<(usize, [usize; 2], Pool2d)> {
        let uneven = Padding { top: 1, bottom: 0, left: 0, right: 1 };
        vec![
            (1, [1, 1], Pool2d::new(1, 1)),
            (3, [5, 6], Pool2d::new(2, 2)),
            (5, [7, 6], Pool2d::new(3, 2).padding(1)),
            (17, [4, 5], Pool2d { kernel: [3, 2], stride: [1, 3], padding: uneven }),
        ]
    }

    #[test]
    fn gradients_match_central_differences() {
        for backend in BACKENDS {
            for (channels, [h, w], pool) in cases() {
                let x = backend.from_nchw(&random(&[2, channels, h, w], 7)).unwrap();
                let check = Check::new(&format!("{backend:?} {pool:?}"));
                check.gradients(std::slice::from_ref(&x), |t| max_pool2d(backend, &t[0], &pool));
                check.gradients(std::slice::from_ref(&x), |t| avg_pool2d(backend, &t[0], &pool));
                check.gradients(&[x], |t| global_avg_pool(backend, &t[0]));
            }
        }
    }

    #[test]
    fn values_match_a_naive_loop() {
        for (channels, [h, w], pool) in cases() {
            let x = random(&[2, channels, h, w], 8);
            let values = naive::values(&x);
            let [oh, ow] = pool.output_size([h, w]).unwrap();
            let window = |[n, c, oy, ox]: [usize; 4]| {
                let mut found = Vec::new();
                for i in 0..pool.kernel[0] * pool.kernel[1] {
                    let y = (oy * pool.stride[0] + i / pool.kernel[1]).checked_sub(pool.padding.top);
                    let x = (ox * pool.stride[1] + i % pool.kernel[1]).checked_sub(pool.padding.left);
                    if let (Some(y), Some(x)) = (y, x)
                        && y < h
                        && x < w
                    {
                        found.push(values[((n * channels + c) * h + y) * w + x]);
                    }
                }
                found
            };
            let dims = [2, channels, oh, ow];
            let max = naive::build(dims, |at| window(at).into_iter().fold(f64::NEG_INFINITY, f64::max));
            let count = (pool.kernel[0] * pool.kernel[1]) as f64;
            let mean = naive::build(dims, |at| window(at).iter().sum::<f64>() / count);
            for y in on_both(&x, |b, x| max_pool2d(b, x, &pool)) {
                assert_close("max_pool2d", &y, &max, F64_TOLERANCE);
            }
            for y in on_both(&x, |b, x| avg_pool2d(b, x, &pool)) {
                assert_close("avg_pool2d", &y, &mean, F64_TOLERANCE);
            }
        }
    }

    #[test]
    fn the_first_of_equal_values_takes_the_gradient() {
        for backend in BACKENDS {
            let ones = Tensor::ones((1, 1, 4, 4), candle_core::DType::F64, &candle_core::Device::Cpu).unwrap();
            let x = Var::from_tensor(&backend.from_nchw(&ones).unwrap()).unwrap();
            let grads = max_pool2d(backend, &x, &Pool2d::new(2, 2)).unwrap().backward().unwrap();
            let dx = grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert_eq!(dx, [1., 0., 1., 0., 0., 0., 0., 0., 1., 0., 1., 0., 0., 0., 0., 0.], "{backend:?}");
        }
    }

    #[test]
    fn plain_inputs_leave_no_tape_and_misfits_are_refused() {
        check_frozen(&[random(&[1, 4, 4, 2], 1)], |t| max_pool2d(Backend::Kernels, &t[0], &Pool2d::new(2, 2)));
        let x = random(&[1, 3, 3, 2], 1);
        assert!(max_pool2d(Backend::Kernels, &x, &Pool2d::new(4, 1)).is_err());
        assert!(max_pool2d(Backend::Kernels, &x, &Pool2d::new(2, 1).padding(2)).is_err());
    }
}
