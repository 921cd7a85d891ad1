//! The program's allocator: the system's, with large blocks kept for reuse.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Blocks from this size on are mappings of their own and are kept when freed.
const LARGE: usize = 1 << 18;
/// Sizes are rounded up to this. A multiple of every usual page size.
const ROUND: usize = 1 << 16;
/// Mappings from this size on ask for huge pages: one page fault in place of hundreds.
const HUGE: usize = 2 << 20;
/// How much the system's allocator may hold free at the end of its heap.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const HEAP_END: usize = 64 << 20;
/// How many free ranges are kept at most.
const SLOTS: usize = 1024;
/// Up to this many bytes are held in all cases, in use and kept together.
const FLOOR: usize = 256 << 20;
/// What is held may exceed the most that was ever in use by one part in this, for the holes between blocks.
const SLACK: usize = 8;

/// Reuses large blocks.
///
/// A training step allocates and frees the same activation-sized buffers over and over. The system maps each one anew,
/// and its page faults cost several times the arithmetic on it; from one heap instead, the holes between them double
/// the process. Here a freed block is kept, neighbours join, and the smallest range that is large enough serves the next
/// request. Where a new one has to be mapped, free ranges are given back first, so that the process never holds much more
/// than the largest amount that was in use at one time (or 256 MiB).
#[derive(Debug)]
pub struct ReusingAllocator {
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    /// Address and size of free ranges, by address; no two touch, only the first `len` count.
    blocks: [(usize, usize); SLOTS],
    len: usize,
    /// Bytes of the free ranges.
    bytes: usize,
    /// Bytes of large blocks in use, and the most there ever were.
    used: usize,
    peak: usize,
}

impl ReusingAllocator {
    /// An allocator that keeps nothing yet.
    #[expect(clippy::new_without_default, reason = "made once, in a static")]
    pub const fn new() -> Self {
        Self { kept: Mutex::new(Kept { blocks: [(0, 0); SLOTS], len: 0, bytes: 0, used: 0, peak: FLOOR }) }
    }

