//! Winograd's transforms of 3×3 convolutions with stride 1.
//!
//! # Source
//! Lavin and Gray 2015, arXiv:1509.09308, F(2×2, 3×3) and F(4×4, 3×3).

use super::Vector;

/// Output pixels per tile and side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WinogradTile {
    /// F(2×2, 3×3): 16 products for 4 pixels.
    Two,
    /// F(4×4, 3×3): 36 products for 16 pixels.
    Four,
}

impl WinogradTile {
    /// Output pixels per side.
    pub const fn side(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// Products per tile.
    pub const fn frequencies(self) -> usize {
        (self.side() + 2) * (self.side() + 2)
    }

    /// Tiles over an output of this size.
    pub const fn grid(self, [height, width]: [usize; 2]) -> [usize; 2] {
        [height.div_ceil(self.side()), width.div_ceil(self.side())]
    }

    /// `G g Gᵀ` of one 3×3 filter, in f64.
    pub fn transform_weights(self, g: &[f32]) -> Vec<f64> {
        const TWO: [[f64; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];
        const FOUR: [[f64; 3]; 6] = [
            [1.0 / 4.0, 0.0, 0.0],
            [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
            [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
            [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
            [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
            [0.0, 0.0, 1.0],
        ];
        let matrix: &[[f64; 3]] = match self {
            Self::Two => &TWO,
            Self::Four => &FOUR,
        };
        let dot = |row: &[f64; 3], column: [f64; 3]| row.iter().zip(column).map(|(a, b)| a * b).sum::<f64>();
        let at = |y: usize, x: usize| f64::from(g[y * 3 + x]);
        let half: Vec<[f64; 3]> =
            matrix.iter().map(|row| [0, 1, 2].map(|x| dot(row, [at(0, x), at(1, x), at(2, x)]))).collect();
        half.iter().flat_map(|&line| matrix.iter().map(move |row| dot(row, line))).collect()
    }
}

/// Bᵀ x for F(2, 3).
///
/// # Safety
/// As [`Vector`].
#[inline(always)]
pub(crate) unsafe fn input2<V: Vector>(x: [V; 4]) -> [V; 4] {
    // SAFETY: the caller's.
    unsafe { [x[0].sub(x[2]), x[1].add(x[2]), x[2].sub(x[1]), x[1].sub(x[3])] }
}

/// Aᵀ x for F(2, 3).
///
/// # Safety
/// As [`Vector`].
#[inline(always)]
pub(crate) unsafe fn output2<V: Vector>(x: [V; 4]) -> [V; 2] {
    // SAFETY: the caller's.
    unsafe { [x[0].add(x[1]).add(x[2]), x[1].sub(x[2]).sub(x[3])] }
}

/// Bᵀ x for F(4, 3), points 0, ±1, ±2.
///
/// # Safety
/// As [`Vector`].
#[inline(always)]
pub(crate) unsafe fn input4<V: Vector>(x: [V; 6]) -> [V; 6] {
    // SAFETY: the caller's.
    unsafe {
        let s = [V::splat(2.0), V::splat(-4.0), V::splat(-5.0), V::splat(4.0), V::splat(-2.0)];
        let even = x[4].fma(x[2], s[1]);
        let odd = x[3].fma(x[1], s[1]);
        let near = x[4].sub(x[2]);
        let far = x[3].sub(x[1]);
        [
            x[4].fma(x[2], s[2]).fma(x[0], s[3]),
            even.add(odd),
            even.sub(odd),
            near.fma(far, s[0]),
            near.fma(far, s[4]),
            x[5].fma(x[3], s[2]).fma(x[1], s[3]),
        ]
    }
}

/// Aᵀ x for F(4, 3).
///
/// # Safety
/// As [`Vector`].
#[inline(always)]
pub(crate) unsafe fn output4<V: Vector>(x: [V; 6]) -> [V; 4] {
    // SAFETY: the caller's.
    unsafe {
        let (s12, d12) = (x[1].add(x[2]), x[1].sub(x[2]));
        let (s34, d34) = (x[3].add(x[4]), x[3].sub(x[4]));
        [
            x[0].add(s12).add(s34),
            d12.fma(d34, V::splat(2.0)),
            s12.fma(s34, V::splat(4.0)),
            d12.fma(d34, V::splat(8.0)).add(x[5]),
        ]
    }
}

/// A x for F(4, 3), the transpose of [`output4`]; the last two of `x` do not count.
///
/// # Safety
/// As [`Vector`].
#[inline(always)]
pub(crate) unsafe fn spread4<V: Vector>(x: [V; 6]) -> [V; 6] {
    // SAFETY: the caller's.
    unsafe {
        let (even, odd) = (x[0].add(x[2]), x[1].add(x[3]));
        let (two, four) = (V::splat(2.0), V::splat(4.0));
        let (far_even, far_odd) = (x[0].fma(x[2], four), x[1].fma(x[3], four).mul(two));
        [x[0], even.add(odd), even.sub(odd), far_even.add(far_odd), far_even.sub(far_odd), x[3]]
    }
}

/// G x for F(4, 3).
///
/// # Safety
/// As [`Vector`].
#[inline(always)]
pub(crate) unsafe fn filter4<V: Vector>(x: [V; 3]) -> [V; 6] {
    // SAFETY: the caller's.
    unsafe {
        let near = x[0].add(x[2]).mul(V::splat(-1.0 / 6.0));
        let (half, sixth) = (x[1].mul(V::splat(1.0 / 12.0)), x[1].mul(V::splat(1.0 / 6.0)));
        let far = x[0].mul(V::splat(1.0 / 24.0)).fma(x[2], V::splat(1.0 / 6.0));
        [x[0].mul(V::splat(0.25)), near.sub(sixth), near.add(sixth), far.add(half), far.sub(half), x[2]]
    }
}

/// Gᵀ x for F(4, 3), the transpose of [`filter4`].
///
/// # Safety
/// As [`Vector`].
#[inline(always)]
pub(crate) unsafe fn gather4<V: Vector>(x: [V; 6]) -> [V; 3] {
    // SAFETY: the caller's.
    unsafe {
        let (near, far) = (x[1].add(x[2]).mul(V::splat(-1.0 / 6.0)), x[3].add(x[4]));
        let odd = x[2].sub(x[1]).mul(V::splat(1.0 / 6.0)).fma(x[3].sub(x[4]), V::splat(1.0 / 12.0));
        [
            near.fma(x[0], V::splat(0.25)).fma(far, V::splat(1.0 / 24.0)),
            odd,
            near.fma(far, V::splat(1.0 / 6.0)).add(x[5]),
        ]
    }
}
