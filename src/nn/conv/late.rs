//! Both gradients of a convolution in one pass over the gradient of its result, which is computed on the way.
//!
//! What a batch norm passes on is wanted twice, for the input and for the weight, and as a whole goes through memory three
//! times. Here each thread computes a band of it, uses it for both while it is in the caches, and forgets it.

use std::mem::MaybeUninit;
use std::ops::Range;

use gemm::Parallelism;

use super::Geometry;
use super::depthwise::{self, by_tap};
use super::panels::{self, Packed};
use super::window::Window;
use crate::graph::Padding;
use crate::nn::gemm::{Mat, MatMut, add_outer_product};
use crate::nn::host::with_scratch;
use crate::nn::norm::FillRows;
use crate::nn::threads::{add_up, map, part_count, split, threads};
use crate::simd::CHANNEL_BLOCK;

/// Values of a band with what is read and written beside it: half of a second-level cache.
const BAND: usize = 128 << 10;
/// Fewest rows of a band: below, the weight's gradient is read and written again for too few.
const LEAST_ROWS: usize = 256;

/// Gradients of input and weight, each if it was asked for.
pub(super) type Gradients = [Option<Vec<f32>>; 2];

/// Whether there is such a pass for `g`.
pub(super) fn fits(g: &Geometry) -> bool {
    is_pointwise(g) && g.out_rows() >= LEAST_ROWS * threads() || g.is_depthwise() && g.in_channels >= CHANNEL_BLOCK
}

/// A 1×1 convolution that reads every position, of widths that products take.
fn is_pointwise(g: &Geometry) -> bool {
    let whole_vectors = [g.in_channels, g.out_channels].iter().all(|c| c.is_multiple_of(CHANNEL_BLOCK));
    let each_position = g.conv.stride == [1, 1] && g.conv.padding == Padding::default();
    g.taps() == 1 && g.conv.groups == 1 && each_position && whole_vectors
}

/// The gradients for a `dy` that is computed by rows: of the input from `weight`, of the weight from `x`. For what
/// [`fits`].
pub(super) fn gradients(g: &Geometry, x: Option<&[f32]>, weight: Option<&[f32]>, dy: &FillRows) -> Gradients {
    if g.is_depthwise() { Depthwise::new(g, x, weight).gradients(dy) } else { pointwise(g, x, weight, dy) }
}

/// Memory of results that threads write piece by piece.
fn room(values: &mut Vec<f32>, len: usize) -> &mut [MaybeUninit<f32>] {
    values.reserve_exact(len);
    &mut values.spare_capacity_mut()[..len]
}

/// Cuts `room` into pieces of these lengths.
fn cut(mut room: &mut [MaybeUninit<f32>], lengths: impl Iterator<Item = usize>) -> Vec<&mut [MaybeUninit<f32>]> {
    let mut pieces = Vec::new();
    for length in lengths {
        let (piece, rest) = room.split_at_mut(length);
        pieces.push(piece);
        room = rest;
    }
    pieces
}

/// `values` of `dy` from the one at `first` on.
fn filled<'v>(dy: &FillRows, first: usize, values: &'v mut [MaybeUninit<f32>]) -> &'v [f32] {
    dy(first, values);
    // SAFETY: what fills rows writes all of them, and `MaybeUninit<f32>` has the layout of `f32`.
    unsafe { &*(std::ptr::from_ref(values) as *const [f32]) }
}

fn pointwise(g: &Geometry, x: Option<&[f32]>, weight: Option<&[f32]>, dy: &FillRows) -> Gradients {
    let (inputs, outputs, rows) = (g.in_channels, g.out_channels, g.out_rows());
    let window = Window::forward(g);
    let packed = weight.map(|weight| Packed::new([1, outputs, inputs], |_, k, column| weight[k * inputs + column]));
    let bias = vec![0.0; inputs];
    let (dx_width, sum_len) = (packed.as_ref().map_or(0, |_| inputs), x.map_or(0, |_| inputs * outputs));
    let most = (BAND / (outputs + 2 * inputs)).max(LEAST_ROWS);
    let parts = split(rows, part_count(sum_len));
    let mut dx = Vec::new();
    let rooms = cut(room(&mut dx, rows * dx_width), parts.iter().map(|part| part.len() * dx_width));
    let sums =
        map(parts.iter().cloned().zip(rooms).collect(), |(part, dx): (Range<usize>, &mut [MaybeUninit<f32>])| {
            let mut sum = vec![0.0; sum_len];
            for band in split(part.len(), part.len().div_ceil(most)) {
                let first = part.start + band.start;
                with_scratch(band.len() * outputs, |values| {
                    let dy = filled(dy, first * outputs, values);
                    if let Some(packed) = &packed {
                        let rows = panels::Rows { window: &window, source: dy, channels: outputs };
                        let dx = &mut dx[band.start * inputs..band.end * inputs];
                        packed.pass(&rows, 0..band.len(), (&bias, dx.as_mut_ptr().cast()));
                    }
                    if let Some(x) = x {
                        let x = Mat::rows(&x[first * inputs..], [band.len(), inputs], inputs);
                        let dy = Mat::rows(dy, [band.len(), outputs], outputs);
                        add_outer_product(MatMut::rows(&mut sum, [outputs, inputs], inputs), dy, x, Parallelism::None);
                    }
                });
            }
            sum
        });
    // SAFETY: every part wrote its rows, and a pass writes whole rows.
    unsafe { dx.set_len(rows * dx_width) };
    [packed.map(|_| dx), x.map(|_| add_up(sums))]
}