    /// Makes the system's allocator keep its memory, too: of its own accord it maps each block of a few hundred kilobytes
    /// anew, and returns the end of its heap again and again, and each time pages are cleared. To be called first.
    pub fn keep_small_blocks(&self) {
        // SAFETY: the calls have no preconditions; sizes are those of `c_int`s.
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE as libc::c_int);
            libc::mallopt(libc::M_TRIM_THRESHOLD, HEAP_END as libc::c_int);
        }
    }

    /// Gives the kept blocks back to the system, and what the system's allocator keeps with them. For a program that goes
    /// on with less: a server after it replaced a model.
    pub fn release(&self) {
        let mut kept = self.kept();
        let all = kept.bytes;
        kept.give_back(all);
        // The next peak is measured from here.
        kept.peak = kept.used.max(FLOOR);
        drop(kept);
        // SAFETY: the call has no preconditions.
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        unsafe {
            libc::malloc_trim(0);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A large block and whether its bytes are zero.
    fn take(&self, size: usize) -> (*mut u8, bool) {
        let mut kept = self.kept();
        kept.used += size;
        kept.peak = kept.peak.max(kept.used);
        if let Some(block) = kept.take_fitting(size) {
            return (block as *mut u8, false);
        }
        kept.shrink();
        drop(kept);
        // SAFETY: a new private mapping touches no memory of ours.
        let block = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(ptr::null_mut(), size, access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        if block == libc::MAP_FAILED {
            return (ptr::null_mut(), true);
        }
        #[cfg(target_os = "linux")]
        if size >= HUGE {
            // SAFETY: the range was mapped above. Advice: if it is not taken, nothing is lost.
            unsafe { libc::madvise(block, size, libc::MADV_HUGEPAGE) };
        }
        (block.cast(), true)
    }
}

impl Kept {
    /// Takes `size` bytes from the smallest range that has them.
    fn take_fitting(&mut self, size: usize) -> Option<usize> {
        let fitting = self.blocks[..self.len].iter().enumerate().filter(|(_, block)| block.1 >= size);
        let (index, &(address, have)) = fitting.min_by_key(|(_, block)| block.1)?;
        self.bytes -= size;
        if have == size {
            self.remove(index);
        } else {
            self.blocks[index] = (address + size, have - size);
        }
        Some(address)
    }

    /// Gives back what is held beyond the most that was in use, and some slack.
    fn shrink(&mut self) {
        let limit = self.peak + self.peak / SLACK;
        self.give_back((self.used + self.bytes).saturating_sub(limit));
    }

    /// Unmaps at least `excess` bytes of free ranges, if there are as many, the largest ranges first.
    fn give_back(&mut self, mut excess: usize) {
        while excess > 0 && self.len > 0 {
            let largest = self.blocks[..self.len].iter().enumerate().max_by_key(|(_, block)| block.1);
            let Some((index, &(address, have))) = largest else { return };
            let size = excess.next_multiple_of(ROUND).min(have);
            if size == have {
                self.remove(index);
            } else {
                self.blocks[index].1 -= size;
            }
            self.bytes -= size;
            excess = excess.saturating_sub(size);
            unmap(address + have - size, size);
        }
    }

    /// Takes range `index` out of the list.
    fn remove(&mut self, index: usize) {
        self.blocks.copy_within(index + 1..self.len, index);
        self.len -= 1;
    }

    /// Keeps a block that was in use, joined with free neighbours.
    fn keep(&mut self, address: usize, size: usize) {
        self.used = self.used.saturating_sub(size);
        let index = self.blocks[..self.len].partition_point(|block| block.0 < address);
        let before = index.checked_sub(1).filter(|&i| self.blocks[i].0 + self.blocks[i].1 == address);
        let after = (index < self.len && address + size == self.blocks[index].0).then_some(index);
        match (before, after) {
            (Some(before), Some(after)) => {
                self.blocks[before].1 += size + self.blocks[after].1;
                self.remove(after);
            }
            (Some(before), None) => self.blocks[before].1 += size,
            (None, Some(after)) => self.blocks[after] = (address, size + self.blocks[after].1),
            (None, None) if self.len == SLOTS => return unmap(address, size),
            (None, None) => {
                self.blocks.copy_within(index..self.len, index + 1);
                self.blocks[index] = (address, size);
                self.len += 1;
            }
        }
        self.bytes += size;
    }
}

fn unmap(address: usize, size: usize) {
    // SAFETY: the range was mapped by `take`, is page aligned, and nobody uses it any more. The result is not needed:
    // on failure the pages merely stay mapped.
    unsafe {
        libc::munmap(address as *mut libc::c_void, size);
    }
}

/// The size of the mapping for a large `layout`; `None` for what the system's allocator serves.
fn large(layout: Layout) -> Option<usize> {
    let is_large = layout.size() >= LARGE && layout.align() <= 4096;
    is_large.then(|| layout.size().checked_next_multiple_of(ROUND)).flatten()
}

// SAFETY: small blocks are the system allocator's in every method. Large ones are private mappings of at least the
// layout's size, aligned to pages; the same layout decides in `alloc` and `dealloc`, and a block is in `kept` only
// between the two, under the lock. No method allocates through itself or unwinds.
unsafe impl GlobalAlloc for ReusingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match large(layout) {
            Some(size) => self.take(size).0,
            // SAFETY: the caller's obligations are the system allocator's.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's obligations are the system allocator's; a reused block has at least `size` bytes.
        unsafe {
            let Some(size) = large(layout) else { return System.alloc_zeroed(layout) };
            let (block, zeroed) = self.take(size);
            if !zeroed {
                ptr::write_bytes(block, 0, layout.size());
            }
            block
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match large(layout) {
            Some(size) => self.kept().keep(block as usize, size),
            // SAFETY: the block came from the system allocator under this layout.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `new_size` makes a valid layout, and that `block` has `layout`.
        unsafe {
            let new_layout = Layout::from_size_align_unchecked(new_size, layout.align());
            match (large(layout), large(new_layout)) {
                (None, None) => System.realloc(block, layout, new_size),
                (Some(old), Some(new)) if old == new => block,
                _ => {
                    let moved = self.alloc(new_layout);
                    if !moved.is_null() {
                        ptr::copy_nonoverlapping(block, moved, layout.size().min(new_size));
                        self.dealloc(block, layout);
                    }
                    moved
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 64).unwrap()
    }

    fn kept(allocator: &ReusingAllocator) -> usize {
        let kept = allocator.kept();
        let sum = kept.blocks[..kept.len].iter().map(|b| b.1).sum();
        assert_eq!(kept.bytes, sum);
        let gaps = kept.blocks[..kept.len].windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0);
        assert!(gaps, "free ranges overlap, touch or are out of order");
        sum
    }

    #[test]
    fn a_freed_block_serves_the_next_request_of_its_size() {
        let allocator = ReusingAllocator::new();
        // SAFETY: each block is freed once, with the layout it was made for, and not used afterwards.
        unsafe {
            let first = allocator.alloc(layout(3 << 20));
            first.write_bytes(7, 3 << 20);
            allocator.dealloc(first, layout(3 << 20));
            assert_eq!(kept(&allocator), 3 << 20);
            let second = allocator.alloc_zeroed(layout((3 << 20) - 100));
            assert_eq!(second, first);
            assert!((0..(3 << 20) - 100).all(|i| *second.add(i) == 0), "a zeroed block holds old bytes");
            assert_eq!(kept(&allocator), 0);
            allocator.dealloc(second, layout((3 << 20) - 100));
        }
    }

    #[test]
    fn no_more_is_held_than_was_in_use_at_one_time() {
        let allocator = ReusingAllocator::new();
        let half = FLOOR / 2;
        // SAFETY: as above; the blocks are never touched, so no memory is spent on them.
        unsafe {
            let blocks: Vec<_> = (0..3).map(|_| allocator.alloc(layout(half))).collect();
            blocks.into_iter().for_each(|block| allocator.dealloc(block, layout(half)));
            assert_eq!(kept(&allocator), 3 * half, "all three were in use at once");
            let most = 3 * half + 3 * half / SLACK;
            let large = allocator.alloc(layout(5 * half / 2));
            assert!(kept(&allocator) + 5 * half / 2 <= most, "{} bytes are kept", kept(&allocator));
            allocator.dealloc(large, layout(5 * half / 2));
            assert!(kept(&allocator) <= most);
        }
    }

    #[test]
    fn what_is_released_is_kept_no_longer() {
        let allocator = ReusingAllocator::new();
        // SAFETY: as above.
        unsafe {
            let (a, b) = (allocator.alloc(layout(2 << 20)), allocator.alloc(layout(3 << 20)));
            allocator.dealloc(a, layout(2 << 20));
            allocator.release();
            assert_eq!(kept(&allocator), 0);
            b.write_bytes(1, 3 << 20);
            allocator.dealloc(b, layout(3 << 20));
            assert_eq!(kept(&allocator), 3 << 20);
        }
    }

    #[test]
    fn growing_and_shrinking_across_the_border_keeps_the_bytes() {
        let allocator = ReusingAllocator::new();
        // SAFETY: as above; `realloc` hands the old block over.
        unsafe {
            let mut block = allocator.alloc(layout(1000));
            (0..1000).for_each(|i| block.add(i).write((i % 251) as u8));
            let mut size = 1000;
            for next in [LARGE - 1, LARGE, LARGE + 1, 5 * LARGE, LARGE, 2000] {
                block = allocator.realloc(block, layout(size), next);
                size = next;
                assert!((0..1000).all(|i| *block.add(i) == (i % 251) as u8), "bytes lost at size {next}");
            }
            allocator.dealloc(block, layout(size));
        }
    }

    #[test]
    fn parts_of_a_block_join_again() {
        let allocator = ReusingAllocator::new();
        // SAFETY: as above.
        unsafe {
            let whole = allocator.alloc(layout(8 << 20));
            allocator.dealloc(whole, layout(8 << 20));
            let parts: Vec<_> = (0..4).map(|_| allocator.alloc(layout(2 << 20))).collect();
            assert_eq!(parts[0], whole);
            assert_eq!(kept(&allocator), 0);
            for i in [0, 2, 3, 1] {
                allocator.dealloc(parts[i], layout(2 << 20));
                kept(&allocator);
            }
            assert_eq!(allocator.kept().blocks[0], (whole as usize, 8 << 20));
            assert_eq!(allocator.alloc(layout(8 << 20)), whole);
            allocator.dealloc(whole, layout(8 << 20));
        }
    }

    #[test]
    fn more_ranges_than_slots_are_given_back() {
        let allocator = ReusingAllocator::new();
        // SAFETY: as above.
        unsafe {
            let blocks: Vec<_> = (0..2 * SLOTS + 10).map(|_| allocator.alloc(layout(LARGE))).collect();
            // Every second one, so that none touch.
            let mut sorted = blocks.clone();
            sorted.sort_unstable();
            sorted.iter().step_by(2).for_each(|block| allocator.dealloc(*block, layout(LARGE)));
            assert!(allocator.kept().len <= SLOTS);
            sorted.iter().skip(1).step_by(2).for_each(|block| allocator.dealloc(*block, layout(LARGE)));
            assert!(kept(&allocator) <= sorted.len() * LARGE);
        }
    }
}
