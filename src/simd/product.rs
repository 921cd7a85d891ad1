//! Matrix product of gathered rows with packed panels: every convolution and linear layer ends here.
//!
//! Rows of A are named by pointers, one per row and kernel tap, so a convolution reads its input where it lies and
//! nothing is copied (the indirect convolution of Dukhan 2019, arXiv:1907.02129). B is packed once, into panels as wide
//! as the register tile. The tile keeps its accumulators in registers over a block of the inner dimension that leaves
//! the panel in the first-level cache; in between, partial sums rest in the output.

#[cfg(doc)]
use super::CHANNEL_BLOCK;
use super::epilogue::{Epilogue, clamp, smooth};
use super::{Isa, Vector, padded};
use crate::graph::Activation;

/// Values of a panel that one pass goes over: two thirds of a first-level cache of 48 KB; of 32 KB, as from Cortex-A57
/// to A75, little more than a third, for the rows of A take as much again.
const PANEL_BLOCK: usize = if cfg!(target_arch = "aarch64") { 3 << 10 } else { 8 << 10 };
/// The tallest register tile of any instruction set.
pub(crate) const MAX_ROWS: usize = 12;

/// The register tiles of an instruction set: panels of one or more *units* of columns, each with as many rows as the
/// registers hold accumulators for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TileShape {
    /// Columns of a unit.
    unit: usize,
    /// Most rows of a panel of 1, 2, … units; one entry, or three.
    rows: &'static [usize],
}

/// Some columns of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Panel {
    /// First column.
    pub first: usize,
    /// Columns, a multiple of [`CHANNEL_BLOCK`].
    pub width: usize,
    /// Columns in the packed weights: whole units.
    pub packed: usize,
    /// Most rows of its register tile.
    pub rows: usize,
}

impl TileShape {
    /// The tiles of `isa`.
    pub const fn of(isa: Isa) -> Self {
        match isa {
            Isa::Portable => Self { unit: 8, rows: &[4] },
            Isa::Neon | Isa::NeonDot => Self { unit: 8, rows: &[8] },
            Isa::Avx2 | Isa::Avx2Vnni => Self { unit: 8, rows: &[12, 6, 4] },
            Isa::Avx512 | Isa::Avx512Vnni => Self { unit: 16, rows: &[12, 12, 8] },
        }
    }

    /// Columns of a unit.
    pub const fn unit(self) -> usize {
        self.unit
    }

    /// Rows of the usual tile.
    pub fn rows(self) -> usize {
        self.rows[self.rows.len() / 2]
    }

    /// The panels of a matrix with `columns` columns, a multiple of [`CHANNEL_BLOCK`]. Pairs of units, the last panel
    /// three if their number is odd: a tile of one unit is bound by loads.
    pub fn panels(self, columns: usize) -> impl ExactSizeIterator<Item = Panel> {
        let units = columns.div_ceil(self.unit);
        let usual = self.rows.len() / 2 + 1;
        let count = (units / usual).max(1).min(units);
        (0..count).map(move |i| {
            let first = i * usual * self.unit;
            let taken = if i + 1 == count { units - i * usual } else { usual };
            let packed = taken * self.unit;
            Panel { first, width: packed.min(columns - first), packed, rows: self.rows[taken - 1] }
        })
    }
}

/// The widest panel's worth of zero bias.
pub(crate) const ZEROS: [f32; 48] = [0.0; 48];

/// Packs a matrix `[inner][columns]`, given by `value(k, column)`, into the panels of `shape`; what panels have beyond
/// `columns` is zero.
pub(crate) fn pack(shape: TileShape, inner: usize, columns: usize, value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let mut packed = Vec::with_capacity(inner * packed_columns(shape, columns));
    for panel in shape.panels(padded(columns)) {
        for k in 0..inner {
            packed
                .extend((panel.first..panel.first + panel.packed).map(|c| if c < columns { value(k, c) } else { 0.0 }));
        }
    }
    packed
}

/// Columns of a packed matrix with `columns` columns.
pub(crate) fn packed_columns(shape: TileShape, columns: usize) -> usize {
    padded(columns).next_multiple_of(shape.unit)
}

/// Rows of A × one panel of B.
///
/// Rows are cut into blocks of `panel.rows` (the last ones of one row less, see [`split_rows`]); `table` holds for each block
/// `taps` × rows pointers to `inner` values each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PanelProduct {
    pub table: *const *const f32,
    pub taps: usize,
    pub inner: usize,
    /// Packed panel: `taps · inner` rows of `panel.packed` values.
    pub weights: *const f32,
    pub panel: Panel,
    /// `panel.width` values.
    pub bias: *const f32,
    /// First row and column of the result, and values from row to row.
    pub out: *mut f32,
    pub out_stride: usize,
    /// Added before the activation; null if there is none.
    pub residual: *const f32,
    pub residual_stride: usize,
    pub epilogue: Epilogue,
}

