//! Depthwise convolution, vectorised over channels.

#[allow(
    clippy::needless_range_loop,
    reason = "register tiles are indexed by constants, so that they stay in registers"
)]
mod vectors;

use std::mem::MaybeUninit;
use std::ops::Range;

use super::window::Window;
use super::{Built, Geometry};
use crate::nn::host::build_whole_rows;
use crate::nn::simd::{Element, simd_fn};
use crate::nn::threads::{add_up, band, partials};

/// Values of a band of lines: they are in the second-level cache when its moments are taken.
const BAND: usize = 1 << 15;
/// Channels whose sums stay in registers together.
const LANES: usize = 16;

/// The weight as `[taps, C]`, so that a tap's channels are contiguous.
pub(super) fn by_tap<T: Element>(weight: &[T], [rows, columns]: [usize; 2]) -> Vec<T> {
    (0..columns).flat_map(|j| weight[j..].iter().step_by(columns).take(rows).copied()).collect()
}

/// y = x ∗ weight + bias.
pub(super) fn forward<T: Element>(g: &Geometry, x: &[T], weight: &[T], bias: Option<&[T]>, for_norm: bool) -> Built<T> {
    let weight = by_tap(weight, [g.in_channels, g.taps()]);
    let (window, [height, width]) = (Window::forward(g), g.output);
    let image = g.input[0] * g.input[1] * g.in_channels;
    let line_len = width * g.out_channels;
    let lines = (BAND / line_len).clamp(1, band(g.batch * height));
    let fill = |number: usize, y: &mut [MaybeUninit<T>]| {
        for (i, y) in y.chunks_exact_mut(line_len).enumerate() {
            let line = number * lines + i;
            let source = Source { values: &x[line / height * image..][..image], lines: 0..g.input[0] };
            let job = Line { window: &window, source, weight: &weight, bias, row: line % height, first: 0, step: 1 };
            job.write(g.in_channels, y);
        }
    };
    // SAFETY: bands are whole lines, and every column of a line is a target.
    unsafe { Built::bands([g.out_rows() * g.out_channels, lines * line_len, g.out_channels], for_norm, fill) }
}

/// dx: the same sum over the taps that reach each remainder class of the stride.
pub(super) fn input_gradient<T: Element>(g: &Geometry, weight: &[T], dy: &[T]) -> Vec<T> {
    let weight = by_tap(weight, [g.in_channels, g.taps()]);
    let classes = classes(g);
    let image = g.output[0] * g.output[1] * g.out_channels;
    let fill = |line: usize, dx: &mut [MaybeUninit<T>]| {
        let source = Source { values: &dy[line / g.input[0] * image..][..image], lines: 0..g.output[0] };
        input_gradient_line(g, &classes, &source, &weight, line % g.input[0], dx);
    };
    // SAFETY: every column belongs to one remainder class, and is a target of its window.
    unsafe { build_whole_rows(g.batch * g.input[0] * g.input[1] * g.in_channels, g.input[1] * g.in_channels, 1, fill) }
}

/// What reads the result's gradient for each remainder class of the stride, by row.
pub(super) fn classes(g: &Geometry) -> Vec<Window> {
    let [down, across] = g.conv.stride;
    (0..down * across).map(|class| Window::backward(g, [class / across, class % across])).collect()
}

/// One line of dx from those of dy that it needs. Writes all of it: every column belongs to one remainder class.
pub(super) fn input_gradient_line<T: Element>(
    g: &Geometry,
    classes: &[Window],
    dy: &Source<T>,
    weight: &[T],
    line: usize,
    dx: &mut [MaybeUninit<T>],
) {
    let [down, across] = g.conv.stride;
    for (first, window) in classes[line % down * across..][..across].iter().enumerate() {
        let job = Line { window, source: dy.clone(), weight, bias: None, row: line / down, first, step: across };
        job.write(g.in_channels, dx);
    }
}

