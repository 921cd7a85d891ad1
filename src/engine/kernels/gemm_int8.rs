//! Matrix product of 8-bit rows with packed 8-bit panels, and what turns its sums into values.
//!
//! Sums are exact in 32 bits, so every instruction set gives the same ones; see [`Dot`] for how each multiplies.

use super::epilogue::{Epilogue, clamp, smooth};
use super::gemm::{Panel, TileShape, packed_columns, split_rows};
use crate::engine::element::{Element, Quant};
use crate::engine::simd::{Dot, DotLayout, Isa, Vector, padded};

/// Weights as integers: w ≈ `scale[column] · q`.
pub(in crate::engine) struct IntWeights {
    /// Panels of [`TileShape`], each with `groups` rows of groups.
    pub packed: Vec<u8>,
    /// Real size of one unit of weight, per packed column.
    pub scale: Vec<f32>,
    /// Sum of the quantised weights, per packed column.
    pub sums: Vec<i32>,
    /// Groups of the inner dimension.
    pub groups: usize,
}

impl IntWeights {
    /// Quantises and packs a matrix `[inner][columns]`, symmetrically, with one scale per column.
    pub fn new(isa: Isa, inner: usize, columns: usize, value: impl Fn(usize, usize) -> f32) -> Self {
        let (layout, shape) = (DotLayout::of(isa), tile_shape(isa));
        let groups = inner.div_ceil(layout.group());
        let all = packed_columns(shape, columns);
        let (mut scale, mut sums) = (vec![1.0; all], vec![0; all]);
        let mut quantized = vec![0i8; columns * inner];
        let mut column = vec![0f32; inner];
        for (c, quantized) in quantized.chunks_exact_mut(inner).enumerate() {
            column.iter_mut().enumerate().for_each(|(k, to)| *to = value(k, c));
            let unit = column.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
            if unit >= f32::MIN_POSITIVE {
                scale[c] = unit;
            }
            quantized.iter_mut().zip(&column).for_each(|(q, x)| *q = (x / scale[c]).round_ties_even() as i8);
            sums[c] = quantized.iter().map(|&q| i32::from(q)).sum();
        }
        let quantized = |k: usize, c: usize| if k < inner && c < columns { quantized[c * inner + k] } else { 0 };
        let mut packed = vec![0u8; groups * all * 4];
        let lanes = lanes_of(isa);
        for Panel { first, packed: width, .. } in shape.panels(padded(columns)) {
            let panel = &mut packed[first * groups * 4..(first + width) * groups * 4];
            for (row, g) in panel.chunks_exact_mut(width * 4).zip(0..) {
                for column in 0..width {
                    let vector = &mut row[column / lanes * lanes * 4..][..lanes * 4];
                    for i in 0..layout.group() {
                        let q = quantized(g * layout.group() + i, first + column);
                        let at = layout.position(lanes, column % lanes, i) * layout.bytes();
                        match layout.bytes() {
                            1 => vector[at] = q as u8,
                            _ => vector[at..at + 2].copy_from_slice(&i16::from(q).to_ne_bytes()),
                        }
                    }
                }
            }
        }
        Self { packed, scale, sums, groups }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.packed.len() + (self.scale.len() + self.sums.len()) * 4
    }
}

/// Columns per vector of B.
const fn lanes_of(isa: Isa) -> usize {
    match isa {
        Isa::Portable | Isa::Avx2 | Isa::Avx512 | Isa::Avx2Vnni => 8,
        Isa::Avx512Vnni => 16,
        Isa::Neon | Isa::NeonDot => 4,
    }
}

/// The register tile of integer products: AVX-512 without VNNI has none of its own.
pub(in crate::engine) const fn tile_shape(isa: Isa) -> TileShape {
    TileShape::of(match isa {
        Isa::Avx512 => Isa::Avx2,
        other => other,
    })
}

/// Where results go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::engine) enum Target {
    /// 8-bit values.
    Quantized(Quant),
    /// f32 values.
    Real,
}

