//! Vectors of f32, the run-time choice of the instruction set, and what inference and training compute with them alike:
//! products with packed panels, Winograd's transforms.
//!
//! Kernels are written once against [`Vector`] and compiled for each instruction set. Nothing beyond the target's baseline
//! runs unless the processor says that it has it.
#![allow(
    clippy::needless_range_loop,
    reason = "register tiles are indexed by constants, so that they stay in registers"
)]

mod dot;
pub(crate) mod epilogue;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod outer;
mod portable;
pub(crate) mod product;
pub(crate) mod winograd;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub(crate) use dot::{Avx2Dot, Vnni256, Vnni512};
pub(crate) use dot::{Dot, DotLayout, PortableDot};
#[cfg(target_arch = "aarch64")]
pub(crate) use dot::{NeonDot, NeonLong};
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

use std::fmt;

/// Channels of every activation are padded to a multiple of this many values, so that no kernel needs a scalar tail.
pub(crate) const CHANNEL_BLOCK: usize = 8;

/// `channels` rounded up to whole blocks.
pub(crate) const fn padded(channels: usize) -> usize {
    channels.div_ceil(CHANNEL_BLOCK) * CHANNEL_BLOCK
}

/// How far ahead of its use a panel of weights is asked for, in bytes: weights come from memory once per request.
const AHEAD: usize = 4096;

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// What every processor of the target has.
    Portable,
    /// x86-64 with AVX2 and FMA: 8 values.
    Avx2,
    /// AVX2 and AVX-VNNI: dot products of 8-bit integers.
    Avx2Vnni,
    /// x86-64 with AVX-512 F, besides AVX2 and FMA: 16 values.
    Avx512,
    /// AVX-512 with VNNI: dot products of 8-bit integers.
    Avx512Vnni,
    /// AArch64 Advanced SIMD: 4 values.
    Neon,
    /// Advanced SIMD with dot products of 8-bit integers (Armv8.2 and later).
    NeonDot,
}

impl Isa {
    /// The best one this processor has.
    pub fn detect() -> Self {
        Self::available().last().copied().unwrap_or(Self::Portable)
    }

    /// Every instruction set this processor can run, the best last.
    pub fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let kernels = {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2 && is_x86_feature_detected!("avx512f");
            [
                (Self::Avx2, avx2),
                (Self::Avx2Vnni, avx2 && is_x86_feature_detected!("avxvnni")),
                (Self::Avx512, avx512),
                (
                    Self::Avx512Vnni,
                    avx512 && is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl"),
                ),
            ]
        };
        #[cfg(target_arch = "aarch64")]
        let kernels = [(Self::Neon, true), (Self::NeonDot, std::arch::is_aarch64_feature_detected!("dotprod"))];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let kernels: [(Self, bool); 0] = [];
        let available = kernels.into_iter().filter_map(|(isa, available)| available.then_some(isa));
        std::iter::once(Self::Portable).chain(available).collect()
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx2Vnni => "avx2-vnni",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Neon => "neon",
            Self::NeonDot => "neon-dot",
        })
    }
}

