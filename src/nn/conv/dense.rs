//! Dense and grouped convolution: blocks of gathered rows times a packed weight.
//!
//! A 1×1 convolution with stride 1 reads each position itself, so the input serves as gathered rows without a
//! copy.

use std::borrow::Cow;
use std::ops::Range;

use gemm::Parallelism;

use super::window::{Channels, Window};
use super::{Built, Geometry, single};
use crate::nn::gemm::{Mat, MatMut, add_outer_product, add_product};
use crate::nn::host::build_rows;
use crate::nn::simd::Element;
use crate::nn::threads::{add_up, band, map, partials, split, threads};
use crate::simd::CHANNEL_BLOCK;

/// Bytes of gathered rows that fit the second-level cache beside the product's own packing buffers.
const CACHED_BYTES: usize = 1 << 20;
/// Fewest gathered rows per product: below, packing the weight again for each block costs more than it saves.
const LEAST_ROWS: usize = 256;
/// Most bytes of gathered rows per thread.
const MOST_BYTES: usize = 8 << 20;
/// Filters that one thread transposes at a time.
const FILTERS_PER_PIECE: usize = 16;
/// Rows of a weight that one thread copies at a time.
const ROWS_PER_PIECE: usize = 64;

/// Target positions per block when each gathers `width` values.
fn block_rows<T>(width: usize) -> usize {
    let row_bytes = (width * size_of::<T>()).max(1);
    (CACHED_BYTES / row_bytes).max(LEAST_ROWS).min(MOST_BYTES / row_bytes).max(1)
}

/// A window's rows, gathered block by block into one buffer, or read in place.
struct Gatherer<'a, T> {
    window: &'a Window,
    source: &'a [T],
    channels: usize,
    groups: usize,
    /// Values from one gathered row to the next; behind a row's own there are zeros.
    pitch: usize,
    buffer: Vec<T>,
}

impl<'a, T: Element> Gatherer<'a, T> {
    fn new(window: &'a Window, source: &'a [T], channels: usize, groups: usize) -> Self {
        let pitch = window.taps.len() * (channels / groups);
        Self { window, source, channels, groups, pitch, buffer: Vec::new() }
    }

    /// Makes gathered rows whole vectors long.
    fn padded(mut self) -> Self {
        if !self.window.is_identity() {
            self.pitch = self.pitch.next_multiple_of(CHANNEL_BLOCK);
        }
        self
    }

    /// Cuts `rows` into blocks that may be gathered one at a time.
    fn blocks(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<T> {
        let most = if self.window.is_identity() { usize::MAX } else { block_rows::<T>(self.pitch) };
        // Blocks of equal height, rather than full ones and a small rest.
        let count = rows.len().div_ceil(most).max(1);
        split(rows.len(), count).into_iter().map(move |r| rows.start + r.start..rows.start + r.end)
    }

    fn rows(&mut self, group: usize, rows: Range<usize>) -> Mat<'_, T> {
        let (count, width) = (self.channels / self.groups, self.pitch);
        let size = [rows.len(), width];
        if self.window.is_identity() {
            return Mat::rows(&self.source[rows.start * self.channels + group * count..], size, self.channels);
        }
        let needed = rows.len() * width;
        if self.buffer.len() < needed {
            self.buffer.resize(needed, T::default());
        }
        let columns = &mut self.buffer[..needed];
        let channels = Channels { total: self.channels, first: group * count, count };
        self.window.gather(self.source, channels, rows, (columns, width));
        Mat::rows(columns, size, width)
    }
}

/// The weight as `[O, taps, I/groups]`.
fn pack<'a, T: Element>(g: &Geometry, weight: &'a [T]) -> Cow<'a, [T]> {
    if g.taps() == 1 {
        return Cow::Borrowed(weight);
    }
    let mut packed = vec![T::ZERO; weight.len()];
    transpose_filters(weight, &mut packed, [g.group_in(), g.taps()]);
    Cow::Owned(packed)
}

