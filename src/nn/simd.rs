//! Element types and run-time choice of the vector instruction set.
//!
//! Kernel bodies are plain loops marked `#[inline(always)]`. [`simd_fn`] compiles each three times on x86-64, also for
//! AVX2 with FMA and for AVX-512, and chooses at run time, so that one binary runs on the baseline and is fast on the rest. On
//! AArch64 vectors and FMA belong to the baseline.

use std::sync::OnceLock;

use candle_core::WithDType;

use crate::simd::Isa;

/// A float type that kernels compute in.
pub(super) trait Element: WithDType + Default {
    const ZERO: Self;
    const ONE: Self;

    /// `self * b + c`, fused where the caller knows that the processor has the instruction.
    fn fma<const FMA: bool>(self, b: Self, c: Self) -> Self;

    /// The exponential; NaN stays NaN, very large arguments give a large finite value.
    fn exp(self) -> Self;

    /// `values`, if they are f32: what has kernels of its own.
    fn singles(_values: &[Self]) -> Option<&[f32]> {
        None
    }

    /// As [`Element::singles`].
    fn singles_mut(_values: &mut [Self]) -> Option<&mut [f32]> {
        None
    }

    /// The way back from [`Element::singles`].
    fn from_singles(_values: Vec<f32>) -> Option<Vec<Self>> {
        None
    }
}

impl Element for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    #[inline(always)]
    fn fma<const FMA: bool>(self, b: Self, c: Self) -> Self {
        if FMA { self.mul_add(b, c) } else { self * b + c }
    }

    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self.clamp(-700.0, 700.0))
    }
}

impl Element for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    #[inline(always)]
    fn fma<const FMA: bool>(self, b: Self, c: Self) -> Self {
        if FMA { self.mul_add(b, c) } else { self * b + c }
    }

    /// exp(x) = 2ⁿ·exp(r) with |r| ≤ ln 2 / 2 and a polynomial for exp(r): no branch, no library call, so the
    /// loop around it vectorises.
    ///
    /// # Source
    /// Moshier, Cephes `expf`: the split of ln 2 and the coefficients.
    #[inline(always)]
    fn exp(self) -> Self {
        // Adding 1.5·2²³ rounds to an integer and leaves it in the low bits.
        const ROUND: f32 = 12_582_912.0;
        let x = self.clamp(-87.0, 88.0);
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
        let mut p = 1.987_569_1e-4;
        p = p * r + 1.398_199_9e-3;
        p = p * r + 8.333_452e-3;
        p = p * r + 4.166_579_6e-2;
        p = p * r + 1.666_666_5e-1;
        p = p * r + 5.000_000_3e-1;
        let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
        (p * r * r + r + 1.0) * f32::from_bits(power)
    }

    fn singles(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }

    fn singles_mut(values: &mut [Self]) -> Option<&mut [f32]> {
        Some(values)
    }

    fn from_singles(values: Vec<f32>) -> Option<Vec<Self>> {
        Some(values)
    }
}

/// The instruction set that kernels for f32 run on.
pub(super) fn isa() -> Isa {
    static FOUND: OnceLock<Isa> = OnceLock::new();
    *FOUND.get_or_init(Isa::detect)
}

/// Whether the processor has the parts of AVX-512 that loops are compiled for.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("fma")
}

/// Defines a function that runs `$body` compiled for the best instruction set of the processor it runs on.
///
/// `$body` takes the same type parameters followed by `const FMA: bool` and must be `#[inline(always)]`.
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$($g:ident: $bound:path),+>($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        $vis fn $name<$($g: $bound),+>($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn wide<$($g: $bound),+>($($arg: $ty),*) {
                    $body::<$($g,)+ true>($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn widest<$($g: $bound),+>($($arg: $ty),*) {
                    $body::<$($g,)+ true>($($arg),*)
                }
                if $crate::nn::simd::has_avx512() {
                    // SAFETY: the features that `widest` is compiled for were found on this processor.
                    return unsafe { widest::<$($g),+>($($arg),*) };
                }
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                    // SAFETY: both features that `wide` is compiled for were found on this processor.
                    return unsafe { wide::<$($g),+>($($arg),*) };
                }
            }
            $body::<$($g,)+ { cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(super) use simd_fn;

#[cfg(test)]
mod tests {
    use super::*;

    /// The polynomial's error bound, a few units in the last place.
    const EXP_TOLERANCE: f64 = 4e-7;

    #[test]
    fn single_precision_exp_is_accurate_and_keeps_nan() {
        let worst = (-8700..=8800)
            .map(|i| i as f32 * 0.01)
            .map(|x| ((f64::from(Element::exp(x)) / f64::from(x).exp() - 1.0).abs(), x))
            .fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a });
        assert!(worst.0 < EXP_TOLERANCE, "relative error {} at {}", worst.0, worst.1);
        assert!(Element::exp(f32::NAN).is_nan());
        assert!(Element::exp(1e9f32).is_finite() && Element::exp(-1e9f32) >= 0.0);
    }
}
