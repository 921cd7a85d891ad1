//! Sums of outer products, `Aᵀ·B`: the gradient of a weight from the rows it met. Both matrices are read where they
//! lie, row by row, so nothing is packed.

use super::{Isa, Vector};

/// Rows of A and B that one pass goes over: as many as leave a panel of B in the first-level cache.
const PASS: usize = if cfg!(target_arch = "aarch64") { 128 } else { 256 };

/// `out[r][c] = Σₖ a[k][r]·b[k][c]`; distances from row to row count values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OuterProduct {
    pub a: *const f32,
    pub a_stride: usize,
    pub b: *const f32,
    pub b_stride: usize,
    pub out: *mut f32,
    pub out_stride: usize,
    /// Rows of A and B.
    pub len: usize,
    /// Rows and columns of `out`; columns are a multiple of [`super::CHANNEL_BLOCK`].
    pub size: [usize; 2],
    /// Whether the product is added to what `out` holds, or takes its place.
    pub add: bool,
}

/// Computes the product.
///
/// # Safety
/// The pointers are valid for what [`OuterProduct`] says, the result overlaps neither factor, and the processor has `isa`.
pub(crate) unsafe fn outer_product(isa: Isa, product: &OuterProduct) {
    let mut from = 0;
    while from < product.len {
        let len = PASS.min(product.len - from);
        // SAFETY: the rows `from..from + len` lie in both factors; the processor has `isa`.
        unsafe {
            let pass = OuterProduct {
                a: product.a.add(from * product.a_stride),
                b: product.b.add(from * product.b_stride),
                len,
                add: product.add || from > 0,
                ..*product
            };
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Avx512Vnni => avx512(&pass),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 | Isa::Avx2Vnni => avx2(&pass),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon | Isa::NeonDot => pass_of::<super::Neon, 8, 2>(&pass),
                _ => pass_of::<super::Portable, 2, 1>(&pass),
            }
        }
        from += len;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn avx512(p: &OuterProduct) {
    // SAFETY: the features are enabled here; the rest is the caller's.
    unsafe { pass_of::<super::Avx512, 12, 2>(p) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(p: &OuterProduct) {
    // SAFETY: as above.
    unsafe { pass_of::<super::Avx2, 6, 2>(p) }
}

/// Register tiles of `R` rows and `W` vectors, smaller ones for what is left.
#[inline(always)]
unsafe fn pass_of<V: Vector, const R: usize, const W: usize>(p: &OuterProduct) {
    let [rows, columns] = p.size;
    let mut column = 0;
    while column < columns {
        let wide = columns - column > V::LANES && W > 1;
        let width = (columns - column).min(if wide { W * V::LANES } else { V::LANES });
        let mut row = 0;
        // SAFETY: the caller's; every tile lies in `size`.
        unsafe {
            while row + R <= rows {
                if wide {
                    tile::<V, R, W>(p, row, (column, width))
                } else {
                    tile::<V, R, 1>(p, row, (column, width))
                }
                row += R;
            }
            while row + 4 <= rows {
                if wide {
                    tile::<V, 4, W>(p, row, (column, width))
                } else {
                    tile::<V, 4, 1>(p, row, (column, width))
                }
                row += 4;
            }
            while row < rows {
                if wide {
                    tile::<V, 1, W>(p, row, (column, width))
                } else {
                    tile::<V, 1, 1>(p, row, (column, width))
                }
                row += 1;
            }
        }
        column += width;
    }
}

#[inline(always)]
unsafe fn tile<V: Vector, const R: usize, const W: usize>(
    p: &OuterProduct,
    row: usize,
    (column, width): (usize, usize),
) {
    let last = width - (W - 1) * V::LANES;
    // SAFETY: the caller's: the tile lies in `out`, its rows in A, its columns in B.
    unsafe {
        let (mut a, mut b) = (p.a.add(row), p.b.add(column));
        let out = p.out.add(row * p.out_stride + column);
        let load = |from: *const f32, w: usize| {
            let from = from.add(w * V::LANES);
            if w + 1 < W { V::load(from) } else { V::load_first(from, last) }
        };
        let mut acc = [[V::splat(0.0); W]; R];
        for _ in 0..p.len {
            let mut vectors = [V::splat(0.0); W];
            for w in 0..W {
                vectors[w] = load(b, w);
            }
            for r in 0..R {
                let factor = V::splat(*a.add(r));
                for w in 0..W {
                    acc[r][w] = acc[r][w].fma(factor, vectors[w]);
                }
            }
            a = a.add(p.a_stride);
            b = b.add(p.b_stride);
        }
        for r in 0..R {
            let out = out.add(r * p.out_stride);
            for w in 0..W {
                let sum = if p.add { load(out.cast_const(), w).add(acc[r][w]) } else { acc[r][w] };
                let to = out.add(w * V::LANES);
                if w + 1 < W { sum.store(to) } else { sum.store_first(to, last) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn sums_are_those_of_the_definition() {
        let mut rng = Rng::new(5);
        for (len, rows, columns) in [(1, 1, 8), (3, 17, 24), (300, 13, 40), (7, 30, 64)] {
            let (a_stride, b_stride) = (rows + 3, columns + 1);
            let mut values = |count: usize| (0..count).map(|_| rng.normal()).collect::<Vec<f32>>();
            let (a, b) = (values(len * a_stride), values(len * b_stride));
            for isa in Isa::available() {
                let mut out = vec![1.0f32; rows * columns];
                let product = OuterProduct {
                    a: a.as_ptr(),
                    a_stride,
                    b: b.as_ptr(),
                    b_stride,
                    out: out.as_mut_ptr(),
                    out_stride: columns,
                    len,
                    size: [rows, columns],
                    add: false,
                };
                // SAFETY: the buffers have these sizes, and the processor has `isa`.
                unsafe {
                    outer_product(isa, &product);
                    outer_product(isa, &OuterProduct { add: true, ..product });
                }
                for (i, got) in out.iter().enumerate() {
                    let (r, c) = (i / columns, i % columns);
                    let terms = (0..len).map(|k| f64::from(a[k * a_stride + r]) * f64::from(b[k * b_stride + c]));
                    let want = 2.0 * terms.sum::<f64>();
                    assert!((f64::from(*got) - want).abs() < 1e-4, "{isa} {len} {rows} {columns}: {got} {want}");
                }
            }
        }
    }
}