/// Transposes each filter, a matrix of `size`.
fn transpose_filters<T: Element>(from: &[T], to: &mut [T], size: [usize; 2]) {
    let [rows, columns] = size;
    let piece = FILTERS_PER_PIECE * rows * columns;
    map(to.chunks_mut(piece).zip(from.chunks(piece)).collect(), |(to, from)| {
        for (to, from) in to.chunks_exact_mut(rows * columns).zip(from.chunks_exact(rows * columns)) {
            for (j, to) in to.chunks_exact_mut(rows).enumerate() {
                for (to, from) in to.iter_mut().zip(from[j..].iter().step_by(columns)) {
                    *to = *from;
                }
            }
        }
    });
}

/// y = gathered x · packed weightᵀ + bias.
pub(super) fn forward<T: Element>(g: &Geometry, x: &[T], weight: &[T], bias: Option<&[T]>, for_norm: bool) -> Built<T> {
    if let Some(y) = single::forward(g, x, weight, bias, for_norm) {
        return y;
    }
    let (window, packed) = (Window::forward(g), pack(g, weight));
    let filter = g.taps() * g.group_in();
    let multiplier = |group: usize| {
        let filters = &packed[group * g.group_out() * filter..(group + 1) * g.group_out() * filter];
        Mat::rows(filters, [g.group_out(), filter], filter).t()
    };
    let product = Product { window: &window, source: x, channels: g.in_channels, groups: g.conv.groups };
    let values = product.build(g.out_rows() * g.out_channels, g.out_channels, multiplier, |y| {
        if let Some(bias) = bias {
            y.chunks_exact_mut(bias.len()).for_each(|row| row.copy_from_slice(bias));
        }
    });
    Built { values, moments: Vec::new() }
}

/// dx = gathered dy · packed weight, class by class of the stride.
pub(super) fn input_gradient<T: Element>(g: &Geometry, weight: &[T], dy: &[T]) -> Vec<T> {
    if let Some(dx) = single::input_gradient(g, weight, dy) {
        return dx;
    }
    let packed = pack(g, weight);
    let classes: Vec<Class<T>> = Window::classes(g).map(|class| Class::new(g, class, &packed)).collect();
    let len = g.batch * g.input[0] * g.input[1] * g.in_channels;
    if let ([class], [1, 1]) = (classes.as_slice(), g.conv.stride) {
        let product = Product { window: &class.window, source: dy, channels: g.out_channels, groups: g.conv.groups };
        return product.build(len, g.in_channels, |group| class.multiplier(g, group), |_| ());
    }
    let parallelism = if g.batch >= threads() { Parallelism::None } else { Parallelism::Rayon(threads()) };
    build_rows(len, g.input[0] * g.input[1] * g.in_channels, 1, |image, dx| {
        let mut scratch = Vec::new();
        for class in &classes {
            let rows = class.window.rows();
            let mut gatherer = Gatherer::new(&class.window, dy, g.out_channels, g.conv.groups);
            for block in gatherer.blocks(image * rows..(image + 1) * rows) {
                scratch.clear();
                scratch.resize(block.len() * g.in_channels, T::ZERO);
                for group in 0..g.conv.groups {
                    let dst = &mut scratch[group * g.group_in()..];
                    let dst = MatMut::rows(dst, [block.len(), g.group_in()], g.in_channels);
                    add_product(dst, gatherer.rows(group, block.clone()), class.multiplier(g, group), parallelism);
                }
                class.window.scatter((g, class.first), block.start - image * rows, &scratch, dx);
            }
        }
    })
}

