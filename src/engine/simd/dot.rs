//! Dot products of small integers, exact in 32 bits: the arithmetic of 8-bit convolutions.

#[cfg(target_arch = "aarch64")]
mod arm;

use super::{Isa, Portable, Vector};
#[cfg(target_arch = "aarch64")]
pub(in crate::engine) use arm::{NeonDot, NeonLong};

/// A register of 32-bit sums. One step adds, to each, the dot product of a *group* of consecutive values of a row of A (32
/// bits: four 8-bit or two 16-bit values, the same for all sums) with the group of its column of B.
///
/// # Safety
/// As [`Vector`].
pub(in crate::engine) trait Dot: Copy {
    /// Sums per register.
    const LANES: usize;
    /// The same number of f32 values.
    type Float: Vector;
    /// A group of A for every lane.
    type Group: Copy;
    /// Groups of `LANES` columns of B.
    type Columns: Copy;

    unsafe fn load(p: *const i32) -> Self;
    unsafe fn group(p: *const u8) -> Self::Group;
    unsafe fn columns(p: *const u8) -> Self::Columns;
    unsafe fn dot(self, a: Self::Group, b: Self::Columns) -> Self;
    unsafe fn to_f32(self) -> Self::Float;
    /// Adds to `sums[r][w]` the dot products of the groups of row r with those of vector w of the panel's rows;
    /// there is at least one group.
    #[inline(always)]
    unsafe fn multiply<const R: usize, const W: usize>(
        sums: &mut [[Self; W]; R],
        rows: [*const u8; R],
        panel: *const u8,
        groups: usize,
    ) {
        // SAFETY: the caller's: rows of `groups` groups, a panel of `groups · W` vectors.
        unsafe { by_groups(sums, rows, panel, groups) }
    }
}

/// [`Dot::multiply`], group by group.
#[inline(always)]
unsafe fn by_groups<D: Dot, const R: usize, const W: usize>(
    sums: &mut [[D; W]; R],
    rows: [*const u8; R],
    mut panel: *const u8,
    groups: usize,
) {
    let mut g = 0;
    loop {
        // SAFETY: the caller's.
        unsafe {
            D::Float::prefetch(panel.wrapping_add(AHEAD).cast());
            let mut b = [D::columns(panel); W];
            for w in 1..W {
                b[w] = D::columns(panel.add(w * D::LANES * 4));
            }
            for r in 0..R {
                let a = D::group(rows[r].add(g * 4));
                for w in 0..W {
                    sums[r][w] = sums[r][w].dot(a, b[w]);
                }
            }
            panel = panel.add(W * D::LANES * 4);
        }
        g += 1;
        if g == groups {
            break;
        }
    }
}

/// How far ahead of its use a panel is asked for, in bytes.
const AHEAD: usize = 1024;

/// How a [`Dot`] wants its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum DotLayout {
    /// Groups of four: A as u8, B as i8.
    U8x4,
    /// Groups of four: A as i8, which is the stored u8 less 128, B as i8.
    I8x4,
    /// Groups of two, both i16; a vector of B holds the pairs of its columns one after the other.
    I16x2,
    /// Groups of two, both i16; a vector of B holds its columns' first values, then their second ones.
    I16x2Split,
}

impl DotLayout {
    /// The layout for `isa`.
    pub const fn of(isa: Isa) -> Self {
        match isa {
            Isa::Portable | Isa::Avx2 | Isa::Avx512 => Self::I16x2,
            Isa::Avx2Vnni | Isa::Avx512Vnni => Self::U8x4,
            Isa::Neon => Self::I16x2Split,
            Isa::NeonDot => Self::I8x4,
        }
    }

    /// Values per group.
    pub const fn group(self) -> usize {
        match self {
            Self::U8x4 | Self::I8x4 => 4,
            Self::I16x2 | Self::I16x2Split => 2,
        }
    }

    /// Bytes per value.
    pub const fn bytes(self) -> usize {
        4 / self.group()
    }

    /// What is taken from a stored u8 before it is multiplied.
    pub const fn offset(self) -> i32 {
        match self {
            Self::I8x4 => 128,
            _ => 0,
        }
    }

