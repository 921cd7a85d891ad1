//! Maps cut into tiles, and the transforms of tiles and filters into Winograd's domain and out of it.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::{SIDE, SPAN};
use crate::nn::simd::isa;
use crate::simd::winograd::{filter4, gather4, input4, output4, spread4};
use crate::simd::{Vector, compiled_for};

/// How a map is cut into tiles, numbered row by row through the batch.
pub(super) struct Tiles {
    pub batch: usize,
    pub map: [usize; 2],
    pub grid: [usize; 2],
}

impl Tiles {
    pub fn new(batch: usize, map: [usize; 2]) -> Self {
        Self { batch, map, grid: map.map(|size| size.div_ceil(SIDE)) }
    }

    /// Rows of tiles.
    pub fn rows(&self) -> usize {
        self.batch * self.grid[0]
    }

    pub fn count(&self) -> usize {
        self.rows() * self.grid[1]
    }

    /// Image, row and column of a tile's first pixel.
    fn place(&self, tile: usize) -> [usize; 3] {
        let (row, column) = (tile / self.grid[1], tile % self.grid[1]);
        [row / self.grid[0], row % self.grid[0] * SIDE, column * SIDE]
    }

    /// Pixels in front of a row of tiles.
    pub fn pixels_before(&self, row: usize) -> usize {
        (row / self.grid[0] * self.map[0] + row % self.grid[0] * SIDE) * self.map[1]
    }

    /// The tiles of some rows.
    pub fn of_rows(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.grid[1]..rows.end * self.grid[1]
    }
}

/// A map in memory, `[N, H, W, C]`; the patch of a tile begins `origin` above and left of the tile's first pixel.
pub(super) struct Plane<'a> {
    pub values: &'a [f32],
    pub size: [usize; 2],
    pub channels: usize,
    pub origin: [usize; 2],
}

/// Values of a cache line.
const LINE: usize = 16;

/// From one frequency's matrix of `len` values to the next one's: an odd number of cache lines, for a tile's values of all
/// frequencies are moved together, and would meet in a few sets of the first-level cache otherwise.
pub(super) const fn stride(len: usize) -> usize {
    (len.div_ceil(LINE) | 1) * LINE
}

/// Transforms of tiles of a plane, to one matrix `[count][channels]` per frequency, [`stride`] apart.
#[derive(Clone, Copy)]
pub(super) struct Spread<'a> {
    /// Whether the plane is a gradient of outputs: tiles of [`SIDE`] pixels, transformed by A.
    pub is_gradient: bool,
    pub plane: &'a Plane<'a>,
    pub tiles: &'a Tiles,
    /// The first tile there is room for, and how many.
    pub first: usize,
    pub count: usize,
    pub out: *mut f32,
}

// SAFETY: only `run` writes through `out`, and its callers see to it that no two threads write the same tiles.
unsafe impl Sync for Spread<'_> {}

impl Spread<'_> {
    /// Transforms the tiles `range`.
    ///
    /// # Safety
    /// `out` has room for `count` tiles; the range lies in them, and nobody else writes it.
    pub unsafe fn run(&self, range: Range<usize>) {
        // SAFETY: the caller's.
        unsafe {
            if self.is_gradient {
                compiled_for!(isa(), spread_gradient(job: &Spread = self, range: Range<usize> = range));
            } else {
                compiled_for!(isa(), spread_map(job: &Spread = self, range: Range<usize> = range));
            }
        }
    }

    /// The matrix of a frequency.
    pub unsafe fn rows(&self, frequency: usize) -> *const f32 {
        // SAFETY: there is one for every frequency.
        unsafe { self.out.add(frequency * stride(self.count * self.plane.channels)).cast_const() }
    }
}

#[inline(always)]
unsafe fn spread_map<V: Vector>(job: &Spread, range: Range<usize>) {
    // SAFETY: the caller's.
    unsafe { spread::<V, SPAN>(job, range) }
}

#[inline(always)]
unsafe fn spread_gradient<V: Vector>(job: &Spread, range: Range<usize>) {
    // SAFETY: the caller's.
    unsafe { spread::<V, SIDE>(job, range) }
}