/// A depthwise convolution whose gradients go through each image from above, some lines at a time.
struct Depthwise<'a> {
    g: &'a Geometry,
    x: Option<&'a [f32]>,
    /// `[taps, C]`, if the input's gradient is wanted.
    weight: Option<Vec<f32>>,
    forward: Window,
    /// What reads a line of the gradient for each remainder class of the stride.
    classes: Vec<Window>,
    /// Lines of the input whose gradient is computed at a time.
    lines: usize,
}

impl<'a> Depthwise<'a> {
    fn new(g: &'a Geometry, x: Option<&'a [f32]>, weight: Option<&[f32]>) -> Self {
        // Three maps are touched; below a few lines most of a band is what its neighbour needs, too.
        let lines = BAND / (3 * g.input[1] * g.in_channels);
        let lines = lines.max(g.conv.kernel[0] * g.conv.dilation[0]).min(g.input[0]);
        let weight = weight.map(|weight| by_tap(weight, [g.in_channels, g.taps()]));
        Self { g, x, weight, forward: Window::forward(g), classes: depthwise::classes(g), lines }
    }

    /// Lines of the result whose share of the weight's gradient goes with the input's `lines`.
    fn own(&self, lines: &Range<usize>) -> Range<usize> {
        let (down, height) = (self.g.conv.stride[0], self.g.output[0]);
        let end = if lines.end == self.g.input[0] { height } else { lines.end.div_ceil(down).min(height) };
        lines.start.div_ceil(down).min(height)..end
    }

    /// Lines of the result's gradient that are read for the input's `lines`.
    fn read(&self, lines: &Range<usize>) -> Range<usize> {
        let mut read = if self.x.is_some() { self.own(lines) } else { 0..0 };
        if self.weight.is_none() {
            return read;
        }
        let [down, across] = self.g.conv.stride;
        for line in lines.clone() {
            for window in &self.classes[line % down * across..][..across] {
                for tap in &window.taps {
                    let at = (line / down) as isize + tap.offset[0];
                    if (0..self.g.output[0] as isize).contains(&at) {
                        let at = at as usize;
                        read = if read.is_empty() { at..at + 1 } else { read.start.min(at)..read.end.max(at + 1) };
                    }
                }
            }
        }
        read
    }

    fn gradients(&self, dy: &FillRows) -> Gradients {
        let g = self.g;
        let (line_len, sum_len) = (g.input[1] * g.in_channels, self.x.map_or(0, |_| g.taps() * g.in_channels));
        let dx_line = self.weight.as_ref().map_or(0, |_| line_len);
        let bands = split(g.input[0], g.input[0].div_ceil(self.lines));
        let parts = split(g.batch * bands.len(), part_count(sum_len));
        let lines_of = |part: &Range<usize>| part.clone().map(|band| bands[band % bands.len()].len()).sum::<usize>();
        let len = g.batch * g.input[0] * dx_line;
        let mut dx = Vec::new();
        let rooms = cut(room(&mut dx, len), parts.iter().map(|part| lines_of(part) * dx_line));
        let sums = map(parts.iter().cloned().zip(rooms).collect(), |(part, mut dx): (Range<usize>, &mut [_])| {
            let mut sum = vec![0.0; sum_len];
            for band in part {
                let lines = &bands[band % bands.len()];
                let (here, rest) = std::mem::take(&mut dx).split_at_mut(lines.len() * dx_line);
                dx = rest;
                self.band(band / bands.len(), lines, dy, here, &mut sum);
            }
            sum
        });
        // SAFETY: every part wrote the lines of its bands, and every column of a line is a target of one class.
        unsafe { dx.set_len(len) };
        let dweight = self.x.map(|_| by_tap(&add_up(sums), [g.taps(), g.in_channels]));
        [self.weight.as_ref().map(|_| dx), dweight]
    }