/// dweight: partial sums of lines of the output, one per thread.
pub(super) fn weight_gradient<T: Element>(g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    let (window, height, channels) = (Window::forward(g), g.output[0], g.in_channels);
    let image = g.input[0] * g.input[1] * channels;
    let line_len = g.output[1] * channels;
    let parts = partials(g.batch * height, g.taps() * g.in_channels, |lines| {
        let mut sum = vec![T::ZERO; g.taps() * channels];
        for line in lines {
            let x = &x[line / height * image..][..image];
            let dy = &dy[line * line_len..][..line_len];
            add_line(&window, line % height, [x, dy], channels, &mut sum);
        }
        sum
    });
    by_tap(&add_up(parts), [g.taps(), channels])
}

/// Lines of a source image.
#[derive(Clone)]
pub(super) struct Source<'a, T> {
    pub values: &'a [T],
    /// Which ones they are: all that are read.
    pub lines: Range<usize>,
}

/// One line of a target map: pixels `first`, `first + step`, … of `out` belong to target columns 0, 1, …
struct Line<'a, T> {
    window: &'a Window,
    source: Source<'a, T>,
    /// `[taps, C]`.
    weight: &'a [T],
    bias: Option<&'a [T]>,
    /// Target row.
    row: usize,
    first: usize,
    step: usize,
}

/// Where one tap reads at target column 0 (it may lie outside), and its weights.
#[derive(Clone, Copy)]
struct Reach {
    source: isize,
    weight: usize,
    /// Horizontal offset, for the edges.
    dx: isize,
}

impl<T: Element> Line<'_, T> {
    /// Computes the line's pixels of `out`.
    fn write(&self, channels: usize, out: &mut [MaybeUninit<T>]) {
        if let (Some(values), Some(weight)) = (T::singles(self.source.values), T::singles(self.weight)) {
            let Self { window, row, first, step, .. } = *self;
            let source = Source { values, lines: self.source.lines.clone() };
            let line = Line { window, source, weight, bias: self.bias.and_then(T::singles), row, first, step };
            assert!(out.len() > (first + (window.target[1] - 1) * step) * channels);
            // SAFETY: `T` is f32, and `out` ends behind the last pixel.
            if unsafe { vectors::convolve(&line, channels, out.as_mut_ptr().cast()) } {
                return;
            }
        }
        convolve(self, channels, out);
    }
}

/// Adds one output line's share of the weight gradient to `sum` `[taps, C]`.
pub(super) fn add_line<T: Element>(window: &Window, row: usize, [x, dy]: [&[T]; 2], channels: usize, sum: &mut [T]) {
    if let (Some(x), Some(dy), Some(sum)) = (T::singles(x), T::singles(dy), T::singles_mut(sum))
        && vectors::correlate(window, row, x, dy, channels, sum)
    {
        return;
    }
    correlate(window, row, [x, dy], channels, sum);
}

/// The taps that read inside the image in target row `row`, and the columns in which all of them do.
///
/// # Panics
/// If one of them reads a line of the image that is not among `lines`.
fn reach(window: &Window, row: usize, channels: usize, lines: &Range<usize>) -> (Vec<Reach>, Range<usize>) {
    let [height, width] = window.source.map(|v| v as isize);
    let mut reaches: Vec<Reach> = Vec::with_capacity(window.taps.len());
    let (mut begin, mut end) = (0, window.target[1]);
    for tap in &window.taps {
        let y = (row * window.stride[0]) as isize + tap.offset[0];
        if y >= 0 && y < height {
            assert!(lines.contains(&(y as usize)), "a line that is not there is read");
            let source = ((y - lines.start as isize) * width + tap.offset[1]) * channels as isize;
            reaches.push(Reach { source, weight: tap.index * channels, dx: tap.offset[1] });
            let inside = window.inside(1, tap.offset[1]);
            begin = begin.max(inside.start);
            end = end.min(inside.end);
        }
    }
    (reaches, begin..end.max(begin))
}

