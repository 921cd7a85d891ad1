//! Matrix product of gathered rows with packed panels: every convolution and linear layer ends here.
//!
//! Rows of A are named by pointers, one per row and kernel tap, so a convolution reads its input where it lies and
//! nothing is copied (the indirect convolution of Dukhan 2019, arXiv:1907.02129). B is packed once, into panels as wide
//! as the register tile. The tile keeps its accumulators in registers over a block of the inner dimension that leaves
//! the panel in the first-level cache; in between, partial sums rest in the output.

use super::epilogue::{Epilogue, clamp, smooth};
use crate::engine::simd::{CHANNEL_BLOCK, Isa, Vector};

/// Inner products per pass over a panel: 16 columns of 384 values are 24 KB.
const INNER_BLOCK: usize = 384;
/// How far ahead of its use a panel is asked for, in values: weights come from memory once per request.
const AHEAD: usize = 512;
/// The tallest register tile of any instruction set.
pub(in crate::engine) const MAX_ROWS: usize = 12;

/// The register tile of an instruction set: panels of `columns` with up to `rows` rows, and panels of
/// [`CHANNEL_BLOCK`] columns with up to `tail_rows` rows for what is left over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) struct TileShape {
    pub columns: usize,
    pub rows: usize,
    pub tail_rows: usize,
}

impl TileShape {
    /// The tile of `isa`: as many accumulators as its registers hold.
    pub const fn of(isa: Isa) -> Self {
        match isa {
            Isa::Portable => Self { columns: 8, rows: 4, tail_rows: 4 },
            Isa::Neon | Isa::NeonDot => Self { columns: 8, rows: 8, tail_rows: 8 },
            Isa::Avx2 | Isa::Avx2Vnni => Self { columns: 16, rows: 6, tail_rows: 12 },
            Isa::Avx512 | Isa::Avx512Vnni => Self { columns: 32, rows: 12, tail_rows: 12 },
        }
    }

    /// First column and width of each panel of a matrix with `columns` columns, a multiple of [`CHANNEL_BLOCK`].
    pub fn panels(self, columns: usize) -> impl Iterator<Item = (usize, usize)> {
        let wide = columns / self.columns;
        let tail = (columns - wide * self.columns) / CHANNEL_BLOCK;
        let wide_panels = (0..wide).map(move |i| (i * self.columns, self.columns));
        wide_panels.chain((0..tail).map(move |i| (wide * self.columns + i * CHANNEL_BLOCK, CHANNEL_BLOCK)))
    }

    /// Rows of the tile for a panel of `width` columns.
    pub const fn rows_for(self, width: usize) -> usize {
        if width == self.columns { self.rows } else { self.tail_rows }
    }
}

/// Packs a matrix `[inner][columns]`, given by `value(k, column)`, into the panels of `shape`; columns at and beyond
/// `columns` are zero up to the next multiple of [`CHANNEL_BLOCK`].
pub(in crate::engine) fn pack(
    shape: TileShape,
    inner: usize,
    columns: usize,
    value: impl Fn(usize, usize) -> f32,
) -> Vec<f32> {
    let mut packed = Vec::with_capacity(inner * crate::engine::simd::padded(columns));
    for (first, width) in shape.panels(crate::engine::simd::padded(columns)) {
        for k in 0..inner {
            packed.extend((first..first + width).map(|c| if c < columns { value(k, c) } else { 0.0 }));
        }
    }
    packed
}