/// Rows of A × one panel of B.
#[derive(Clone, Copy)]
pub(in crate::engine) struct IntProduct<'a> {
    /// Input, in the layout of the instruction set.
    pub input: *const u8,
    /// Where each row's runs count from, in bytes from `input`.
    pub places: &'a [usize],
    /// Bytes from there to each run.
    pub taps: &'a [usize],
    /// Groups per run.
    pub groups: usize,
    pub weights: *const u8,
    pub panel: Panel,
    /// What sums start from, `panel.packed` values.
    pub start: *const i32,
    /// Real size of one unit of a sum, and what is added, `panel.packed` values each.
    pub scale: *const f32,
    pub bias: *const f32,
    /// First row and column of the result, and values from row to row.
    pub out: *mut u8,
    pub out_stride: usize,
    pub target: Target,
    /// Added before the activation; null if there is none.
    pub residual: *const u8,
    pub residual_stride: usize,
    pub residual_quant: Quant,
    pub epilogue: Epilogue,
}

/// Computes the rows of `places`.
///
/// # Safety
/// All pointers of `p` are valid for what [`IntProduct`] says, the results overlap nothing that is read, and the
/// processor has `isa`.
pub(in crate::engine) unsafe fn product(isa: Isa, p: &IntProduct) {
    let mut first = 0;
    for (rows, blocks) in split_rows(p.places.len(), p.panel.rows) {
        if rows == 0 || blocks == 0 {
            continue;
        }
        // SAFETY: the caller's.
        unsafe {
            match isa {
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => neon(p, (rows, blocks), first),
                #[cfg(target_arch = "aarch64")]
                Isa::NeonDot => neon_dot(p, (rows, blocks), first),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 | Isa::Avx512 => match p.panel.packed {
                    8 => avx2_1(p, (rows, blocks), first),
                    16 => avx2_2(p, (rows, blocks), first),
                    _ => avx2_3(p, (rows, blocks), first),
                },
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2Vnni => match p.panel.packed {
                    8 => vnni256_1(p, (rows, blocks), first),
                    16 => vnni256_2(p, (rows, blocks), first),
                    _ => vnni256_3(p, (rows, blocks), first),
                },
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Vnni => match p.panel.packed {
                    16 => vnni512_1(p, (rows, blocks), first),
                    32 => vnni512_2(p, (rows, blocks), first),
                    _ => vnni512_3(p, (rows, blocks), first),
                },
                #[allow(unreachable_patterns, reason = "instruction sets of other targets")]
                _ => portable(p, (rows, blocks), first),
            }
        }
        first += rows * blocks;
    }
}

