//! Activation memory: what lives when, and where it lies.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Every buffer starts at a multiple of this many values (one cache line).
const ALIGNMENT: usize = 16;

/// A buffer's size and the steps between which it is needed, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lifetime {
    /// Values.
    pub size: usize,
    /// The step that writes it.
    pub first: usize,
    /// The last step that reads it.
    pub last: usize,
}

/// Places buffers so that no two that live at the same time overlap: offsets in values, and the total.
///
/// Greedy by size: the largest first, each at the lowest place that is free during its life.
///
/// # Source
/// Pisarchyk and Lee 2020, arXiv:2001.03288, "greedy by size".
pub(super) fn place(buffers: &[Lifetime]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(buffers[i].size));
    let mut offsets = vec![0; buffers.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0;
    for i in order {
        let b = buffers[i];
        let mut busy: Vec<(usize, usize)> = (placed.iter())
            .filter(|&&j| buffers[j].first <= b.last && b.first <= buffers[j].last)
            .map(|&j| (offsets[j], offsets[j] + buffers[j].size))
            .collect();
        busy.sort_unstable();
        let mut start: usize = 0;
        for (from, to) in busy {
            if start + b.size <= from {
                break;
            }
            start = start.max(to.next_multiple_of(ALIGNMENT));
        }
        offsets[i] = start;
        total = total.max(start + b.size);
        placed.push(i);
    }
    (offsets, total)
}

/// Zeroed f32 memory on a cache-line boundary, shared by threads that write to disjoint parts.
pub(super) struct Memory {
    start: NonNull<f32>,
    len: usize,
}

// SAFETY: plain memory; who writes where is the plan's business, see `Memory::as_ptr`.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) }.cast::<f32>();
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, len }
    }

    fn layout(len: usize) -> Layout {
        let bytes = len.max(1).saturating_mul(size_of::<f32>());
        match Layout::from_size_align(bytes, ALIGNMENT * size_of::<f32>()) {
            Ok(layout) => layout,
            // More than half of the address space: no allocator has it.
            Err(_) => handle_alloc_error(Layout::new::<f32>()),
        }
    }

    /// Values.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// The first value. Whoever writes through it sees to it that nobody else uses the same place at that time.
    pub const fn as_ptr(&self) -> *mut f32 {
        self.start.as_ptr()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with the same layout.
        unsafe { dealloc(self.start.as_ptr().cast(), Self::layout(self.len)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_that_lives_at_the_same_time_overlaps(
            raw in prop::collection::vec((1usize..500, 0usize..20, 0usize..6), 1..40)
        ) {
            let buffers: Vec<Lifetime> =
                raw.iter().map(|&(size, first, life)| Lifetime { size, first, last: first + life }).collect();
            let (offsets, total) = place(&buffers);
            for (i, a) in buffers.iter().enumerate() {
                prop_assert!(offsets[i] % ALIGNMENT == 0 && offsets[i] + a.size <= total);
                for (j, b) in buffers.iter().enumerate().skip(i + 1) {
                    let together = a.first <= b.last && b.first <= a.last;
                    let apart = offsets[i] + a.size <= offsets[j] || offsets[j] + b.size <= offsets[i];
                    prop_assert!(!together || apart, "{i} and {j} overlap");
                }
            }
        }
    }

    #[test]
    fn a_chain_needs_two_buffers() {
        let chain: Vec<Lifetime> = (0..10).map(|i| Lifetime { size: 160, first: i, last: i + 1 }).collect();
        assert_eq!(place(&chain).1, 320);
    }

    #[test]
    fn memory_is_aligned_and_zero() {
        let memory = Memory::zeroed(100);
        assert_eq!(memory.as_ptr() as usize % 64, 0);
        // SAFETY: 100 values, nobody else knows of them.
        let values = unsafe { std::slice::from_raw_parts(memory.as_ptr(), memory.len()) };
        assert!(values.iter().all(|&x| x == 0.0));
        Memory::zeroed(0);
    }
}
