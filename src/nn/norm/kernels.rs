//! Batch normalisation on channels-last memory: `[rows, C]` with rows = N·H·W.
//!
//! Loops run over "wide rows" of several real rows at once, with the per-channel vectors repeated to that width:
//! narrow layers then vectorise as well as wide ones. Sums are taken in the element type over short blocks and
//! combined in f64 in block order.

use std::mem::MaybeUninit;

use crate::nn::activation::Function;
use crate::nn::host::build_whole_rows;
use crate::nn::simd::{Element, simd_fn};
use crate::nn::threads::partials;

/// Elements per block: a block of input and gradient stays in the second-level cache between two passes.
const BLOCK: usize = 1 << 15;
/// Least elements in a wide row.
const WIDE: usize = 256;

/// Elements in a wide row and in a block for `channels` channels.
pub(super) fn widths(channels: usize) -> (usize, usize) {
    let wide = channels * WIDE.div_ceil(channels);
    (wide, wide * (BLOCK / wide).max(1))
}

/// `values` repeated to `wide` elements.
pub(super) fn repeat<T: Element>(values: &[T], wide: usize) -> Vec<T> {
    values.iter().copied().cycle().take(wide).collect()
}

/// Adds a wide row's sums into one value per channel.
pub(super) fn fold<T: Element>(wide: &[T], into: &mut [f64]) {
    for row in wide.chunks(into.len()) {
        for (sum, v) in into.iter_mut().zip(row) {
            *sum += v.to_f64();
        }
    }
}

/// The sum of each channel over all rows.
pub(in crate::nn) fn column_sums<T: Element>(x: &[T], channels: usize) -> Vec<T> {
    let (wide, block) = widths(channels);
    let parts = partials(x.len().div_ceil(block), channels, |blocks| {
        let mut total = vec![0.0; channels];
        let mut sums = vec![T::ZERO; wide];
        for x in x[blocks.start * block..].chunks(block).take(blocks.len()) {
            sums.fill(T::ZERO);
            sum(x, &mut sums);
            fold(&sums, &mut total);
        }
        total
    });
    let mut total = vec![0.0; channels];
    parts.iter().for_each(|part| fold(part, &mut total));
    total.into_iter().map(T::from_f64).collect()
}

/// Gradients of scale and shift.
pub(super) struct ParameterGradients {
    pub weight: Vec<f64>,
    pub bias: Vec<f64>,
}

/// Per-channel vectors repeated to a wide row.
pub(super) struct Normaliser<T> {
    channels: usize,
    wide: usize,
    block: usize,
    mean: Vec<T>,
    rstd: Vec<T>,
    scale: Vec<T>,
    shift: Vec<T>,
}

impl<T: Element> Normaliser<T> {
    pub fn new(mean: &[f64], var: &[f64], eps: f64, [weight, bias]: [&[T]; 2]) -> Self {
        let channels = mean.len();
        let (wide, block) = widths(channels);
        let rstd: Vec<f64> = var.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
        let scale = rstd.iter().zip(weight).map(|(r, w)| T::from_f64(r * w.to_f64()));
        let narrow = |v: &[f64]| v.iter().map(|v| T::from_f64(*v)).collect::<Vec<T>>();
        Self {
            channels,
            wide,
            block,
            scale: repeat(&scale.collect::<Vec<_>>(), wide),
            mean: repeat(&narrow(mean), wide),
            rstd: repeat(&narrow(&rstd), wide),
            shift: repeat(bias, wide),
        }
    }

    pub fn forward<F: Function>(&self, x: &[T]) -> Vec<T> {
        // SAFETY: every value of x gives one of y.
        unsafe { build_whole_rows(x.len(), 1, self.block, |at, y| normalise::<T, F>(&x[at..at + y.len()], self, y)) }
    }

    pub fn parameter_gradients<F: Function>(&self, x: &[T], dy: &[T]) -> ParameterGradients {
        let parts = partials(x.len().div_ceil(self.block), 2 * self.channels, |blocks| {
            let (mut weight, mut bias) = (vec![0.0; self.channels], vec![0.0; self.channels]);
            let (mut wide_weight, mut wide_bias) = (vec![T::ZERO; self.wide], vec![T::ZERO; self.wide]);
            let inputs = x[blocks.start * self.block..].chunks(self.block);
            let gradients = dy[blocks.start * self.block..].chunks(self.block);
            for (x, dy) in inputs.zip(gradients).take(blocks.len()) {
                wide_weight.fill(T::ZERO);
                wide_bias.fill(T::ZERO);
                reduce::<T, F>(x, dy, self, &mut wide_weight, &mut wide_bias);
                fold(&wide_weight, &mut weight);
                fold(&wide_bias, &mut bias);
            }
            ParameterGradients { weight, bias }
        });
        let mut total = ParameterGradients { weight: vec![0.0; self.channels], bias: vec![0.0; self.channels] };
        for part in &parts {
            fold(&part.weight, &mut total.weight);
            fold(&part.bias, &mut total.bias);
        }
        total
    }