/// dweight = dyᵀ · gathered x.
pub(super) fn weight_gradient<T: Element>(g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    if let Some(dweight) = single::weight_gradient(g, x, dy) {
        return dweight;
    }
    let window = Window::forward(g);
    let filter = g.taps() * g.group_in();
    let gatherer = || Gatherer::new(&window, x, g.in_channels, g.conv.groups).padded();
    let pitch = gatherer().pitch;
    let part = |rows: Range<usize>, parallelism: Parallelism| {
        let mut sum = vec![T::ZERO; g.out_channels * pitch];
        let mut gatherer = gatherer();
        for block in gatherer.blocks(rows) {
            for group in 0..g.conv.groups {
                let size = [g.group_out(), pitch];
                let dst = MatMut::rows(&mut sum[group * size[0] * size[1]..][..size[0] * size[1]], size, pitch);
                let dy = &dy[block.start * g.out_channels + group * size[0]..];
                let dy = Mat::rows(dy, [block.len(), size[0]], g.out_channels);
                add_outer_product(dst, dy, gatherer.rows(group, block.clone()), parallelism);
            }
        }
        sum
    };
    // The product's own threads share m and n, which are small here; the long side is the sum over rows.
    let mut sum = if g.out_rows() >= LEAST_ROWS * threads() {
        add_up(partials(g.out_rows(), g.out_channels * pitch, |rows| part(rows, Parallelism::None)))
    } else {
        part(0..g.out_rows(), Parallelism::Rayon(threads()))
    };
    if pitch != filter {
        sum = sum.chunks_exact(pitch).flat_map(|row| &row[..filter]).copied().collect();
    }
    if g.taps() == 1 {
        return sum;
    }
    let mut dweight = vec![T::ZERO; sum.len()];
    transpose_filters(&sum, &mut dweight, [g.taps(), g.group_in()]);
    dweight
}

/// Gathered rows of a source times one matrix per group.
struct Product<'a, T> {
    window: &'a Window,
    source: &'a [T],
    channels: usize,
    groups: usize,
}

impl<T: Element> Product<'_, T> {
    /// `len` values in rows of `width`: what `start` makes of zeros, plus the product.
    fn build<'m>(
        &self,
        len: usize,
        width: usize,
        multiplier: impl Fn(usize) -> Mat<'m, T> + Sync,
        start: impl Fn(&mut [T]) + Sync,
    ) -> Vec<T> {
        let rows = len / width;
        let (height, parallelism) = if rows >= LEAST_ROWS * threads() {
            (band(rows).max(LEAST_ROWS), Parallelism::None)
        } else {
            (rows.max(1), Parallelism::Rayon(threads()))
        };
        build_rows(len, width, height, |first, out| {
            start(out);
            let mut gatherer = Gatherer::new(self.window, self.source, self.channels, self.groups);
            for block in gatherer.blocks(first..first + out.len() / width) {
                let part = width / self.groups;
                for group in 0..self.groups {
                    let dst = &mut out[(block.start - first) * width + group * part..];
                    let dst = MatMut::rows(dst, [block.len(), part], width);
                    add_product(dst, gatherer.rows(group, block.clone()), multiplier(group), parallelism);
                }
            }
        })
    }
}

/// Input positions with one remainder by the stride, and the weight for them as `[groups, taps, O/groups, I/groups]`.
struct Class<T> {
    window: Window,
    first: [usize; 2],
    weight: Vec<T>,
}

impl<T: Element> Class<T> {
    fn new(g: &Geometry, (first, window): ([usize; 2], Window), packed: &[T]) -> Self {
        let (count, taps) = (g.group_in(), window.taps.len());
        let mut weight = vec![T::ZERO; g.conv.groups * taps * g.group_out() * count];
        let (filters, per_group) = (g.group_out(), taps * g.group_out());
        map(weight.chunks_mut(ROWS_PER_PIECE * count).enumerate().collect(), |(piece, rows)| {
            for (i, to) in rows.chunks_exact_mut(count).enumerate() {
                let row = piece * ROWS_PER_PIECE + i;
                let (group, tap, o) = (row / per_group, row % per_group / filters, row % filters);
                let from = ((group * filters + o) * g.taps() + window.taps[tap].index) * count;
                to.copy_from_slice(&packed[from..from + count]);
            }
        });
        Self { window, first, weight }
    }

    fn multiplier(&self, g: &Geometry, group: usize) -> Mat<'_, T> {
        let size = [self.window.taps.len() * g.group_out(), g.group_in()];
        Mat::rows(&self.weight[group * size[0] * size[1]..][..size[0] * size[1]], size, size[1])
    }
}