/// One function per instruction set and panel width, with a register tile for each number of rows.
macro_rules! tiles {
    ($(#[$meta:meta])* $name:ident, $dot:ident, $vectors:literal, [$($rows:literal)+]) => {
        $(#[$meta])*
        unsafe fn $name(p: &IntProduct, (rows, blocks): (usize, usize), first: usize) {
            for block in 0..blocks {
                // SAFETY: the caller's.
                unsafe {
                    match rows {
                        $($rows => tile::<crate::engine::simd::$dot, $rows, $vectors>(p, first + block * rows),)+
                        _ => unreachable!("a tile of {rows} rows"),
                    }
                }
            }
        }
    };
}

tiles!(portable, PortableDot, 1, [1 2 3 4]);
#[cfg(target_arch = "aarch64")]
tiles!(#[target_feature(enable = "neon")] neon, NeonLong, 2, [1 2 3 4 5 6 7 8]);
#[cfg(target_arch = "aarch64")]
tiles!(#[target_feature(enable = "neon,dotprod")] neon_dot, NeonDot, 2, [1 2 3 4 5 6 7 8]);
#[cfg(target_arch = "x86_64")]
tiles!(#[target_feature(enable = "avx2,fma")] avx2_1, Avx2Dot, 1, [1 2 3 4 5 6 7 8 9 10 11 12]);
#[cfg(target_arch = "x86_64")]
tiles!(#[target_feature(enable = "avx2,fma")] avx2_2, Avx2Dot, 2, [1 2 3 4 5 6]);
#[cfg(target_arch = "x86_64")]
tiles!(#[target_feature(enable = "avx2,fma")] avx2_3, Avx2Dot, 3, [1 2 3 4]);
#[cfg(target_arch = "x86_64")]
tiles!(#[target_feature(enable = "avx2,fma,avxvnni")] vnni256_1, Vnni256, 1, [1 2 3 4 5 6 7 8 9 10 11 12]);
#[cfg(target_arch = "x86_64")]
tiles!(#[target_feature(enable = "avx2,fma,avxvnni")] vnni256_2, Vnni256, 2, [1 2 3 4 5 6]);
#[cfg(target_arch = "x86_64")]
tiles!(#[target_feature(enable = "avx2,fma,avxvnni")] vnni256_3, Vnni256, 3, [1 2 3 4]);
#[cfg(target_arch = "x86_64")]
tiles!(#[target_feature(enable = "avx512f,avx512vnni,avx512vl,avx2,fma")] vnni512_1, Vnni512, 1, [1 2 3 4 5 6 7 8 9 10 11 12]);
#[cfg(target_arch = "x86_64")]
tiles!(#[target_feature(enable = "avx512f,avx512vnni,avx512vl,avx2,fma")] vnni512_2, Vnni512, 2, [1 2 3 4 5 6 7 8 9 10 11 12]);
#[cfg(target_arch = "x86_64")]
tiles!(#[target_feature(enable = "avx512f,avx512vnni,avx512vl,avx2,fma")] vnni512_3, Vnni512, 3, [1 2 3 4 5 6 7 8]);

#[inline(always)]
unsafe fn tile<D: Dot, const R: usize, const W: usize>(p: &IntProduct, first: usize) {
    // Values of the last vector of a row; the vectors before it are full.
    let last = p.panel.width - (W - 1) * D::LANES;
    // SAFETY: the caller's: everything is as long as `IntProduct` says.
    unsafe {
        let places = p.places.get_unchecked(first..first + R);
        let mut sums = [[D::load(p.start); W]; R];
        for w in 1..W {
            let start = D::load(p.start.add(w * D::LANES));
            for r in 0..R {
                sums[r][w] = start;
            }
        }
        // Loops that run at least once: were they not, the accumulators would leave their registers between them.
        let mut panel = p.weights;
        let mut tap = 0;
        loop {
            let run = p.input.add(*p.taps.get_unchecked(tap));
            let rows: [*const u8; R] = std::array::from_fn(|r| run.add(places[r]));
            D::multiply(&mut sums, rows, panel, p.groups);
            panel = panel.add(p.groups * W * D::LANES * 4);
            tap += 1;
            if tap == p.taps.len() {
                break;
            }
        }
        for r in 0..R {
            for w in 0..W {
                let (column, count) = (w * D::LANES, if w + 1 < W { D::LANES } else { last });
                let bias = D::Float::load(p.bias.add(column));
                let mut y = bias.fma(sums[r][w].to_f32(), D::Float::load(p.scale.add(column)));
                if !p.residual.is_null() {
                    let at = p.residual.add((first + r) * p.residual_stride + column);
                    y = y.add(<u8 as Element>::load_first(at, count, p.residual_quant));
                }
                y = clamp(y, D::Float::splat(p.epilogue.low), D::Float::splat(p.epilogue.high));
                if let Some(function) = p.epilogue.smooth {
                    y = smooth(y, function);
                }
                let at = (first + r) * p.out_stride + column;
                match p.target {
                    Target::Quantized(quant) => <u8 as Element>::store_first(p.out.add(at), y, count, quant),
                    Target::Real => y.store_first(p.out.cast::<f32>().add(at), count),
                }
            }
        }
    }
}