#[inline(always)]
fn convolve_body<T: Element, const FMA: bool>(line: &Line<T>, channels: usize, out: &mut [MaybeUninit<T>]) {
    let Line { window, row, .. } = *line;
    let width = window.source[1] as isize;
    let (reaches, inside) = reach(window, row, channels, &line.source.lines);
    let mut edge = Vec::with_capacity(reaches.len());
    for column in 0..window.target[1] {
        let taps = if inside.contains(&column) {
            &reaches
        } else {
            let x = (column * window.stride[1]) as isize;
            edge.clear();
            edge.extend(reaches.iter().filter(|r| x + r.dx >= 0 && x + r.dx < width).copied());
            &edge
        };
        let shift = (column * window.stride[1] * channels) as isize;
        let at = (line.first + column * line.step) * channels;
        pixel::<T, FMA>(line, taps, shift, &mut out[at..at + channels]);
    }
}

/// One target pixel: all channels, a few registers of them at a time.
#[inline(always)]
fn pixel<T: Element, const FMA: bool>(line: &Line<T>, taps: &[Reach], shift: isize, out: &mut [MaybeUninit<T>]) {
    let channels = out.len();
    let mut at = 0;
    while at + LANES <= channels {
        lanes::<T, LANES, FMA>(line, taps, shift + at as isize, at, out);
        at += LANES;
    }
    if at == channels {
        return;
    }
    if channels >= LANES {
        // The last channels once more together with their left neighbours: cheaper than one by one.
        let at = channels - LANES;
        lanes::<T, LANES, FMA>(line, taps, shift + at as isize, at, out);
    } else {
        for at in at..channels {
            lanes::<T, 1, FMA>(line, taps, shift + at as isize, at, out);
        }
    }
}

#[inline(always)]
fn lanes<T: Element, const N: usize, const FMA: bool>(
    line: &Line<T>,
    taps: &[Reach],
    shift: isize,
    at: usize,
    out: &mut [MaybeUninit<T>],
) {
    let mut sums = [T::ZERO; N];
    if let Some(bias) = line.bias {
        sums.copy_from_slice(&bias[at..at + N]);
    }
    for tap in taps {
        let x = &line.source.values[(tap.source + shift) as usize..][..N];
        let weight = &line.weight[tap.weight + at..][..N];
        for i in 0..N {
            sums[i] = x[i].fma::<FMA>(weight[i], sums[i]);
        }
    }
    for (out, sum) in out[at..at + N].iter_mut().zip(sums) {
        out.write(sum);
    }
}

/// As [`add_line`], for any element type and number of channels.
#[inline(always)]
fn correlate_body<T: Element, const FMA: bool>(
    window: &Window,
    row: usize,
    [x, dy]: [&[T]; 2],
    channels: usize,
    sum: &mut [T],
) {
    let [height, width] = window.source;
    for tap in &window.taps {
        let y = (row * window.stride[0]) as isize + tap.offset[0];
        if y < 0 || y >= height as isize {
            continue;
        }
        let line = &x[y as usize * width * channels..][..width * channels];
        let sum = &mut sum[tap.index * channels..][..channels];
        for column in window.inside(1, tap.offset[1]) {
            let at = (column * window.stride[1]) as isize + tap.offset[1];
            let x = &line[at as usize * channels..][..channels];
            let dy = &dy[column * channels..][..channels];
            for ((sum, x), dy) in sum.iter_mut().zip(x).zip(dy) {
                *sum = x.fma::<FMA>(*dy, *sum);
            }
        }
    }
}

simd_fn! { fn convolve<T: Element>(line: &Line<T>, channels: usize, out: &mut [MaybeUninit<T>]) = convolve_body }
simd_fn! {
    fn correlate<T: Element>(
        window: &Window, row: usize, inputs: [&[T]; 2], channels: usize, sum: &mut [T],
    ) = correlate_body
}
