//! Eight values in an array: what the compiler makes of the target's baseline.

use super::Vector;

/// Eight f32 values.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 8]);

macro_rules! lanewise {
    ($a:expr, $b:expr, $op:expr) => {{
        let mut out = $a.0;
        let mut i = 0;
        while i < 8 {
            out[i] = $op(out[i], $b.0[i]);
            i += 1;
        }
        Self(out)
    }};
}

impl Portable {
    /// These values.
    #[inline(always)]
    pub const fn from_array(values: [f32; 8]) -> Self {
        Self(values)
    }
}

impl Vector for Portable {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 8])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's: eight values at `p`.
        Self(unsafe { p.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller's: eight values at `p`.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self {
        // SAFETY: the caller's: eight bytes at `p`.
        Self(unsafe { p.cast::<[u8; 8]>().read_unaligned() }.map(f32::from))
    }
    #[inline(always)]
    unsafe fn store_u8(self, p: *mut u8) {
        // SAFETY: the caller's: eight bytes at `p`.
        unsafe { p.cast::<[u8; 8]>().write_unaligned(self.0.map(|x| x.round_ties_even() as u8)) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        lanewise!(self, other, |a: f32, b: f32| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        lanewise!(self, other, |a: f32, b: f32| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        lanewise!(self, other, |a: f32, b: f32| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        lanewise!(self, other, |a: f32, b: f32| a / b)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        lanewise!(self, other, |a: f32, b: f32| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        lanewise!(self, other, |a: f32, b: f32| if a < b { a } else { b })
    }
    /// Two roundings: without the instruction, a fused one would be a call per value.
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        let mut out = self.0;
        let mut i = 0;
        while i < 8 {
            out[i] += a.0[i] * b.0[i];
            i += 1;
        }
        Self(out)
    }
    #[inline(always)]
    unsafe fn prefetch(_p: *const f32) {}
    #[inline(always)]
    unsafe fn pow2_shifted(self) -> Self {
        let mut out = self.0;
        for x in &mut out {
            let n = x.to_bits().wrapping_sub(12_582_912f32.to_bits());
            *x = f32::from_bits(n.wrapping_add(127) << 23);
        }
        Self(out)
    }
}