/// Bᵀ x of a whole patch, or A x of a tile. No closure: what it calls would not be compiled for the instruction set.
#[inline(always)]
unsafe fn transform<V: Vector, const READ: usize>(x: [V; SPAN]) -> [V; SPAN] {
    // SAFETY: the caller's.
    unsafe { if READ == SPAN { input4(x) } else { spread4(x) } }
}

/// `READ` pixels per side and tile; those outside the map are zero.
#[inline(always)]
unsafe fn spread<V: Vector, const READ: usize>(job: &Spread, range: Range<usize>) {
    let Plane { size: [height, width], channels, origin, .. } = *job.plane;
    let whole = channels.is_multiple_of(V::LANES);
    for tile in range {
        let [n, y, x] = job.tiles.place(tile);
        let at = [y.wrapping_sub(origin[0]), x.wrapping_sub(origin[1])];
        let inside = at[0] < height && at[1] < width && at[0] + READ <= height && at[1] + READ <= width;
        // SAFETY: the caller's.
        unsafe {
            match (inside, whole) {
                (true, true) => spread_tile::<V, READ, true, true>(job, tile - job.first, (n, at)),
                (false, true) => spread_tile::<V, READ, false, true>(job, tile - job.first, (n, at)),
                (_, false) => spread_tile::<V, READ, false, false>(job, tile - job.first, (n, at)),
            }
        }
    }
}

/// The tile with this place in `out` whose patch begins at `at` of image `n`. `INSIDE` promises that the patch lies in the
/// map, `WHOLE` that there are only whole vectors of channels.
#[inline(always)]
unsafe fn spread_tile<V: Vector, const READ: usize, const INSIDE: bool, const WHOLE: bool>(
    job: &Spread,
    tile: usize,
    (n, at): (usize, [usize; 2]),
) {
    let Plane { values, size: [height, width], channels, .. } = *job.plane;
    let step = stride(job.count * channels);
    let corner = (n * height).wrapping_add(at[0]).wrapping_mul(width).wrapping_add(at[1]);
    let mut c = 0;
    while c < channels {
        let some = if WHOLE { V::LANES } else { V::LANES.min(channels - c) };
        let from = values.as_ptr().wrapping_add(corner.wrapping_mul(channels).wrapping_add(c));
        // SAFETY: only pixels inside the map are read, and `out` has room for the tile in every frequency.
        unsafe {
            let mut half = [[V::splat(0.0); SPAN]; SPAN];
            for j in 0..READ {
                let mut column = [V::splat(0.0); SPAN];
                for i in 0..READ {
                    if INSIDE || (at[0].wrapping_add(i) < height && at[1].wrapping_add(j) < width) {
                        column[i] = V::load_first(from.wrapping_add((i * width + j) * channels), some);
                    }
                }
                let column = transform::<V, READ>(column);
                for i in 0..SPAN {
                    half[i][j] = column[i];
                }
            }
            // The tile below is next but a row, too far away for the processor to see it coming.
            for i in READ..READ + SIDE {
                for j in 0..SIDE {
                    V::prefetch(from.wrapping_add((i * width + j) * channels));
                }
            }
            let to = job.out.add(tile * channels + c);
            for i in 0..SPAN {
                let row = transform::<V, READ>(half[i]);
                for j in 0..SPAN {
                    row[j].store_first(to.add((i * SPAN + j) * step), some);
                }
            }
        }
        c += V::LANES;
    }
}

/// The last transform of some tiles, into the band of the result that they cover.
pub(super) struct End<'a> {
    pub tiles: &'a Tiles,
    pub range: Range<usize>,
    pub channels: usize,
    pub bias: Option<&'a [f32]>,
    pub products: *const f32,
    pub out: &'a mut [MaybeUninit<f32>],
}

#[inline(always)]
pub(super) unsafe fn finish<V: Vector>(end: End) {
    // SAFETY: the caller's.
    unsafe {
        match end.channels.is_multiple_of(V::LANES) {
            true => finish_tiles::<V, true>(end),
            false => finish_tiles::<V, false>(end),
        }
    }
}