/// Rows of A × one panel of B.
///
/// Rows are cut into blocks of `rows` (the last ones of one row less, see [`split_rows`]); `table` holds for each block
/// `taps` × rows pointers to `inner` values each.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine) struct PanelProduct {
    pub table: *const *const f32,
    pub taps: usize,
    pub inner: usize,
    /// Packed panel: `taps · inner` rows of `width` values.
    pub weights: *const f32,
    pub width: usize,
    /// `width` values.
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
pub(in crate::engine) const fn split_rows(count: usize, rows: usize) -> [(usize, usize); 2] {
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
pub(in crate::engine) unsafe fn product(isa: Isa, p: &PanelProduct, count: usize) {
    let shape = TileShape::of(isa);
    let [large, small] = split_rows(count, shape.rows_for(p.width));
    let (per_pass, pieces) =
        if p.inner > INNER_BLOCK { (1, p.inner.div_ceil(INNER_BLOCK)) } else { (INNER_BLOCK / p.inner, 1) };
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
            Isa::Avx2 | Isa::Avx2Vnni if p.width == 16 => avx2_wide(p, s, (rows, blocks), start),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni if p.width == 32 => avx512_wide(p, s, (rows, blocks), start),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx2Vnni | Isa::Avx512 | Isa::Avx512Vnni => avx2_narrow(p, s, (rows, blocks), start),
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

tiles!(portable, crate::engine::simd::Portable, 1, [1 2 3 4]);
#[cfg(target_arch = "aarch64")]
tiles!(#[target_feature(enable = "neon")] neon, crate::engine::simd::Neon, 2, [1 2 3 4 5 6 7 8]);
#[cfg(target_arch = "x86_64")]
tiles!(#[target_feature(enable = "avx2,fma")] avx2_wide, crate::engine::simd::Avx2, 2, [1 2 3 4 5 6]);
#[cfg(target_arch = "x86_64")]
tiles!(#[target_feature(enable = "avx2,fma")] avx2_narrow, crate::engine::simd::Avx2, 1, [1 2 3 4 5 6 7 8 9 10 11 12]);
#[cfg(target_arch = "x86_64")]
tiles!(#[target_feature(enable = "avx512f,avx2,fma")] avx512_wide, crate::engine::simd::Avx512, 2, [1 2 3 4 5 6 7 8 9 10 11 12]);

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
    // SAFETY: the caller's: `table`, the panel, bias, residual and result are as long as `PanelProduct` says.
    unsafe {
        let out = p.out.add(row * p.out_stride);
        let mut acc = [[V::splat(0.0); W]; R];
        for r in 0..R {
            for w in 0..W {
                let start = if s.first { p.bias } else { out.add(r * p.out_stride).cast_const() };
                acc[r][w] = V::load(start.add(w * V::LANES));
            }
        }
        for tap in s.tap..s.tap + s.taps {
            let mut rows = [std::ptr::null::<f32>(); R];
            for r in 0..R {
                rows[r] = (*table.add(tap * R + r)).add(s.from);
            }
            let mut panel = p.weights.add((tap * p.inner + s.from) * W * V::LANES);
            for k in 0..s.len {
                V::prefetch(panel.wrapping_add(AHEAD));
                let mut b = [V::splat(0.0); W];
                for w in 0..W {
                    b[w] = V::load(panel.add(w * V::LANES));
                }
                for r in 0..R {
                    let a = V::splat(*rows[r].add(k));
                    for w in 0..W {
                        acc[r][w] = acc[r][w].fma(a, b[w]);
                    }
                }
                panel = panel.add(W * V::LANES);
            }
        }
        if s.last {
            let (low, high) = (V::splat(p.epilogue.low), V::splat(p.epilogue.high));
            for r in 0..R {
                for w in 0..W {
                    let mut x = acc[r][w];
                    if !p.residual.is_null() {
                        x = x.add(V::load(p.residual.add((row + r) * p.residual_stride + w * V::LANES)));
                    }
                    acc[r][w] = clamp(x, low, high);
                }
            }
        }
        for r in 0..R {
            for w in 0..W {
                acc[r][w].store(out.add(r * p.out_stride + w * V::LANES));
            }
        }
        if let (true, Some(function)) = (s.last, p.epilogue.smooth) {
            for r in 0..R {
                for w in 0..W {
                    let x = out.add(r * p.out_stride + w * V::LANES);
                    smooth(V::load(x), function).store(x);
                }
            }
        }
    }
}