    /// Where value `i` of the group of column `lane` lies in a vector of `lanes` columns, in values.
    pub const fn position(self, lanes: usize, lane: usize, i: usize) -> usize {
        match self {
            Self::I16x2Split => i * lanes + lane,
            _ => lane * self.group() + i,
        }
    }
}

/// Eight sums in an array.
#[derive(Clone, Copy)]
pub(in crate::engine) struct PortableDot([i32; 8]);

// SAFETY of every call: pointers are the caller's.
impl Dot for PortableDot {
    const LANES: usize = 8;
    type Float = Portable;
    type Group = [i16; 2];
    type Columns = [[i16; 2]; 8];

    #[inline(always)]
    unsafe fn load(p: *const i32) -> Self {
        Self(unsafe { p.cast::<[i32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn group(p: *const u8) -> Self::Group {
        unsafe { p.cast::<[i16; 2]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn columns(p: *const u8) -> Self::Columns {
        unsafe { p.cast::<[[i16; 2]; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn dot(self, a: Self::Group, b: Self::Columns) -> Self {
        let [x, y] = a.map(i32::from);
        let mut sums = self.0;
        for (sum, [u, v]) in sums.iter_mut().zip(b) {
            *sum += x * i32::from(u) + y * i32::from(v);
        }
        Self(sums)
    }
    #[inline(always)]
    unsafe fn to_f32(self) -> Portable {
        Portable::from_array(self.0.map(|x| x as f32))
    }
}

#[cfg(target_arch = "x86_64")]
pub(in crate::engine) use x86::{Avx2Dot, Vnni256, Vnni512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[allow(clippy::wildcard_imports, reason = "the intrinsics' names carry their own prefix")]
    use std::arch::x86_64::*;

    use super::super::x86::{Avx2, Avx512};
    use super::Dot;

    macro_rules! dot {
        ($(#[$doc:meta])* $name:ident, $register:ident, $lanes:literal, $float:ident, $load:ident,
         $splat:ident, $to_f32:ident, $dot:expr) => {
            $(#[$doc])*
            #[derive(Clone, Copy)]
            pub(in crate::engine) struct $name($register);

            // SAFETY of every call: the trait's contract, the instruction set is there.
            impl Dot for $name {
                const LANES: usize = $lanes;
                type Float = $float;
                type Group = $register;
                type Columns = $register;

                #[inline(always)]
                unsafe fn load(p: *const i32) -> Self {
                    unsafe { Self($load(p.cast())) }
                }
                #[inline(always)]
                unsafe fn group(p: *const u8) -> $register {
                    unsafe { $splat(p.cast::<i32>().read_unaligned()) }
                }
                #[inline(always)]
                unsafe fn columns(p: *const u8) -> $register {
                    unsafe { $load(p.cast()) }
                }
                #[inline(always)]
                unsafe fn dot(self, a: $register, b: $register) -> Self {
                    unsafe { Self($dot(self.0, a, b)) }
                }
                #[inline(always)]
                unsafe fn to_f32(self) -> $float {
                    unsafe { $float($to_f32(self.0)) }
                }
            }
        };
    }

    #[inline(always)]
    unsafe fn madd(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the caller's.
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)) }
    }

    dot!(
        /// Pairs of 16-bit values: AVX2 has no exact product of bytes.
        Avx2Dot, __m256i, 8, Avx2, _mm256_loadu_si256, _mm256_set1_epi32, _mm256_cvtepi32_ps, madd
    );
    dot!(
        /// AVX-VNNI.
        Vnni256, __m256i, 8, Avx2, _mm256_loadu_si256, _mm256_set1_epi32, _mm256_cvtepi32_ps, dpbusd_256
    );
    dot!(
        /// AVX-512 VNNI.
        Vnni512, __m512i, 16, Avx512, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_cvtepi32_ps, dpbusd_512
    );

    #[inline]
    #[target_feature(enable = "avxvnni")]
    unsafe fn dpbusd_256(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        _mm256_dpbusd_avx_epi32(sum, a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512vnni")]
    unsafe fn dpbusd_512(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(sum, a, b)
    }
}
