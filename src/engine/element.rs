//! What the arena holds: real values, or eight bits that stand for them.

use super::simd::Vector;

/// How an 8-bit value q stands for a real one: `scale · (q − zero)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Quant {
    /// Real distance of two neighbours.
    pub scale: f32,
    /// The value that stands for 0.
    pub zero: u8,
}

impl Quant {
    /// No quantisation.
    pub const IDENTITY: Self = Self { scale: 1.0, zero: 0 };

    /// Covers `low..=high`, widened to hold 0.
    pub fn covering([low, high]: [f32; 2]) -> Self {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let scale = (high - low) / 255.0;
        if !(scale.is_finite() && scale >= f32::MIN_POSITIVE) {
            return Self::IDENTITY;
        }
        Self { scale, zero: (-low / scale).round_ties_even().clamp(0.0, 255.0) as u8 }
    }

    /// The nearest 8-bit value.
    pub fn quantize(self, x: f32) -> u8 {
        (x * (1.0 / self.scale) + f32::from(self.zero)).round_ties_even() as u8
    }

    /// What `q` stands for.
    pub fn real(self, q: u8) -> f32 {
        self.scale * (f32::from(q) - f32::from(self.zero))
    }

    /// What stored values, as f32, stand for.
    #[inline(always)]
    unsafe fn real_values<V: Vector>(self, stored: V) -> V {
        // SAFETY: the caller's.
        unsafe { V::splat(-self.scale * f32::from(self.zero)).fma(stored, V::splat(self.scale)) }
    }

    /// Real values as stored ones, not yet rounded.
    #[inline(always)]
    unsafe fn stored_values<V: Vector>(self, real: V) -> V {
        // SAFETY: the caller's.
        unsafe { V::splat(f32::from(self.zero)).fma(real, V::splat(1.0 / self.scale)) }
    }
}

/// A stored value. Kernels compute on real ones, whatever lies in memory.
///
/// # Safety
/// `load` and `store` as [`Vector::load`] and [`Vector::store`], the others as [`Vector::load_first`] and
/// [`Vector::store_first`].
pub(super) trait Element: Copy + PartialEq {
    unsafe fn load<V: Vector>(p: *const Self, quant: Quant) -> V;
    unsafe fn store<V: Vector>(p: *mut Self, value: V, quant: Quant);
    unsafe fn load_first<V: Vector>(p: *const Self, count: usize, quant: Quant) -> V;
    unsafe fn store_first<V: Vector>(p: *mut Self, value: V, count: usize, quant: Quant);
    /// The nearest stored value.
    fn from_real(x: f32, quant: Quant) -> Self;
    /// A value stored under `from` as it is stored under `to`.
    fn convert(self, from: Quant, to: Quant) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const Self, _: Quant) -> V {
        // SAFETY: the caller's.
        unsafe { V::load(p) }
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(p: *mut Self, value: V, _: Quant) {
        // SAFETY: the caller's.
        unsafe { value.store(p) }
    }
    #[inline(always)]
    unsafe fn load_first<V: Vector>(p: *const Self, count: usize, _: Quant) -> V {
        // SAFETY: the caller's.
        unsafe { V::load_first(p, count) }
    }
    #[inline(always)]
    unsafe fn store_first<V: Vector>(p: *mut Self, value: V, count: usize, _: Quant) {
        // SAFETY: the caller's.
        unsafe { value.store_first(p, count) }
    }
    #[inline(always)]
    fn from_real(x: f32, _: Quant) -> Self {
        x
    }
    #[inline(always)]
    fn convert(self, _: Quant, _: Quant) -> Self {
        self
    }
}

impl Element for u8 {
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const Self, quant: Quant) -> V {
        // SAFETY: the caller's.
        unsafe { quant.real_values(V::load_u8(p)) }
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(p: *mut Self, value: V, quant: Quant) {
        // SAFETY: the caller's.
        unsafe { quant.stored_values(value).store_u8(p) }
    }
    #[inline(always)]
    unsafe fn load_first<V: Vector>(p: *const Self, count: usize, quant: Quant) -> V {
        // SAFETY: the caller's.
        unsafe { quant.real_values(V::load_u8_first(p, count)) }
    }
    #[inline(always)]
    unsafe fn store_first<V: Vector>(p: *mut Self, value: V, count: usize, quant: Quant) {
        // SAFETY: the caller's.
        unsafe { quant.stored_values(value).store_u8_first(p, count) }
    }
    #[inline(always)]
    fn from_real(x: f32, quant: Quant) -> Self {
        quant.quantize(x)
    }
    #[inline(always)]
    fn convert(self, from: Quant, to: Quant) -> Self {
        if from == to { self } else { to.quantize(from.real(self)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_exact_and_the_ends_are_covered() {
        for range in [[0.0, 6.0], [-2.1, 2.64], [-3.0, -1.0], [0.5, 4.0], [-1e-3, 1e3]] {
            let quant = Quant::covering(range);
            assert_eq!(quant.real(quant.zero), 0.0);
            for x in range {
                assert!((quant.real(quant.quantize(x)) - x).abs() <= 0.51 * quant.scale, "{range:?} {quant:?} {x}");
            }
            assert_eq!(quant.quantize(1e9), 255);
            assert_eq!(quant.quantize(-1e9), 0);
        }
    }

    #[test]
    fn a_range_of_nothing_is_no_quantisation() {
        for range in [[0.0, 0.0], [f32::NAN, f32::NAN], [0.0, f32::INFINITY]] {
            assert_eq!(Quant::covering(range), Quant::IDENTITY, "{range:?}");
        }
    }
}
