//! 3×3 convolutions with stride 1 in Winograd's domain F(4×4, 3×3), in f32: a quarter of the multiplications in the
//! forward pass and in both gradients.
//!
//! y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A is linear in g and in d, so the gradients are its transposes: that of d is the convolution
//! of dy with the filters turned around, that of g is Gᵀ[(A dy Aᵀ) ⊙ (Bᵀ d B)]G summed over tiles.
//!
//! # Source
//! Lavin and Gray 2015, arXiv:1509.09308.

mod tiles;

use std::mem::MaybeUninit;
use std::ops::Range;

use self::tiles::{End, Plane, Spread, Tiles, finish, gather_filters, stride, transform_filters};
use super::{Built, Geometry};
use crate::nn::host::with_scratch;
use crate::nn::norm::PartialMoments;
use crate::nn::simd::isa;
use crate::nn::threads::{add_up, map, partials, split, threads};
use crate::simd::epilogue::Epilogue;
use crate::simd::outer::{OuterProduct, outer_product};
use crate::simd::product::{Panel, PanelProduct, TileShape, ZEROS, product};
use crate::simd::{CHANNEL_BLOCK, compiled_for, padded};

/// Output pixels of a tile per side, input pixels it reads, products it takes.
const SIDE: usize = 4;
const SPAN: usize = SIDE + 2;
const FREQUENCIES: usize = SPAN * SPAN;
/// Values of scratch a task aims to stay below: every task reads all filters.
const SCRATCH: usize = 256 << 10;
/// The same where filters are small: half of a second-level cache.
const SMALL_SCRATCH: usize = 128 << 10;
/// Most values of small transformed filters; each part of a weight gradient has as many sums for itself.
const SMALL_FILTERS: usize = 48 << 10;
/// Outputs whose filters one thread transforms back at a time.
const FILTERS_PER_PIECE: usize = 16;
/// Values of transformed maps that a weight gradient goes over at a time: what a last-level cache holds.
const CHUNK: usize = 2 << 20;
/// Multiply-accumulates in the time of moving one transformed value in and out.
const TRANSFORM: usize = 10;
/// Multiply-accumulates in the time of transforming, writing and reading one weight.
const WEIGHT: usize = 50;

/// y, if this way is the faster one.
pub(super) fn forward(
    g: &Geometry,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    for_norm: bool,
) -> Option<Built<f32>> {
    let (inputs, padding) = (g.in_channels, g.conv.padding);
    let plane = Plane { values: x, size: g.input, channels: inputs, origin: [padding.top, padding.left] };
    suits(g).then(|| {
        let filters = Filters::new([inputs, g.out_channels], |k, column, tap| weight[(column * inputs + k) * 9 + tap]);
        convolve(&plane, &Tiles::new(g.batch, g.output), &filters, bias, for_norm)
    })
}

/// dx, if this way is the faster one.
pub(super) fn input_gradient(g: &Geometry, weight: &[f32], dy: &[f32]) -> Option<Vec<f32>> {
    let (inputs, padding) = (g.in_channels, g.conv.padding);
    suits(g).then(|| {
        let origin = [2 - padding.top, 2 - padding.left];
        let plane = Plane { values: dy, size: g.output, channels: g.out_channels, origin };
        let filters =
            Filters::new([g.out_channels, inputs], |k, column, tap| weight[(k * inputs + column) * 9 + 8 - tap]);
        convolve(&plane, &Tiles::new(g.batch, g.input), &filters, None, false).values
    })
}

/// dweight, if this way is the faster one.
pub(super) fn weight_gradient(g: &Geometry, x: &[f32], dy: &[f32]) -> Option<Vec<f32>> {
    suits(g).then(|| {
        let origin = [g.conv.padding.top, g.conv.padding.left];
        let x = Plane { values: x, size: g.input, channels: g.in_channels, origin };
        let dy = Plane { values: dy, size: g.output, channels: g.out_channels, origin: [0, 0] };
        correlate(&x, &dy, &Tiles::new(g.batch, g.output))
    })
}

