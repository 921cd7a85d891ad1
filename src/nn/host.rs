//! Access to tensors in host memory, and memory for what kernels make.

use std::cell::Cell;
use std::mem::MaybeUninit;

use super::simd::Element;
use super::threads::{band, map};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, Error, Layout, Result, Shape, Storage, Tensor};

/// Evaluates `$body` with `$t` as the Rust type of `$dtype`; only f32 and f64 are supported.
macro_rules! with_float {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            other => Err($crate::nn::host::unsupported(other)),
        }
    };
}
pub(super) use with_float;

/// The error for element types without kernels.
pub(super) fn unsupported(dtype: DType) -> Error {
    Error::UnsupportedDTypeForOp(dtype, "nn kernel").bt()
}

/// The element type of a storage.
pub(super) fn dtype(storage: &CpuStorage) -> DType {
    storage.dtype()
}

/// A storage that owns `data`.
pub(super) fn storage<T: Element>(data: Vec<T>) -> CpuStorage {
    T::to_cpu_storage_owned(data)
}

/// The elements of a contiguous tensor inside a custom op's forward.
pub(super) fn slice<'a, T: Element>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let data = T::cpu_storage_as_slice(storage)?;
    match layout.contiguous_offsets() {
        Some((start, end)) => data.get(start..end).ok_or_else(|| Error::Msg("layout exceeds its storage".into()).bt()),
        None => Err(Error::RequiresContiguous { op: "nn kernel" }.bt()),
    }
}

/// As [`slice`], to be written.
pub(super) fn slice_mut<'a, T: Element>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(Error::RequiresContiguous { op: "nn kernel" }.bt());
    };
    let data = T::cpu_storage_as_slice(storage)?;
    let (address, len) = (data.as_ptr().cast_mut(), data.len());
    if end > len {
        return Err(Error::Msg("layout exceeds its storage".into()).bt());
    }
    // SAFETY: candle has no mutable counterpart of `cpu_storage_as_slice`; the storage is borrowed mutably for `'a`, and
    // `start..end` lies inside it.
    Ok(unsafe { std::slice::from_raw_parts_mut(address.add(start), end - start) })
}

/// Runs `f` on the elements of a contiguous CPU tensor.
pub(super) fn read<T: Element, R>(x: &Tensor, f: impl FnOnce(&[T]) -> R) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(slice(storage, layout)?)),
        _ => Err(Error::Msg("nn kernels run on the CPU only; use the tensor-op backend".into()).bt()),
    }
}

/// Runs `f` on the elements of two contiguous CPU tensors.
pub(super) fn read2<T: Element, R>(a: &Tensor, b: &Tensor, f: impl FnOnce(&[T], &[T]) -> R) -> Result<R> {
    read(a, |a| read(b, |b| f(a, b)))?
}

/// Runs `f` on the elements of a contiguous CPU tensor, if there is one.
pub(super) fn read_optional<T: Element, R>(x: Option<&Tensor>, f: impl FnOnce(Option<&[T]>) -> R) -> Result<R> {
    match x {
        Some(x) => read(x, |x| f(Some(x))),
        None => Ok(f(None)),
    }
}

/// A tensor on the CPU that owns `data`.
pub(super) fn tensor<T: Element>(data: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape.into(), &Device::Cpu)
}

/// Calls `f` with memory for `len` values that this thread keeps, from the start of a cache line on: a buffer made anew for
/// each task would wander between threads, and be in the wrong one's caches.
pub(super) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [MaybeUninit<f32>]) -> R) -> R {
    /// Values of the longest cache line that is usual.
    const LINE: usize = 16;
    thread_local! {
        static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    }
    // Taken out, so that `f` may need some, too.
    let mut scratch = SCRATCH.take();
    if scratch.capacity() < len + LINE {
        scratch = Vec::with_capacity(len + LINE);
    }
    let room = scratch.spare_capacity_mut();
    let start = room.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
    let result = f(&mut room[start..start + len]);
    SCRATCH.set(scratch);
    result
}

/// A new vector of `len` elements whose disjoint bands of whole rows threads fill; `f` gets the first row's index
/// and the band, zeroed.
///
/// `rows` is the band height; each row has `width` elements. Each band is zeroed by the thread that fills it, while
/// it is in that thread's cache: zeroing all of a large vector beforehand would cost a pass through memory.
pub(super) fn build_rows<T: Element>(
    len: usize,
    width: usize,
    rows: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    // SAFETY: every element is cleared.
    unsafe { build_whole_rows(len, width, rows, |first, band| f(first, cleared(band))) }
}

/// As [`build_rows`], row by row: many short ones make one piece of work.
pub(super) fn build_lines<T: Element>(len: usize, width: usize, f: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let fill = |first: usize, band: &mut [MaybeUninit<T>]| {
        band.chunks_mut(width).enumerate().for_each(|(i, line)| f(first + i, cleared(line)));
    };
    // SAFETY: every element is cleared.
    unsafe { build_whole_rows(len, width, band(len / width), fill) }
}

/// `values`, all zero.
fn cleared<T: Element>(values: &mut [MaybeUninit<T>]) -> &mut [T] {
    values.fill(MaybeUninit::new(T::ZERO));
    // SAFETY: the line above has initialised every element, and `MaybeUninit<T>` has the layout of `T`.
    unsafe { &mut *(std::ptr::from_mut(values) as *mut [T]) }
}

/// As [`build_rows`], of memory that nobody has cleared.
///
/// # Safety
/// `f` writes every element of the band.
pub(super) unsafe fn build_whole_rows<T: Element>(
    len: usize,
    width: usize,
    rows: usize,
    f: impl Fn(usize, &mut [MaybeUninit<T>]) + Sync,
) -> Vec<T> {
    // SAFETY: the caller's.
    unsafe { build_bands(len, width * rows, |band, out| f(band * rows, out)) }.0
}

/// A new vector of `len` elements in bands of `size` elements, the last one shorter, and what `f` gives for each band, in
/// order; `f` gets the band's number and memory that nobody has cleared.
///
/// # Safety
/// `f` writes every element of the band.
pub(super) unsafe fn build_bands<T: Element, R: Send>(
    len: usize,
    size: usize,
    f: impl Fn(usize, &mut [MaybeUninit<T>]) -> R + Sync,
) -> (Vec<T>, Vec<R>) {
    let mut out = Vec::with_capacity(len);
    let bands = out.spare_capacity_mut()[..len].chunks_mut(size.max(1)).enumerate().collect();
    let found = map(bands, |(band, out)| f(band, out));
    // SAFETY: the bands cover the first `len` elements, and the caller's `f` writes each of them.
    unsafe { out.set_len(len) };
    (out, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_and_integer_tensors_are_refused() {
        let x = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(read::<f32, _>(&x.t().unwrap(), |_| ()).is_err());
        assert!(read::<f64, _>(&x, |_| ()).is_err());
        assert!(read::<f32, _>(&x, |x| assert_eq!(x.len(), 6)).is_ok());
    }
}
