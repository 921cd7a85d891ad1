//! A checked wrapper of matrix multiplication on strided views.

use gemm::Parallelism;

use super::simd::{Element, isa};
use crate::simd::CHANNEL_BLOCK;
use crate::simd::outer::{OuterProduct, outer_product};

/// A strided matrix that is read.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a, T> {
    data: &'a [T],
    size: [usize; 2],
    stride: [usize; 2],
}

/// A strided matrix that is written.
pub(super) struct MatMut<'a, T> {
    data: &'a mut [T],
    size: [usize; 2],
    stride: [usize; 2],
}

impl<'a, T> Mat<'a, T> {
    /// `size[0]` rows of `size[1]` contiguous elements, `row_stride` apart.
    pub fn rows(data: &'a [T], size: [usize; 2], row_stride: usize) -> Self {
        Self { data, size, stride: [row_stride, 1] }
    }

    /// The same elements with rows and columns exchanged.
    pub fn t(self) -> Self {
        let Self { data, size: [m, n], stride: [r, c] } = self;
        Self { data, size: [n, m], stride: [c, r] }
    }
}

impl<'a, T> MatMut<'a, T> {
    /// `size[0]` rows of `size[1]` contiguous elements, `row_stride` apart.
    pub fn rows(data: &'a mut [T], size: [usize; 2], row_stride: usize) -> Self {
        Self { data, size, stride: [row_stride, 1] }
    }
}

/// `dst += lhs · rhs`.
///
/// # Panics
/// If sizes do not fit together or a view reaches past its slice.
pub(super) fn add_product<T: Element>(dst: MatMut<T>, lhs: Mat<T>, rhs: Mat<T>, parallelism: Parallelism) {
    let ([m, k], n) = (lhs.size, rhs.size[1]);
    assert!(rhs.size[0] == k && dst.size == [m, n], "matrix sizes do not fit together");
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let fits =
        |len: usize, size: [usize; 2], stride: [usize; 2]| (size[0] - 1) * stride[0] + (size[1] - 1) * stride[1] < len;
    assert!(fits(dst.data.len(), dst.size, dst.stride), "product reaches past its destination");
    assert!(fits(lhs.data.len(), lhs.size, lhs.stride), "left matrix reaches past its data");
    assert!(fits(rhs.data.len(), rhs.size, rhs.stride), "right matrix reaches past its data");
    // SAFETY: the asserts above keep every access (i, j) at i * row stride + j * column stride inside its slice;
    // `dst` is borrowed mutably, so it overlaps neither operand; its row stride is at least its width.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.data.as_mut_ptr(),
            dst.stride[1] as isize,
            dst.stride[0] as isize,
            true,
            lhs.data.as_ptr(),
            lhs.stride[1] as isize,
            lhs.stride[0] as isize,
            rhs.data.as_ptr(),
            rhs.stride[1] as isize,
            rhs.stride[0] as isize,
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `dst += lhsᵀ · rhs`, without packing anything where one thread computes it in f32 and whole vectors fit the width.
///
/// # Panics
/// As [`add_product`].
pub(super) fn add_outer_product<T: Element>(dst: MatMut<T>, lhs: Mat<T>, rhs: Mat<T>, parallelism: Parallelism) {
    let [len, rows] = lhs.size;
    let in_place = matches!(parallelism, Parallelism::None) && dst.size[1].is_multiple_of(CHANNEL_BLOCK);
    let rows_are_whole = [dst.stride[1], lhs.stride[1], rhs.stride[1]] == [1; 3];
    let (Some(a), Some(b), true) = (T::singles(lhs.data), T::singles(rhs.data), in_place && rows_are_whole) else {
        return add_product(dst, lhs.t(), rhs, parallelism);
    };
    assert!(rhs.size[0] == len && dst.size == [rows, rhs.size[1]], "matrix sizes do not fit together");
    if len == 0 || rows == 0 || rhs.size[1] == 0 {
        return;
    }
    let fits = |len: usize, size: [usize; 2], stride: usize| (size[0] - 1) * stride + size[1] <= len;
    assert!(fits(dst.data.len(), dst.size, dst.stride[0]), "product reaches past its destination");
    assert!(fits(a.len(), lhs.size, lhs.stride[0]), "left matrix reaches past its data");
    assert!(fits(b.len(), rhs.size, rhs.stride[0]), "right matrix reaches past its data");
    let product = OuterProduct {
        a: a.as_ptr(),
        a_stride: lhs.stride[0],
        b: b.as_ptr(),
        b_stride: rhs.stride[0],
        out: dst.data.as_mut_ptr().cast(),
        out_stride: dst.stride[0],
        len,
        size: dst.size,
        add: true,
    };
    // SAFETY: T is f32, or there were no singles; the asserts above keep every row inside its slice; `dst` is borrowed
    // mutably, so it overlaps neither factor; this processor has the instruction set that was found on it.
    unsafe { outer_product(isa(), &product) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_accumulate_on_strided_views() {
        // Two columns of a 2 x 3 buffer receive [[1, 2], [3, 4]] · [[1, 0], [1, 1]] on top of ones.
        let mut out = vec![1f32; 6];
        let (a, b) = ([1., 2., 3., 4.], [1., 1., 0., 1.]);
        add_product(
            MatMut::rows(&mut out[1..], [2, 2], 3),
            Mat::rows(&a, [2, 2], 2),
            Mat::rows(&b, [2, 2], 2).t(),
            Parallelism::None,
        );
        assert_eq!(out, [1., 4., 3., 1., 8., 5.]);
    }

    #[test]
    #[should_panic(expected = "past its destination")]
    fn a_short_destination_panics() {
        let mut out = [0f64; 3];
        let a = [0f64; 4];
        add_product(
            MatMut::rows(&mut out, [2, 2], 2),
            Mat::rows(&a, [2, 2], 2),
            Mat::rows(&a, [2, 2], 2),
            Parallelism::None,
        );
    }
}