/// Whether the products saved outweigh the transforms.
fn suits(g: &Geometry) -> bool {
    let conv = &g.conv;
    let (c, k) = (g.in_channels, g.out_channels);
    let plain = conv.kernel == [3, 3] && conv.stride == [1, 1] && conv.dilation == [1, 1] && conv.groups == 1;
    let whole = c.is_multiple_of(CHANNEL_BLOCK) && k.is_multiple_of(CHANNEL_BLOCK);
    if !plain || !whole || conv.padding.top > 2 || conv.padding.left > 2 {
        return false;
    }
    let tiles = Tiles::new(g.batch, g.output).count();
    let direct = 9 * c * k * g.out_rows();
    FREQUENCIES * (tiles * (c * k + TRANSFORM * (c + k)) + WEIGHT * c * k) < direct
}

/// Transformed filters, a panel of columns after the other, in each one matrix `[inputs][columns]` per frequency.
struct Filters {
    size: [usize; 2],
    panels: Vec<(Panel, Vec<f32>)>,
}

impl Filters {
    /// `value(k, column, tap)` is a weight between input `k` and output `column`.
    fn new(size: [usize; 2], value: impl Fn(usize, usize, usize) -> f32 + Sync) -> Self {
        let [inputs, outputs] = size;
        let transform = |panel: Panel| {
            let mut packed = Vec::with_capacity(FREQUENCIES * inputs * panel.packed);
            let mut taps = vec![0.0; 9 * panel.packed];
            for k in 0..inputs {
                for (tap, taps) in taps.chunks_exact_mut(panel.packed).enumerate() {
                    for (column, to) in taps[..panel.width].iter_mut().enumerate() {
                        *to = value(k, panel.first + column, tap);
                    }
                }
                let to = packed.spare_capacity_mut()[k * panel.packed..].as_mut_ptr().cast::<f32>();
                let step = inputs * panel.packed;
                // SAFETY: `taps` has nine rows of whole vectors; the last frequency's row ends with the buffer.
                unsafe {
                    compiled_for!(isa(), transform_filters(taps: &[f32] = &taps, to: *mut f32 = to, step: usize = step));
                }
            }
            // SAFETY: every row of every frequency was written.
            unsafe { packed.set_len(FREQUENCIES * inputs * panel.packed) };
            (panel, packed)
        };
        let panels: Vec<Panel> = TileShape::of(isa()).panels(padded(outputs)).collect();
        Self { size, panels: map(panels, transform) }
    }
}