    /// dx = scale·g − scale/R·Σg − scale/R·x̂·Σ(g·x̂) for R `rows`; without `sums` the moments are constants and only the
    /// first term remains.
    pub fn terms(&self, rows: usize, sums: Option<&ParameterGradients>) -> Terms<T> {
        let coefficient = |sum: Option<&Vec<f64>>, factor: &dyn Fn(usize) -> f64| match sum {
            Some(sum) => {
                let values = sum.iter().enumerate().map(|(c, s)| T::from_f64(-factor(c) * s / rows as f64));
                repeat(&values.collect::<Vec<_>>(), self.wide)
            }
            None => vec![T::ZERO; self.wide],
        };
        let scale = |c: usize| self.scale[c].to_f64();
        Terms {
            offset: coefficient(sums.map(|s| &s.bias), &scale),
            slope: coefficient(sums.map(|s| &s.weight), &|c| scale(c) * self.rstd[c].to_f64()),
        }
    }

    /// The gradient of whole rows `x`; writes all of `dx`.
    pub fn input_gradient_of<F: Function>(&self, [x, dy]: [&[T]; 2], terms: &Terms<T>, dx: &mut [MaybeUninit<T>]) {
        input::<T, F>([x, dy], self, terms, dx);
    }

    /// The gradient of all of x.
    pub fn input_gradient<F: Function>(&self, x: &[T], dy: &[T], terms: &Terms<T>) -> Vec<T> {
        let fill = |at: usize, dx: &mut [MaybeUninit<T>]| {
            let range = at..at + dx.len();
            self.input_gradient_of::<F>([&x[range.clone()], &dy[range]], terms, dx);
        };
        // SAFETY: as above.
        unsafe { build_whole_rows(x.len(), 1, self.block, fill) }
    }
}

/// What the dependence of the moments on x adds to dx: `offset + slope·(x − mean)`.
pub(super) struct Terms<T> {
    offset: Vec<T>,
    slope: Vec<T>,
}

#[inline(always)]
fn sum_body<T: Element, const FMA: bool>(x: &[T], sums: &mut [T]) {
    for row in x.chunks(sums.len()) {
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += *x;
        }
    }
}

#[inline(always)]
fn squares_body<T: Element, const FMA: bool>(x: &[T], mean: &[T], sums: &mut [T]) {
    for row in x.chunks(sums.len()) {
        for ((sum, x), mean) in sums.iter_mut().zip(row).zip(mean) {
            let d = *x - *mean;
            *sum = d.fma::<FMA>(d, *sum);
        }
    }
}

#[inline(always)]
fn normalise_body<T: Element, F: Function, const FMA: bool>(x: &[T], norm: &Normaliser<T>, y: &mut [MaybeUninit<T>]) {
    for (x, y) in x.chunks(norm.wide).zip(y.chunks_mut(norm.wide)) {
        let channels = norm.mean.iter().zip(&norm.scale).zip(&norm.shift);
        for ((y, x), ((mean, scale), shift)) in y.iter_mut().zip(x).zip(channels) {
            y.write(F::value((*x - *mean).fma::<FMA>(*scale, *shift)));
        }
    }
}

#[inline(always)]
fn reduce_body<T: Element, F: Function, const FMA: bool>(
    x: &[T],
    dy: &[T],
    norm: &Normaliser<T>,
    dweight: &mut [T],
    dbias: &mut [T],
) {
    for (x, dy) in x.chunks(norm.wide).zip(dy.chunks(norm.wide)) {
        let channels = norm.mean.iter().zip(&norm.scale).zip(&norm.shift).zip(&norm.rstd);
        let sums = dweight.iter_mut().zip(dbias.iter_mut());
        for (((x, dy), (((mean, scale), shift), rstd)), (dweight, dbias)) in x.iter().zip(dy).zip(channels).zip(sums) {
            let centred = *x - *mean;
            let g = *dy * F::slope(centred.fma::<FMA>(*scale, *shift));
            *dweight = (centred * *rstd).fma::<FMA>(g, *dweight);
            *dbias += g;
        }
    }
}

#[inline(always)]
fn input_body<T: Element, F: Function, const FMA: bool>(
    [x, dy]: [&[T]; 2],
    norm: &Normaliser<T>,
    terms: &Terms<T>,
    dx: &mut [MaybeUninit<T>],
) {
    let rows = x.chunks(norm.wide).zip(dy.chunks(norm.wide));
    for ((x, dy), dx) in rows.zip(dx.chunks_mut(norm.wide)) {
        let channels = norm.mean.iter().zip(&norm.scale).zip(&norm.shift).zip(terms.offset.iter().zip(&terms.slope));
        for (((x, dy), dx), (((mean, scale), shift), (offset, slope))) in x.iter().zip(dy).zip(dx).zip(channels) {
            let centred = *x - *mean;
            let g = *dy * F::slope(centred.fma::<FMA>(*scale, *shift));
            dx.write(g.fma::<FMA>(*scale, centred.fma::<FMA>(*slope, *offset)));
        }
    }
}

simd_fn! { pub(super) fn sum<T: Element>(x: &[T], sums: &mut [T]) = sum_body }
simd_fn! { pub(super) fn squares<T: Element>(x: &[T], mean: &[T], sums: &mut [T]) = squares_body }
simd_fn! { fn normalise<T: Element, F: Function>(x: &[T], norm: &Normaliser<T>, y: &mut [MaybeUninit<T>]) = normalise_body }
simd_fn! {
    fn reduce<T: Element, F: Function>(
        x: &[T], dy: &[T], norm: &Normaliser<T>, dweight: &mut [T], dbias: &mut [T],
    ) = reduce_body
}
simd_fn! {
    fn input<T: Element, F: Function>(
        inputs: [&[T]; 2], norm: &Normaliser<T>, terms: &Terms<T>, dx: &mut [MaybeUninit<T>],
    ) = input_body
}