/// Cuts `count` rows into blocks of at most `rows` whose sizes differ by at most one: `(rows, blocks)` of the larger and
/// of the smaller ones.
pub(crate) const fn split_rows(count: usize, rows: usize) -> [(usize, usize); 2] {
    let blocks = count.div_ceil(rows);
    if blocks == 0 {
        return [(0, 0), (0, 0)];
    }
    let small = count / blocks;
    let larger = count - small * blocks;
    [(small + 1, larger), (small, blocks - larger)]
}

/// A stretch of the inner dimension: taps `tap..tap + taps`, of each the values `from..from + len`.
#[derive(Clone, Copy)]
struct Stretch {
    tap: usize,
    taps: usize,
    from: usize,
    len: usize,
    /// Whether sums start from the bias, and whether they end here.
    first: bool,
    last: bool,
}

/// Computes `count` rows.
///
/// # Safety
/// All pointers of `p` are valid for what [`PanelProduct`] says, the results overlap nothing that is read, and the
/// processor has `isa`.
pub(crate) unsafe fn product(isa: Isa, p: &PanelProduct, count: usize) {
    let [large, small] = split_rows(count, p.panel.rows);
    let block = PANEL_BLOCK / p.panel.packed;
    let (per_pass, pieces) = if p.inner > block { (1, p.inner.div_ceil(block)) } else { (block / p.inner, 1) };
    let piece = p.inner.div_ceil(pieces);
    let mut tap = 0;
    while tap < p.taps {
        let taps = per_pass.min(p.taps - tap);
        let mut from = 0;
        while from < p.inner {
            let len = piece.min(p.inner - from);
            let first = tap == 0 && from == 0;
            let last = tap + taps == p.taps && from + len == p.inner;
            let stretch = Stretch { tap, taps, from, len, first, last };
            // SAFETY: the caller's; the second call's blocks come after the first call's.
            unsafe {
                run(isa, p, stretch, large, (0, 0));
                run(isa, p, stretch, small, (large.0 * large.1, large.0 * large.1 * p.taps));
            }
            from += len;
        }
        tap += taps;
    }
}

/// `blocks` tiles of `rows` rows, from row and table entry `start`.
unsafe fn run(isa: Isa, p: &PanelProduct, s: Stretch, (rows, blocks): (usize, usize), start: (usize, usize)) {
    if rows == 0 || blocks == 0 {
        return;
    }
    // SAFETY: the caller's: the processor has `isa`.
    unsafe {
        match isa {
            Isa::Portable => portable(p, s, (rows, blocks), start),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDot => neon(p, s, (rows, blocks), start),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx2Vnni => match p.panel.packed {
                8 => avx2_1(p, s, (rows, blocks), start),
                16 => avx2_2(p, s, (rows, blocks), start),
                _ => avx2_3(p, s, (rows, blocks), start),
            },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni => match p.panel.packed {
                16 => avx512_1(p, s, (rows, blocks), start),
                32 => avx512_2(p, s, (rows, blocks), start),
                _ => avx512_3(p, s, (rows, blocks), start),
            },
            #[allow(unreachable_patterns, reason = "instruction sets of other targets")]
            _ => portable(p, s, (rows, blocks), start),
        }
    }
}