/// The convolution of a plane over tiles of its result.
fn convolve(plane: &Plane, tiles: &Tiles, filters: &Filters, bias: Option<&[f32]>, for_norm: bool) -> Built<f32> {
    let [inputs, outputs] = filters.size;
    let len = tiles.pixels_before(tiles.rows()) * outputs;
    let per_row = tiles.grid[1] * FREQUENCIES * (inputs + outputs);
    let scratch = if FREQUENCIES * inputs * outputs <= SMALL_FILTERS { SMALL_SCRATCH } else { SCRATCH };
    let tasks = (tiles.rows() * per_row).div_ceil(scratch).next_multiple_of(threads());
    let mut out: Vec<f32> = Vec::with_capacity(len);
    let mut rest = &mut out.spare_capacity_mut()[..len];
    let mut bands = Vec::with_capacity(tasks);
    for rows in split(tiles.rows(), tasks) {
        let pixels = tiles.pixels_before(rows.end) - tiles.pixels_before(rows.start);
        let (band, behind) = rest.split_at_mut(pixels * outputs);
        rest = behind;
        bands.push((tiles.of_rows(&rows), band));
    }
    let of_band = |(range, band): (Range<usize>, &mut [MaybeUninit<f32>])| {
        let count = range.len();
        let (step, products_step) = (stride(count * inputs), stride(count * outputs));
        with_scratch(FREQUENCIES * (step + products_step), |scratch| {
            let transformed = scratch.as_mut_ptr().cast::<f32>();
            let mut table: Vec<*const f32> = Vec::with_capacity(FREQUENCIES * count);
            for frequency in 0..FREQUENCIES {
                let first = transformed.wrapping_add(frequency * step).cast_const();
                table.extend((0..count).map(|tile| first.wrapping_add(tile * inputs)));
            }
            // SAFETY: scratch holds all tiles, of all frequencies, of inputs and outputs; each is written before it is read.
            // The tables name rows of `inputs` values.
            unsafe {
                let products = transformed.add(FREQUENCIES * step);
                Spread { is_gradient: false, plane, tiles, first: range.start, count, out: transformed }
                    .run(range.clone());
                for (f, table) in table.chunks_exact(count).enumerate() {
                    for (panel, weights) in &filters.panels {
                        let product_of = PanelProduct {
                            table: table.as_ptr(),
                            taps: 1,
                            inner: inputs,
                            weights: weights[f * inputs * panel.packed..].as_ptr(),
                            panel: *panel,
                            bias: ZEROS.as_ptr(),
                            out: products.add(f * products_step + panel.first),
                            out_stride: outputs,
                            residual: std::ptr::null(),
                            residual_stride: 0,
                            epilogue: Epilogue::new(None),
                        };
                        product(isa(), &product_of, count);
                    }
                }
                let end = End { tiles, range, channels: outputs, bias, products, out: &mut *band };
                compiled_for!(isa(), finish(end: End = end));
            }
        });
        // SAFETY: `finish` wrote all of the band.
        for_norm.then(|| unsafe { PartialMoments::of_written(band, outputs) })
    };
    let moments: Vec<Option<PartialMoments>> = map(bands, of_band);
    // SAFETY: the tiles cover the map, and each wrote its pixels.
    unsafe { out.set_len(len) };
    Built { values: out, moments: moments.into_iter().flatten().collect() }
}

/// The gradient of the filters, `[outputs, inputs, 3, 3]`.
fn correlate(x: &Plane, dy: &Plane, tiles: &Tiles) -> Vec<f32> {
    let (inputs, outputs) = (x.channels, dy.channels);
    let sums = match FREQUENCIES * inputs * outputs <= SMALL_FILTERS {
        true => {
            add_up(partials(tiles.rows(), FREQUENCIES * inputs * outputs, |rows| correlate_alone(x, dy, tiles, rows)))
        }
        false => correlate_together(x, dy, tiles),
    };
    let mut dweight = vec![0.0; outputs * inputs * 9];
    let pieces = dweight.chunks_mut(FILTERS_PER_PIECE * inputs * 9).enumerate().collect();
    map(pieces, |(piece, filters)| {
        for (i, to) in filters.chunks_exact_mut(inputs * 9).enumerate() {
            let from = &sums[(piece * FILTERS_PER_PIECE + i) * inputs..];
            // SAFETY: `from` has one row of whole vectors per frequency.
            unsafe {
                compiled_for!(isa(), gather_filters(from: &[f32] = from, step: usize = inputs * outputs, to: &mut [f32] = to));
            }
        }
    });
    dweight
}

