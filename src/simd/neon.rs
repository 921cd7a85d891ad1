//! AArch64 Advanced SIMD, part of the target's baseline.

#[allow(clippy::wildcard_imports, reason = "the intrinsics' names carry their own prefix")]
use std::arch::aarch64::*;

use super::{AHEAD, Vector};

/// Bytes of a cache line: four vectors.
const LINE: usize = 64;

/// Four f32 values.
#[derive(Clone, Copy)]
pub(crate) struct Neon(pub(super) float32x4_t);

// SAFETY of every call: Advanced SIMD is in the baseline; pointers are the caller's.
impl Vector for Neon {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Self(vdupq_n_f32(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { Self(vld1q_f32(p)) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { vst1q_f32(p, self.0) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self {
        unsafe {
            let bytes = vreinterpret_u8_u32(vdup_n_u32(p.cast::<u32>().read_unaligned()));
            Self(vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes)))))
        }
    }
    #[inline(always)]
    unsafe fn store_u8(self, p: *mut u8) {
        unsafe {
            let words = vqmovn_u32(vcvtnq_u32_f32(self.0));
            let bytes = vqmovn_u16(vcombine_u16(words, words));
            p.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_u8(bytes)));
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(vaddq_f32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(vsubq_f32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(vmulq_f32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { Self(vdivq_f32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self(vmaxq_f32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { Self(vminq_f32(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        unsafe { Self(vfmaq_f32(self.0, a.0, b.0)) }
    }
    /// In assembly: the intrinsic is not stable.
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        // SAFETY: a hint; it never faults.
        unsafe { std::arch::asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly)) }
    }
    #[inline(always)]
    unsafe fn pow2_shifted(self) -> Self {
        const SHIFT: u32 = 12_582_912f32.to_bits() - 127;
        unsafe {
            let n = vsubq_u32(vreinterpretq_u32_f32(self.0), vdupq_n_u32(SHIFT));
            Self(vreinterpretq_f32_u32(vshlq_n_u32::<23>(n)))
        }
    }
    /// Four values of a row at a time: the multiplication takes one of them from its register, where a value on its own
    /// would be an instruction per row.
    #[inline(always)]
    unsafe fn multiply<const R: usize, const W: usize>(
        acc: &mut [[Self; W]; R],
        rows: [*const f32; R],
        mut panel: *const f32,
        len: usize,
    ) {
        macro_rules! add_lane {
            ($a:ident, $lane:literal) => {
                for w in 0..W {
                    let b = vld1q_f32(panel.add(w * Self::LANES));
                    for r in 0..R {
                        acc[r][w].0 = vfmaq_laneq_f32::<$lane>(acc[r][w].0, b, $a[r]);
                    }
                }
                panel = panel.add(W * Self::LANES);
            };
        }
        // SAFETY: the caller's: rows of `len` values, a panel of `len · W` vectors.
        unsafe {
            for k in (0..len / 4).map(|k| 4 * k) {
                for w in 0..W {
                    Self::prefetch(panel.wrapping_byte_add(AHEAD + w * LINE));
                }
                let a = rows.map(|row| vld1q_f32(row.add(k)));
                add_lane!(a, 0);
                add_lane!(a, 1);
                add_lane!(a, 2);
                add_lane!(a, 3);
            }
            for k in len / 4 * 4..len {
                let a = rows.map(|row| vld1q_dup_f32(row.add(k)));
                add_lane!(a, 0);
            }
        }
    }
}
