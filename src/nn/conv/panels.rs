//! Dense convolution in f32 as a product of rows, read where they lie, with a weight packed for the register tile.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::window::{Channels, Window};
use super::{Built, Geometry};
use crate::nn::host::{build_rows, with_scratch};
use crate::nn::simd::isa;
use crate::nn::threads::{band, map};
use crate::simd::epilogue::Epilogue;
use crate::simd::product::{Panel, PanelProduct, TileShape, product, split_rows};
use crate::simd::{CHANNEL_BLOCK, padded};

/// Values that rows of one pass read: half of a second-level cache.
const READ_PER_PASS: usize = 64 << 10;
/// Fewest rows of one pass: below, reading the weight again for each costs more than the rows do.
const LEAST_ROWS: usize = 96;
/// Fewer channels are gathered first: runs of so few values cost more to find than to multiply.
const LEAST_INNER: usize = 16;

/// y = rows of x · weightᵀ + bias.
pub(super) fn forward(
    g: &Geometry,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    for_norm: bool,
) -> Option<Built<f32>> {
    if g.conv.groups != 1 || !g.out_channels.is_multiple_of(CHANNEL_BLOCK) {
        return None;
    }
    let (window, inner, taps) = (Window::forward(g), g.in_channels, g.taps());
    let packed = Packed::new([taps, inner, g.out_channels], |tap, k, column| weight[(column * inner + k) * taps + tap]);
    let rows = Rows { window: &window, source: x, channels: inner };
    Some(packed.times(&rows, g.out_rows(), bias, for_norm))
}

/// dx = rows of dy · weight, class by class of the stride.
pub(super) fn input_gradient(g: &Geometry, weight: &[f32], dy: &[f32]) -> Option<Vec<f32>> {
    if g.conv.groups != 1 || !g.in_channels.is_multiple_of(CHANNEL_BLOCK) {
        return None;
    }
    let (columns, taps) = (g.in_channels, g.taps());
    let classes: Vec<([usize; 2], Window, Packed)> = Window::classes(g)
        .map(|(class, window)| {
            let value =
                |tap: usize, k: usize, column: usize| weight[(k * columns + column) * taps + window.taps[tap].index];
            let packed = Packed::new([window.taps.len(), g.out_channels, columns], value);
            (class, window, packed)
        })
        .collect();
    let positions = g.input[0] * g.input[1];
    if let ([(_, window, packed)], [1, 1]) = (classes.as_slice(), g.conv.stride) {
        let rows = Rows { window, source: dy, channels: g.out_channels };
        return Some(packed.times(&rows, g.batch * positions, None, false).values);
    }
    let bias = vec![0.0; columns];
    let of_image = |image: usize, dx: &mut [f32]| {
        for (class, window, packed) in &classes {
            let (rows, count) = (Rows { window, source: dy, channels: g.out_channels }, window.rows());
            with_scratch(count * columns, |product| {
                packed.pass(&rows, image * count..(image + 1) * count, (&bias, product.as_mut_ptr().cast()));
                // SAFETY: the pass wrote every row, and `MaybeUninit<f32>` has the layout of `f32`.
                let product = unsafe { &*(std::ptr::from_ref(product) as *const [f32]) };
                window.scatter((g, *class), 0, product, dx);
            });
        }
    };
    Some(build_rows(g.batch * positions * columns, positions * columns, 1, of_image))
}

/// Where a product's rows are: what `window` reads of `source`.
pub(super) struct Rows<'a> {
    pub window: &'a Window,
    pub source: &'a [f32],
    pub channels: usize,
}

impl Rows<'_> {
    /// Whether rows are gathered before they are multiplied.
    fn are_gathered(&self) -> bool {
        self.channels < LEAST_INNER && !self.window.is_identity()
    }

    /// Pointers to what each tap of `rows` reads, in blocks of at most `block` rows.
    fn point(&self, rows: Range<usize>, block: usize, zeros: &[f32], table: &mut Vec<*const f32>) {
        if self.window.is_identity() {
            let values = &self.source[rows.start * self.channels..rows.end * self.channels];
            table.clear();
            table.extend(values.chunks_exact(self.channels).map(<[f32]>::as_ptr));
            return;
        }
        let taps = self.window.taps.len();
        table.resize(rows.len() * taps, std::ptr::null());
        let (mut first, mut rest) = (rows.start, &mut table[..]);
        for (size, blocks) in split_rows(rows.len(), block) {
            for _ in 0..blocks {
                let (entries, behind) = rest.split_at_mut(size * taps);
                rest = behind;
                for r in 0..size {
                    self.point_row(first + r, zeros, entries.iter_mut().skip(r).step_by(size));
                }
                first += size;
            }
        }
    }

    /// Pointers to what each tap of a row reads; zeros outside the map.
    fn point_row<'t>(&self, row: usize, zeros: &[f32], entries: impl Iterator<Item = &'t mut *const f32>) {
        let (window, [height, width]) = (self.window, self.window.source);
        let (image, position) = (row / window.rows(), row % window.rows());
        let origin = [position / window.target[1], position % window.target[1]];
        for (tap, entry) in window.taps.iter().zip(entries) {
            let [y, x] = [0, 1].map(|axis| (origin[axis] * window.stride[axis]) as isize + tap.offset[axis]);
            let inside = y >= 0 && x >= 0 && (y as usize) < height && (x as usize) < width;
            *entry = if inside {
                self.source[((image * height + y as usize) * width + x as usize) * self.channels..].as_ptr()
            } else {
                zeros.as_ptr()
            };
        }
    }
}

