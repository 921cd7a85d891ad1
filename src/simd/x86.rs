//! AVX2 with FMA, and AVX-512 F.

#[allow(clippy::wildcard_imports, reason = "the intrinsics' names carry their own prefix")]
use std::arch::x86_64::*;

use super::Vector;

/// Bits of 1.5·2²³ less the exponent bias.
const SHIFT: i32 = 12_582_912f32.to_bits() as i32 - 127;

/// Eight f32 values.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(pub(super) __m256);

/// Sixteen f32 values.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(pub(super) __m512);

macro_rules! vector {
    ($name:ident, $lanes:literal, $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident,
     $div:ident, $max:ident, $min:ident, $fma:ident, $pow2:expr, $load_u8:expr, $store_u8:expr, {$($first:item)*}) => {
        // SAFETY of every call: the trait's contract, the instruction set is there.
        impl Vector for $name {
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn splat(x: f32) -> Self {
                unsafe { Self($splat(x)) }
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> Self {
                unsafe { Self($load(p)) }
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut f32) {
                unsafe { $store(p, self.0) }
            }
            #[inline(always)]
            unsafe fn load_u8(p: *const u8) -> Self {
                unsafe { Self($load_u8(p)) }
            }
            #[inline(always)]
            unsafe fn store_u8(self, p: *mut u8) {
                unsafe { $store_u8(self.0, p) }
            }
            $($first)*
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                unsafe { Self($add(self.0, other.0)) }
            }
            #[inline(always)]
            unsafe fn sub(self, other: Self) -> Self {
                unsafe { Self($sub(self.0, other.0)) }
            }
            #[inline(always)]
            unsafe fn mul(self, other: Self) -> Self {
                unsafe { Self($mul(self.0, other.0)) }
            }
            #[inline(always)]
            unsafe fn div(self, other: Self) -> Self {
                unsafe { Self($div(self.0, other.0)) }
            }
            #[inline(always)]
            unsafe fn max(self, other: Self) -> Self {
                unsafe { Self($max(self.0, other.0)) }
            }
            #[inline(always)]
            unsafe fn min(self, other: Self) -> Self {
                unsafe { Self($min(self.0, other.0)) }
            }
            #[inline(always)]
            unsafe fn fma(self, a: Self, b: Self) -> Self {
                unsafe { Self($fma(a.0, b.0, self.0)) }
            }
            #[inline(always)]
            unsafe fn prefetch(p: *const f32) {
                unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
            }
            #[inline(always)]
            unsafe fn pow2_shifted(self) -> Self {
                unsafe { Self($pow2(self.0)) }
            }
        }
    };
}

#[inline(always)]
unsafe fn pow2_256(x: __m256) -> __m256 {
    // SAFETY: the caller's.
    unsafe {
        let n = _mm256_sub_epi32(_mm256_castps_si256(x), _mm256_set1_epi32(SHIFT));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n))
    }
}

#[inline(always)]
unsafe fn load_u8_256(p: *const u8) -> __m256 {
    // SAFETY: the caller's.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))) }
}

#[inline(always)]
unsafe fn store_u8_256(x: __m256, p: *mut u8) {
    // SAFETY: the caller's.
    unsafe {
        // The upper bound first: what converts to no integer would become the most negative one.
        let words = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_set1_ps(255.0), x));
        let words = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        _mm_storel_epi64(p.cast(), _mm_packus_epi16(words, words));
    }
}

#[inline(always)]
unsafe fn load_u8_512(p: *const u8) -> __m512 {
    // SAFETY: the caller's.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
}

#[inline(always)]
unsafe fn store_u8_512(x: __m512, p: *mut u8) {
    // SAFETY: the caller's.
    unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(u8_words(x))) }
}

/// As words in 0..=255, see [`Vector::store_u8`].
#[inline(always)]
unsafe fn u8_words(x: __m512) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let words = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_set1_ps(255.0), x));
        _mm512_max_epi32(words, _mm512_setzero_si512())
    }
}

#[inline(always)]
unsafe fn pow2_512(x: __m512) -> __m512 {
    // SAFETY: the caller's.
    unsafe {
        let n = _mm512_sub_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(SHIFT));
        _mm512_castsi512_ps(_mm512_slli_epi32::<23>(n))
    }
}

vector!(
    Avx2,
    8,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_add_ps,
    _mm256_sub_ps,
    _mm256_mul_ps,
    _mm256_div_ps,
    _mm256_max_ps,
    _mm256_min_ps,
    _mm256_fmadd_ps,
    pow2_256,
    load_u8_256,
    store_u8_256,
    {}
);
vector!(
    Avx512,
    16,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_add_ps,
    _mm512_sub_ps,
    _mm512_mul_ps,
    _mm512_div_ps,
    _mm512_max_ps,
    _mm512_min_ps,
    _mm512_fmadd_ps,
    pow2_512,
    load_u8_512,
    store_u8_512,
    {
        #[inline(always)]
        unsafe fn load_first(p: *const f32, count: usize) -> Self {
            unsafe { Self(_mm512_maskz_loadu_ps(first(count), p)) }
        }
        #[inline(always)]
        unsafe fn store_first(self, p: *mut f32, count: usize) {
            unsafe { _mm512_mask_storeu_ps(p, first(count), self.0) }
        }
        #[inline(always)]
        unsafe fn load_u8_first(p: *const u8, count: usize) -> Self {
            unsafe {
                if count == Self::LANES {
                    return Self::load_u8(p);
                }
                let bytes = _mm_loadl_epi64(p.cast());
                Self(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)))
            }
        }
        #[inline(always)]
        unsafe fn store_u8_first(self, p: *mut u8, count: usize) {
            unsafe { _mm512_mask_cvtepi32_storeu_epi8(p.cast(), first(count), u8_words(self.0)) }
        }
    }
);

/// A mask of the first `count` of sixteen lanes.
#[inline(always)]
const fn first(count: usize) -> u16 {
    (u32::MAX >> (32 - count as u32)) as u16
}