/// `WHOLE` promises that there are only whole vectors of channels.
#[inline(always)]
unsafe fn finish_tiles<V: Vector, const WHOLE: bool>(end: End) {
    let End { tiles, range, channels, bias, products, out } = end;
    let [height, width] = tiles.map;
    let before = tiles.pixels_before(range.start / tiles.grid[1]);
    let step = stride(range.len() * channels);
    for (t, tile) in range.enumerate() {
        let [n, y0, x0] = tiles.place(tile);
        let to = out.as_mut_ptr().cast::<f32>().wrapping_add(((n * height + y0) * width + x0 - before) * channels);
        let mut c = 0;
        while c < channels {
            let some = if WHOLE { V::LANES } else { V::LANES.min(channels - c) };
            // SAFETY: only pixels inside the map are written, and the band has all of this tile's.
            unsafe {
                let bias = match bias {
                    Some(bias) => V::load_first(bias.as_ptr().add(c), some),
                    None => V::splat(0.0),
                };
                let mut half = [[V::splat(0.0); SPAN]; SIDE];
                for j in 0..SPAN {
                    let mut column = [V::splat(0.0); SPAN];
                    for (i, value) in column.iter_mut().enumerate() {
                        let from = (i * SPAN + j) * step + t * channels + c;
                        *value = V::load_first(products.add(from), some);
                    }
                    let column = output4(column);
                    for i in 0..SIDE {
                        half[i][j] = column[i];
                    }
                }
                for (i, row) in half.into_iter().enumerate().take(height - y0) {
                    for (j, value) in output4(row).into_iter().enumerate().take(width - x0) {
                        value.add(bias).store_first(to.wrapping_add((i * width + j) * channels + c), some);
                    }
                }
            }
            c += V::LANES;
        }
    }
}

/// G g Gᵀ for a row of filters: `taps` has nine rows; frequencies are `step` values apart.
#[inline(always)]
pub(super) unsafe fn transform_filters<V: Vector>(taps: &[f32], to: *mut f32, step: usize) {
    let width = taps.len() / 9;
    let mut c = 0;
    while c < width {
        let some = V::LANES.min(width - c);
        // SAFETY: the caller's.
        unsafe {
            let mut half = [[V::splat(0.0); 3]; SPAN];
            for x in 0..3 {
                let mut column = [V::splat(0.0); 3];
                for (y, value) in column.iter_mut().enumerate() {
                    *value = V::load_first(taps.as_ptr().add((y * 3 + x) * width + c), some);
                }
                let column = filter4(column);
                for i in 0..SPAN {
                    half[i][x] = column[i];
                }
            }
            for (i, row) in half.into_iter().enumerate() {
                for (j, value) in filter4(row).into_iter().enumerate() {
                    value.store_first(to.add((i * SPAN + j) * step + c), some);
                }
            }
        }
        c += V::LANES;
    }
}

/// Gᵀ ĝ G for one output's filters, `[inputs, 9]`; frequencies are `step` values apart.
#[inline(always)]
pub(super) unsafe fn gather_filters<V: Vector>(from: &[f32], step: usize, to: &mut [f32]) {
    let inputs = to.len() / 9;
    let mut c = 0;
    while c < inputs {
        let some = V::LANES.min(inputs - c);
        let mut taps = [[0.0; 16]; 9];
        // SAFETY: the caller's; no vector has more than 16 values.
        unsafe {
            let mut half = [[V::splat(0.0); SPAN]; 3];
            for j in 0..SPAN {
                let mut column = [V::splat(0.0); SPAN];
                for (i, value) in column.iter_mut().enumerate() {
                    *value = V::load_first(from.as_ptr().add((i * SPAN + j) * step + c), some);
                }
                let column = gather4(column);
                for y in 0..3 {
                    half[y][j] = column[y];
                }
            }
            for (y, row) in half.into_iter().enumerate() {
                for (x, value) in gather4(row).into_iter().enumerate() {
                    value.store_first(taps[y * 3 + x].as_mut_ptr(), some);
                }
            }
        }
        for (i, to) in to[c * 9..].chunks_exact_mut(9).take(some).enumerate() {
            for (to, tap) in to.iter_mut().zip(&taps) {
                *to = tap[i];
            }
        }
        c += V::LANES;
    }
}