/// A matrix of `taps · inner` rows in panels.
pub(super) struct Packed {
    taps: usize,
    inner: usize,
    columns: usize,
    panels: Vec<(Panel, Vec<f32>)>,
}

impl Packed {
    pub fn new([taps, inner, columns]: [usize; 3], value: impl Fn(usize, usize, usize) -> f32 + Sync) -> Self {
        let panels: Vec<Panel> = TileShape::of(isa()).panels(padded(columns)).collect();
        let pack = |panel: Panel| {
            let mut packed = vec![0.0; taps * inner * panel.packed];
            for (i, row) in packed.chunks_exact_mut(panel.packed).enumerate() {
                let (tap, k) = (i / inner, i % inner);
                for (column, to) in row[..panel.width].iter_mut().enumerate() {
                    *to = value(tap, k, panel.first + column);
                }
            }
            (panel, packed)
        };
        Self { taps, inner, columns, panels: map(panels, pack) }
    }

    /// `count` rows times this, plus `bias`.
    fn times(&self, rows: &Rows, count: usize, bias: Option<&[f32]>, for_norm: bool) -> Built<f32> {
        let bias = bias.map_or_else(|| vec![0.0; self.columns], <[f32]>::to_vec);
        let read = (self.taps * self.inner).min(4 * self.inner);
        // What is looked at again has to be in the cache until then.
        let most = (READ_PER_PASS / if for_norm { read.max(self.columns) } else { read }).max(LEAST_ROWS);
        let height = band(count).min(most).max(1);
        let fill = |band: usize, out: &mut [MaybeUninit<f32>]| {
            let first = band * height;
            self.pass(rows, first..first + out.len() / self.columns, (&bias, out.as_mut_ptr().cast()));
        };
        // SAFETY: the panels cover all columns, and the product writes every row of a panel.
        unsafe { Built::bands([count * self.columns, height * self.columns, self.columns], for_norm, fill) }
    }

    /// Rows `range` times this, plus `bias`, to `out`, which has room for them; all of it is written.
    pub fn pass(&self, rows: &Rows, range: Range<usize>, (bias, out): (&[f32], *mut f32)) {
        let (count, width) = (range.len(), self.taps * self.inner);
        let zeros = vec![0.0; self.inner];
        let mut table = Vec::with_capacity(count * self.taps);
        let mut gathered = Vec::new();
        let (taps, inner) = if rows.are_gathered() { (1, width) } else { (self.taps, self.inner) };
        if rows.are_gathered() {
            gathered.resize(count * width, 0.0);
            let all = Channels { total: rows.channels, first: 0, count: rows.channels };
            rows.window.gather(rows.source, all, range.clone(), (&mut gathered, width));
            table.extend(gathered.chunks_exact(width).map(<[f32]>::as_ptr));
        }
        let mut table_for = 0;
        for (panel, weights) in &self.panels {
            if !rows.are_gathered() && table_for != panel.rows {
                rows.point(range.clone(), panel.rows, &zeros, &mut table);
                table_for = panel.rows;
            }
            let product_of = PanelProduct {
                table: table.as_ptr(),
                taps,
                inner,
                weights: weights.as_ptr(),
                panel: *panel,
                bias: bias[panel.first..].as_ptr(),
                // SAFETY: the panel's first column lies in the row.
                out: unsafe { out.add(panel.first) },
                out_stride: self.columns,
                residual: std::ptr::null(),
                residual_stride: 0,
                epilogue: Epilogue::new(None),
            };
            // SAFETY: the table names `count` rows of `taps` runs of `inner` values inside the source or of zeros; panel,
            // bias and `out` are as wide as the panel says; the processor has the instruction set that was found on it.
            unsafe { product(isa(), &product_of, count) };
        }
    }
}