/// One function per instruction set and panel width, with a register tile for each number of rows.
macro_rules! tiles {
    ($(#[$meta:meta])* $name:ident, $vector:ty, $vectors:literal, [$($rows:literal)+]) => {
        $(#[$meta])*
        unsafe fn $name(p: &PanelProduct, s: Stretch, (rows, blocks): (usize, usize), start: (usize, usize)) {
            // SAFETY: the caller's.
            unsafe {
                match rows {
                    $($rows => blocks_of::<$vector, $rows, $vectors>(p, s, blocks, start),)+
                    _ => unreachable!("a tile of {rows} rows"),
                }
            }
        }
    };
}

tiles!(portable, super::Portable, 1, [1 2 3 4]);
#[cfg(target_arch = "aarch64")]
tiles!(#[target_feature(enable = "neon")] neon, super::Neon, 2, [1 2 3 4 5 6 7 8]);
#[cfg(target_arch = "x86_64")]
tiles!(#[target_feature(enable = "avx2,fma")] avx2_1, super::Avx2, 1, [1 2 3 4 5 6 7 8 9 10 11 12]);
#[cfg(target_arch = "x86_64")]
tiles!(#[target_feature(enable = "avx2,fma")] avx2_2, super::Avx2, 2, [1 2 3 4 5 6]);
#[cfg(target_arch = "x86_64")]
tiles!(#[target_feature(enable = "avx2,fma")] avx2_3, super::Avx2, 3, [1 2 3 4]);
#[cfg(target_arch = "x86_64")]
tiles!(#[target_feature(enable = "avx512f,avx2,fma")] avx512_1, super::Avx512, 1,
    [1 2 3 4 5 6 7 8 9 10 11 12]);
#[cfg(target_arch = "x86_64")]
tiles!(#[target_feature(enable = "avx512f,avx2,fma")] avx512_2, super::Avx512, 2,
    [1 2 3 4 5 6 7 8 9 10 11 12]);
#[cfg(target_arch = "x86_64")]
tiles!(#[target_feature(enable = "avx512f,avx2,fma")] avx512_3, super::Avx512, 3, [1 2 3 4 5 6 7 8]);

#[inline(always)]
unsafe fn blocks_of<V: Vector, const R: usize, const W: usize>(
    p: &PanelProduct,
    s: Stretch,
    blocks: usize,
    (row, entry): (usize, usize),
) {
    for block in 0..blocks {
        // SAFETY: the caller's: the table and the result cover these rows.
        unsafe {
            let table = p.table.add(entry + block * R * p.taps);
            tile::<V, R, W>(p, s, table, row + block * R);
        }
    }
}

#[inline(always)]
unsafe fn tile<V: Vector, const R: usize, const W: usize>(
    p: &PanelProduct,
    s: Stretch,
    table: *const *const f32,
    row: usize,
) {
    // Values of the last vector of a row; the vectors before it are full.
    let last = p.panel.width - (W - 1) * V::LANES;
    // SAFETY: the caller's: `table`, the panel, bias, residual and result are as long as `PanelProduct` says.
    unsafe {
        let load = |from: *const f32, w: usize| {
            let from = from.add(w * V::LANES);
            if w + 1 < W { V::load(from) } else { V::load_first(from, last) }
        };
        let out = p.out.add(row * p.out_stride);
        let mut acc = [[V::splat(0.0); W]; R];
        for r in 0..R {
            for w in 0..W {
                acc[r][w] = load(if s.first { p.bias } else { out.add(r * p.out_stride).cast_const() }, w);
            }
        }
        for tap in s.tap..s.tap + s.taps {
            let mut rows = [std::ptr::null::<f32>(); R];
            for r in 0..R {
                rows[r] = (*table.add(tap * R + r)).add(s.from);
            }
            let panel = p.weights.add((tap * p.inner + s.from) * W * V::LANES);
            V::multiply(&mut acc, rows, panel, s.len);
        }
        if s.last {
            if !p.residual.is_null() {
                for r in 0..R {
                    for w in 0..W {
                        acc[r][w] = acc[r][w].add(load(p.residual.add((row + r) * p.residual_stride), w));
                    }
                }
            }
            if p.epilogue.clamps() {
                let (low, high) = (V::splat(p.epilogue.low), V::splat(p.epilogue.high));
                for r in 0..R {
                    for w in 0..W {
                        acc[r][w] = clamp(acc[r][w], low, high);
                    }
                }
            }
        }
        for r in 0..R {
            for w in 0..W {
                let to = out.add(r * p.out_stride + w * V::LANES);
                if w + 1 < W { acc[r][w].store(to) } else { acc[r][w].store_first(to, last) }
            }
        }
        if let (true, Some(function)) = (s.last, p.epilogue.smooth) {
            for r in 0..R {
                smooth_row::<V>(out.add(r * p.out_stride), p.panel.width, function);
            }
        }
    }
}

/// Applies a smooth activation to `width` values.
#[inline(always)]
unsafe fn smooth_row<V: Vector>(row: *mut f32, width: usize, function: Activation) {
    let mut c = 0;
    while c < width {
        let count = V::LANES.min(width - c);
        // SAFETY: the caller's.
        unsafe { smooth(V::load_first(row.add(c), count), function).store_first(row.add(c), count) };
        c += V::LANES;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_cover_every_column_once() {
        for isa in [Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx512] {
            let shape = TileShape::of(isa);
            for columns in (8..200).step_by(8) {
                let mut next = 0;
                for panel in shape.panels(columns) {
                    assert_eq!(panel.first, next, "{isa} {columns}");
                    assert!(panel.width <= panel.packed && panel.packed - panel.width < shape.unit);
                    assert!((1..=MAX_ROWS).contains(&panel.rows));
                    next += panel.width;
                }
                assert_eq!(next, columns, "{isa}");
                let packed: usize = shape.panels(columns).map(|panel| panel.packed).sum();
                assert_eq!(packed, packed_columns(shape, columns), "{isa}");
            }
        }
    }
}