/// Sums over some rows of tiles, `[frequency][outputs][inputs]`, on this thread: the transformed maps never leave its caches.
fn correlate_alone(x: &Plane, dy: &Plane, tiles: &Tiles, rows: Range<usize>) -> Vec<f32> {
    let (inputs, outputs) = (x.channels, dy.channels);
    let per_row = tiles.grid[1] * FREQUENCIES * (inputs + outputs);
    let chunks = split(rows.len(), (rows.len() * per_row).div_ceil(SMALL_SCRATCH));
    let most = chunks.iter().map(|rows| rows.len() * tiles.grid[1]).max().unwrap_or(0);
    let mut sums = vec![0.0; FREQUENCIES * inputs * outputs];
    with_scratch(FREQUENCIES * (stride(most * inputs) + stride(most * outputs)), |scratch| {
        for chunk in chunks {
            let range = tiles.of_rows(&(rows.start + chunk.start..rows.start + chunk.end));
            let (first, count) = (range.start, range.len());
            let (maps, gradients) = scratch.split_at_mut(FREQUENCIES * stride(count * inputs));
            let of_maps = Spread { is_gradient: false, plane: x, tiles, first, count, out: maps.as_mut_ptr().cast() };
            let of_gradients = Spread { is_gradient: true, plane: dy, out: gradients.as_mut_ptr().cast(), ..of_maps };
            // SAFETY: the buffers hold `count` tiles of every frequency, and are complete before they are read.
            unsafe {
                of_maps.run(range.clone());
                of_gradients.run(range);
                for (f, sum) in sums.chunks_exact_mut(inputs * outputs).enumerate() {
                    add_products(&of_gradients, &of_maps, f, sum.as_mut_ptr(), true);
                }
            }
        }
    });
    sums
}

/// Adds to `sum`, or writes there, the product of a frequency's matrices, `[outputs][inputs]`.
///
/// # Safety
/// Both transforms are complete, and `sum` has room for the product.
unsafe fn add_products(gradients: &Spread, maps: &Spread, frequency: usize, sum: *mut f32, add: bool) {
    let (inputs, outputs) = (maps.plane.channels, gradients.plane.channels);
    // SAFETY: the caller's.
    unsafe {
        let product = OuterProduct {
            a: gradients.rows(frequency),
            a_stride: outputs,
            b: maps.rows(frequency),
            b_stride: inputs,
            out: sum,
            out_stride: inputs,
            len: maps.count,
            size: [outputs, inputs],
            add,
        };
        outer_product(isa(), &product);
    }
}

/// As [`correlate_alone`] over all tiles, by all threads together: each frequency's sums belong to one of them.
fn correlate_together(x: &Plane, dy: &Plane, tiles: &Tiles) -> Vec<f32> {
    let (inputs, outputs) = (x.channels, dy.channels);
    let per_row = tiles.grid[1] * FREQUENCIES * (inputs + outputs);
    let chunks = split(tiles.rows(), (tiles.rows() * per_row).div_ceil(CHUNK));
    let most = chunks.iter().map(|rows| rows.len() * tiles.grid[1]).max().unwrap_or(0);
    let mut transformed: Vec<f32> = Vec::with_capacity(FREQUENCIES * (stride(most * inputs) + stride(most * outputs)));
    let mut sums: Vec<f32> = Vec::with_capacity(FREQUENCIES * inputs * outputs);
    for (chunk, rows) in chunks.into_iter().enumerate() {
        let count = rows.len() * tiles.grid[1];
        let (maps, gradients) = transformed.spare_capacity_mut().split_at_mut(FREQUENCIES * stride(count * inputs));
        let range = tiles.of_rows(&rows);
        let first = range.start;
        let of_maps = Spread { is_gradient: false, plane: x, tiles, first, count, out: maps.as_mut_ptr().cast() };
        let of_gradients = Spread { is_gradient: true, plane: dy, out: gradients.as_mut_ptr().cast(), ..of_maps };
        map(split(count, 8 * threads()), |part| {
            let part = range.start + part.start..range.start + part.end;
            // SAFETY: the buffers hold `count` tiles of every frequency, and no two parts share a tile.
            unsafe {
                of_maps.run(part.clone());
                of_gradients.run(part);
            }
        });
        let sums = &mut sums.spare_capacity_mut()[..FREQUENCIES * inputs * outputs];
        map(sums.chunks_mut(inputs * outputs).enumerate().collect(), |(f, sum): (usize, &mut [MaybeUninit<f32>])| {
            // SAFETY: both transforms are complete; all chunks but the first add to what the first wrote.
            unsafe { add_products(&of_gradients, &of_maps, f, sum.as_mut_ptr().cast(), chunk > 0) };
        });
    }
    // SAFETY: the first chunk wrote all of them.
    unsafe { sums.set_len(FREQUENCIES * inputs * outputs) };
    sums
}
