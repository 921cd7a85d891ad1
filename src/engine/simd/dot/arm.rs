//! Dot products of Advanced SIMD.

#[allow(clippy::wildcard_imports, reason = "the intrinsics' names carry their own prefix")]
use std::arch::aarch64::*;

use super::super::Vector as _;
use super::super::neon::Neon;
use super::{AHEAD, Dot, by_groups};

/// Sums that take a group from a register of four: on its own, each would be an instruction per row.
trait FourGroups: Dot {
    type Four: Copy;
    unsafe fn four(p: *const u8) -> Self::Four;
    /// As [`Dot::dot`], with group `I` of `a`.
    unsafe fn dot_of<const I: usize>(self, a: Self::Four, b: Self::Columns) -> Self;
}

/// [`Dot::multiply`], four groups at a time.
#[inline(always)]
unsafe fn by_fours<D: FourGroups, const R: usize, const W: usize>(
    sums: &mut [[D; W]; R],
    rows: [*const u8; R],
    mut panel: *const u8,
    groups: usize,
) {
    macro_rules! add_group {
        ($a:ident, $i:literal) => {
            for w in 0..W {
                let b = D::columns(panel.add(w * D::LANES * 4));
                for r in 0..R {
                    sums[r][w] = sums[r][w].dot_of::<$i>($a[r], b);
                }
            }
            panel = panel.add(W * D::LANES * 4);
        };
    }
    // SAFETY: the caller's.
    unsafe {
        for g in 0..groups / 4 {
            for w in 0..W {
                D::Float::prefetch(panel.wrapping_add(AHEAD + w * LINE).cast());
            }
            let a = std::array::from_fn::<_, R, _>(|r| D::four(rows[r].add(g * 16)));
            add_group!(a, 0);
            add_group!(a, 1);
            add_group!(a, 2);
            add_group!(a, 3);
        }
        let done = groups / 4 * 4;
        if done < groups {
            by_groups(sums, rows.map(|row| row.add(done * 4)), panel, groups - done);
        }
    }
}

/// Bytes of a cache line: four vectors.
const LINE: usize = 64;

/// Widening multiply-add: what every AArch64 processor has.
#[derive(Clone, Copy)]
pub(in crate::engine) struct NeonLong(int32x4_t);

// SAFETY of every call: Advanced SIMD is in the baseline; pointers are the caller's.
impl Dot for NeonLong {
    const LANES: usize = 4;
    type Float = Neon;
    type Group = int16x4_t;
    type Columns = int16x8_t;

    #[inline(always)]
    unsafe fn load(p: *const i32) -> Self {
        unsafe { Self(vld1q_s32(p)) }
    }
    #[inline(always)]
    unsafe fn group(p: *const u8) -> int16x4_t {
        unsafe { vreinterpret_s16_s32(vdup_n_s32(p.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn columns(p: *const u8) -> int16x8_t {
        unsafe { vld1q_s16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn dot(self, a: int16x4_t, b: int16x8_t) -> Self {
        unsafe {
            let sum = vmlal_lane_s16::<0>(self.0, vget_low_s16(b), a);
            Self(vmlal_high_lane_s16::<1>(sum, b, a))
        }
    }
    #[inline(always)]
    unsafe fn to_f32(self) -> Neon {
        unsafe { Neon(vcvtq_f32_s32(self.0)) }
    }
    #[inline(always)]
    unsafe fn multiply<const R: usize, const W: usize>(
        sums: &mut [[Self; W]; R],
        rows: [*const u8; R],
        panel: *const u8,
        groups: usize,
    ) {
        unsafe { by_fours(sums, rows, panel, groups) }
    }
}

impl FourGroups for NeonLong {
    type Four = int16x8_t;

    #[inline(always)]
    unsafe fn four(p: *const u8) -> int16x8_t {
        unsafe { vld1q_s16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn dot_of<const I: usize>(self, a: int16x8_t, b: int16x8_t) -> Self {
        macro_rules! pair {
            ($first:literal, $second:literal) => {{
                let sum = vmlal_laneq_s16::<$first>(self.0, vget_low_s16(b), a);
                Self(vmlal_high_laneq_s16::<$second>(sum, b, a))
            }};
        }
        unsafe {
            match I {
                0 => pair!(0, 1),
                1 => pair!(2, 3),
                2 => pair!(4, 5),
                _ => pair!(6, 7),
            }
        }
    }
}

/// `sdot`, Armv8.2 with the dot product extension.
#[derive(Clone, Copy)]
pub(in crate::engine) struct NeonDot(int32x4_t);

// SAFETY of every call: as the trait's contract.
impl Dot for NeonDot {
    const LANES: usize = 4;
    type Float = Neon;
    type Group = int32x4_t;
    type Columns = int32x4_t;

    #[inline(always)]
    unsafe fn load(p: *const i32) -> Self {
        unsafe { Self(vld1q_s32(p)) }
    }
    #[inline(always)]
    unsafe fn group(p: *const u8) -> int32x4_t {
        unsafe { vdupq_n_s32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn columns(p: *const u8) -> int32x4_t {
        unsafe { vld1q_s32(p.cast()) }
    }
    /// In assembly: the intrinsic is not stable.
    #[inline(always)]
    unsafe fn dot(self, a: int32x4_t, b: int32x4_t) -> Self {
        let mut sum = self.0;
        // SAFETY: registers only; the caller's: the extension is there.
        unsafe {
            std::arch::asm!(
                ".arch_extension dotprod",
                "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
                sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        Self(sum)
    }
    #[inline(always)]
    unsafe fn to_f32(self) -> Neon {
        unsafe { Neon(vcvtq_f32_s32(self.0)) }
    }
    #[inline(always)]
    unsafe fn multiply<const R: usize, const W: usize>(
        sums: &mut [[Self; W]; R],
        rows: [*const u8; R],
        panel: *const u8,
        groups: usize,
    ) {
        unsafe { by_fours(sums, rows, panel, groups) }
    }
}

impl FourGroups for NeonDot {
    type Four = int32x4_t;

    #[inline(always)]
    unsafe fn four(p: *const u8) -> int32x4_t {
        unsafe { vld1q_s32(p.cast()) }
    }
    /// In assembly as above.
    #[inline(always)]
    unsafe fn dot_of<const I: usize>(self, a: int32x4_t, b: int32x4_t) -> Self {
        let mut sum = self.0;
        // SAFETY: registers only; the caller's: the extension is there.
        unsafe {
            std::arch::asm!(
                ".arch_extension dotprod",
                "sdot {sum:v}.4s, {b:v}.16b, {a:v}.4b[{i}]",
                sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b, i = const I,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        Self(sum)
    }
}