    fn band(&self, image: usize, lines: &Range<usize>, dy: &FillRows, dx: &mut [MaybeUninit<f32>], sum: &mut [f32]) {
        let g = self.g;
        let (read, own, line_len) = (self.read(lines), self.own(lines), g.output[1] * g.out_channels);
        with_scratch(read.len() * line_len, |values| {
            let dy = filled(dy, (image * g.output[0] + read.start) * line_len, values);
            if let Some(weight) = &self.weight {
                let source = depthwise::Source { values: dy, lines: read.clone() };
                for (line, dx) in lines.clone().zip(dx.chunks_exact_mut(g.input[1] * g.in_channels)) {
                    depthwise::input_gradient_line(g, &self.classes, &source, weight, line, dx);
                }
            }
            if let Some(x) = self.x {
                let len = g.input[0] * g.input[1] * g.in_channels;
                for line in own {
                    let dy = &dy[(line - read.start) * line_len..][..line_len];
                    depthwise::add_line(&self.forward, line, [&x[image * len..][..len], dy], g.in_channels, sum);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Conv2d;
    use crate::nn::backend::Dims;
    use crate::nn::conv::dense;
    use crate::nn::testing::assert_near;
    use crate::rng::Rng;

    /// Of the largest value.
    const TOLERANCE: f64 = 1e-5;

    /// How much a thread gets decides whether it is worth it.
    #[test]
    fn two_threads_give_the_gradients_of_two_passes_in_double_precision() {
        rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap().install(compare_with_two_passes);
    }

    fn compare_with_two_passes() {
        let depthwise = |channels: usize, kernel: usize| Conv2d::new(channels, kernel).groups(channels);
        let mut shifted = depthwise(24, 3).stride(2);
        shifted.padding = Padding { top: 3, bottom: 2, left: 0, right: 1 };
        let mut dilated = depthwise(40, 3).padding(2);
        dilated.dilation = [2, 2];
        let cases = [
            (16, 24, [40, 41], Conv2d::new(16, 1)),
            (3, 40, [57, 60], Conv2d::new(8, 1)),
            // Several bands to an image.
            (2, 64, [50, 40], depthwise(64, 3).padding(1)),
            (2, 64, [51, 40], depthwise(64, 3).padding(1).stride(2)),
            (1, 64, [50, 43], depthwise(64, 5).padding(2)),
            (1, 72, [61, 40], depthwise(72, 5).padding(2).stride(2)),
            (2, 40, [60, 50], dilated),
            (2, 24, [90, 60], shifted),
            // Some lines of the input are never read.
            (2, 64, [60, 40], depthwise(64, 1).stride(3)),
            (3, 16, [2, 3], depthwise(16, 3).padding(1)),
        ];
        for (batch, channels, size, conv) in cases {
            let g = Geometry::new(Dims { batch, channels, size }, &conv).unwrap();
            let name = format!("{batch} {channels} {size:?} {conv:?}");
            assert!(fits(&g), "{name}");
            let mut rng = Rng::new(3);
            let mut values = |len: usize| (0..len).map(|_| rng.normal()).collect::<Vec<f32>>();
            let x = values(batch * size[0] * size[1] * channels);
            let (weight, dy) =
                (values(g.out_channels * g.taps() * g.group_in()), values(g.out_rows() * g.out_channels));
            let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
            let (wide_x, wide_weight, wide_dy) = (wide(&x), wide(&weight), wide(&dy));
            let (dx, dweight) = match g.is_depthwise() {
                true => (
                    depthwise::input_gradient(&g, &wide_weight, &wide_dy),
                    depthwise::weight_gradient(&g, &wide_x, &wide_dy),
                ),
                false => {
                    (dense::input_gradient(&g, &wide_weight, &wide_dy), dense::weight_gradient(&g, &wide_x, &wide_dy))
                }
            };
            let by_rows = |first: usize, to: &mut [MaybeUninit<f32>]| {
                to.iter_mut().zip(&dy[first..]).for_each(|(to, dy)| {
                    to.write(*dy);
                });
            };
            for wanted in [[true, true], [true, false], [false, true]] {
                let got = gradients(&g, wanted[1].then_some(&x), wanted[0].then_some(&weight), &by_rows);
                assert_eq!(got.each_ref().map(Option::is_some), wanted, "{name}");
                for (got, want) in got.iter().zip([&dx, &dweight]) {
                    got.iter().for_each(|got| assert_near(&name, got, want, TOLERANCE));
                }
            }
        }
    }

    #[test]
    fn other_convolutions_want_it_whole() {
        let on = |channels: usize, size: usize, conv: &Conv2d| {
            fits(&Geometry::new(Dims { batch: 64, channels, size: [size; 2] }, conv).unwrap())
        };
        assert!(on(16, 40, &Conv2d::new(8, 1)));
        for conv in
            [Conv2d::new(8, 3).padding(1), Conv2d::new(8, 1).stride(2), Conv2d::new(12, 1), Conv2d::new(8, 1).groups(2)]
        {
            assert!(!on(16, 40, &conv), "{conv:?}");
        }
        assert!(!on(16, 1, &Conv2d::new(8, 1)), "too few rows to share");
    }
}