/// A vector register of f32 values.
///
/// # Safety
/// Every method may only be called where the instruction set it belongs to is present.
/// `load` and `store` touch `LANES` values at `p`, of any alignment.
pub(crate) trait Vector: Copy {
    /// Values per register.
    const LANES: usize;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// The first `count` values at `p`, the rest zero: all of them, or one [`CHANNEL_BLOCK`] where a register holds more.
    #[inline(always)]
    unsafe fn load_first(p: *const f32, _count: usize) -> Self {
        // SAFETY: the caller's; a register of at most one block is always whole.
        unsafe { Self::load(p) }
    }
    /// Stores the first `count` values, as for [`Vector::load_first`].
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, _count: usize) {
        // SAFETY: as above.
        unsafe { self.store(p) }
    }
    /// `LANES` bytes as values.
    unsafe fn load_u8(p: *const u8) -> Self;
    /// `LANES` bytes, rounded to the nearest (ties to even), NaN as 0, what lies outside as the nearest end.
    unsafe fn store_u8(self, p: *mut u8);
    /// The first `count` bytes as values, as for [`Vector::load_first`].
    #[inline(always)]
    unsafe fn load_u8_first(p: *const u8, _count: usize) -> Self {
        // SAFETY: as above.
        unsafe { Self::load_u8(p) }
    }
    /// Stores the first `count` bytes, as for [`Vector::load_first`].
    #[inline(always)]
    unsafe fn store_u8_first(self, p: *mut u8, _count: usize) {
        // SAFETY: as above.
        unsafe { self.store_u8(p) }
    }
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn min(self, other: Self) -> Self;
    /// `a·b + self`.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    /// Asks for the cache line at `p`, which may point anywhere.
    unsafe fn prefetch(p: *const f32);
    /// 2ⁿ, where `self` is n + 1.5·2²³ with an integer n.
    unsafe fn pow2_shifted(self) -> Self;
    /// Adds to `acc[r][w]` the products of value k of row r with vector w of row k of the panel, for each k below `len`:
    /// where dense layers spend their time.
    #[inline(always)]
    unsafe fn multiply<const R: usize, const W: usize>(
        acc: &mut [[Self; W]; R],
        rows: [*const f32; R],
        mut panel: *const f32,
        len: usize,
    ) {
        for k in 0..len {
            // SAFETY: the caller's: rows of `len` values, a panel of `len · W` vectors.
            unsafe {
                let mut b = [Self::splat(0.0); W];
                for w in 0..W {
                    Self::prefetch(panel.wrapping_byte_add(AHEAD).wrapping_add(w * Self::LANES));
                    b[w] = Self::load(panel.add(w * Self::LANES));
                }
                for r in 0..R {
                    let a = Self::splat(*rows[r].add(k));
                    for w in 0..W {
                        acc[r][w] = acc[r][w].fma(a, b[w]);
                    }
                }
                panel = panel.add(W * Self::LANES);
            }
        }
    }
}

/// exp(x), relative error below 2e-7 on [−87, 88]; beyond, the value at the end of that range.
///
/// # Source
/// Moshier, Cephes `expf`: exp(x) = 2ⁿ·exp(r) with |r| ≤ ln 2 / 2, the split of ln 2 and the coefficients.
///
/// # Safety
/// As [`Vector`].
#[inline(always)]
pub(crate) unsafe fn exp<V: Vector>(x: V) -> V {
    // Adding 1.5·2²³ rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // SAFETY: the caller's.
    unsafe {
        let s = |value: f32| V::splat(value);
        let x = x.max(s(-87.0)).min(s(88.0));
        let shifted = s(ROUND).fma(x, s(std::f32::consts::LOG2_E));
        let n = shifted.sub(s(ROUND));
        let r = x.fma(n, s(-0.693_359_4)).fma(n, s(2.121_944_4e-4));
        let mut p = s(1.987_569_1e-4);
        p = s(1.398_199_9e-3).fma(p, r);
        p = s(8.333_452e-3).fma(p, r);
        p = s(4.166_579_6e-2).fma(p, r);
        p = s(1.666_666_5e-1).fma(p, r);
        p = s(5.000_000_3e-1).fma(p, r);
        let p = r.fma(p.mul(r), r).add(s(1.0));
        p.mul(shifted.pow2_shifted())
    }
}

/// Calls `$body::<V>(arguments)`, each written `name: type = value`, compiled for the instruction set `$isa`, V its widest
/// vector (see [`Vector::load_first`]). `$body` must be `#[inline(always)]` all the way down.
macro_rules! compiled_for {
    ($isa:expr, $body:ident($($arg:ident: $ty:ty = $value:expr),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx2,fma")]
        unsafe fn avx512($($arg: $ty),*) {
            // SAFETY: the features are enabled here; the rest is the caller's.
            unsafe { $body::<$crate::simd::Avx512>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2($($arg: $ty),*) {
            // SAFETY: as above.
            unsafe { $body::<$crate::simd::Avx2>($($arg),*) }
        }
        #[cfg(target_arch = "aarch64")]
        unsafe fn neon($($arg: $ty),*) {
            // SAFETY: the caller's; Advanced SIMD is in the baseline.
            unsafe { $body::<$crate::simd::Neon>($($arg),*) }
        }
        match $isa {
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Isa::Avx512 | $crate::simd::Isa::Avx512Vnni => avx512($($value),*),
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Isa::Avx2 | $crate::simd::Isa::Avx2Vnni => avx2($($value),*),
            #[cfg(target_arch = "aarch64")]
            $crate::simd::Isa::Neon | $crate::simd::Isa::NeonDot => neon($($value),*),
            _ => $body::<$crate::simd::Portable>($($value),*),
        }
    }};
}
pub(crate) use compiled_for;
