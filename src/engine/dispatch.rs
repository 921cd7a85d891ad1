//! Compiling a kernel's body for each instruction set and kind of stored value.

#[cfg(doc)]
use crate::simd::{CHANNEL_BLOCK, Vector};

/// Calls `$body::<V, E>(arguments)`, each written `name: type = value`, compiled for the instruction set of `$context`;
/// E is what the arena holds, V the instruction set's vector: of at most [`CHANNEL_BLOCK`] lanes, unless `wide` says that
/// the body minds the end of a row (see [`Vector::load_first`]). `$body` must be `#[inline(always)]` all the way down.
macro_rules! dispatch {
    (wide $context:expr, $body:ident($($arg:ident: $ty:ty = $value:expr),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx2,fma")]
        unsafe fn avx512<E: $crate::engine::element::Element>($($arg: $ty),*) {
            // SAFETY: the features are enabled here; the rest is the caller's.
            unsafe { $body::<$crate::simd::Avx512, E>($($arg),*) }
        }
        let wide: &$crate::engine::kernels::Context = $context;
        match (wide.isa, wide.precision) {
            #[cfg(target_arch = "x86_64")]
            ($crate::engine::Isa::Avx512 | $crate::engine::Isa::Avx512Vnni, $crate::engine::Precision::F32) => {
                avx512::<f32>($($value),*)
            }
            #[cfg(target_arch = "x86_64")]
            ($crate::engine::Isa::Avx512 | $crate::engine::Isa::Avx512Vnni, $crate::engine::Precision::Int8) => {
                avx512::<u8>($($value),*)
            }
            _ => $crate::engine::dispatch::dispatch!(wide, $body($($arg: $ty = $value),*)),
        }
    }};
    ($context:expr, $body:ident($($arg:ident: $ty:ty = $value:expr),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2<E: $crate::engine::element::Element>($($arg: $ty),*) {
            // SAFETY: the features are enabled here; the rest is the caller's.
            unsafe { $body::<$crate::simd::Avx2, E>($($arg),*) }
        }
        #[cfg(not(target_arch = "aarch64"))]
        unsafe fn baseline<E: $crate::engine::element::Element>($($arg: $ty),*) {
            // SAFETY: the caller's.
            unsafe { $body::<$crate::simd::Portable, E>($($arg),*) }
        }
        #[cfg(target_arch = "aarch64")]
        unsafe fn baseline<E: $crate::engine::element::Element>($($arg: $ty),*) {
            // SAFETY: the caller's; Advanced SIMD is in the baseline.
            unsafe { $body::<$crate::simd::Neon, E>($($arg),*) }
        }
        let context: &$crate::engine::kernels::Context = $context;
        match (context.isa, context.precision) {
            #[cfg(target_arch = "x86_64")]
            ($crate::engine::Isa::Portable, $crate::engine::Precision::F32) => baseline::<f32>($($value),*),
            #[cfg(target_arch = "x86_64")]
            ($crate::engine::Isa::Portable, $crate::engine::Precision::Int8) => baseline::<u8>($($value),*),
            #[cfg(target_arch = "x86_64")]
            (_, $crate::engine::Precision::F32) => avx2::<f32>($($value),*),
            #[cfg(target_arch = "x86_64")]
            (_, $crate::engine::Precision::Int8) => avx2::<u8>($($value),*),
            #[cfg(not(target_arch = "x86_64"))]
            (_, $crate::engine::Precision::F32) => baseline::<f32>($($value),*),
            #[cfg(not(target_arch = "x86_64"))]
            (_, $crate::engine::Precision::Int8) => baseline::<u8>($($value),*),
        }
    }};
}
pub(crate) use dispatch;
