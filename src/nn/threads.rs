//! Work shared by the threads of rayon's pool, in fixed pieces.
//!
//! Work is cut by index alone and partial sums are added in index order: results depend on the number of threads, never
//! on which thread was faster.
//!
//! A step of training is some hundred operations of a few tenths of a millisecond. Rayon's loops hand out their pieces in
//! runs, and whoever finds nothing to do sleeps at once: on two threads a tenth of a small network's time went by with one
//! of them waiting. So pieces are taken one by one here, and both who waits for the last piece and who waits for the next
//! operation look around for a while before they sleep.

use std::cell::Cell;
use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rayon::Yield;

use super::simd::Element;

/// How long a thread without work looks for some before it sleeps: longer than what lies between two operations.
const BETWEEN_OPERATIONS: Duration = Duration::from_micros(300);
/// Turns of a waiting loop between two looks.
const TURNS_BETWEEN_LOOKS: usize = 16;
/// Values that are added up in no time.
const SMALL_PARTIAL: usize = 48 << 10;
/// Values of a sum that one thread adds up.
const SUM_PIECE: usize = 1 << 14;

/// Number of threads that kernels may use.
pub(super) fn threads() -> usize {
    rayon::current_num_threads().max(1)
}

/// Calls `f` with each of `0..count`.
///
/// Half of the threads begin at the front and half at the back: with two, each finds in its caches what it made in the
/// operation before.
///
/// # Panics
/// If `f` does.
pub(super) fn for_each_index(count: usize, f: impl Fn(usize) + Sync) {
    let helpers = (threads() - 1).min(count.saturating_sub(1));
    if helpers == 0 {
        return (0..count).for_each(f);
    }
    let (pieces, done) = (Pieces::new(count), AtomicUsize::new(0));
    let work = |from_front: bool| {
        while let Some(index) = pieces.take(from_front) {
            let _counts = CountsAtEnd(&done);
            f(index);
        }
    };
    let work = &work;
    rayon::scope(|scope| {
        for helper in 0..helpers {
            scope.spawn(move |_| work(helper % 2 == 1));
        }
        work(true);
        let since = Instant::now();
        while done.load(Ordering::Acquire) < count && has_own_processor() && since.elapsed() < BETWEEN_OPERATIONS {
            pause();
        }
    });
}

/// Calls `f` with each of `items`; the results are in their order.
///
/// # Panics
/// If `f` does.
pub(super) fn map<T: Send, R: Send>(items: Vec<T>, f: impl Fn(T) -> R + Sync) -> Vec<R> {
    let cells: Vec<_> = items.into_iter().map(|item| Mutex::new((Some(item), None))).collect();
    for_each_index(cells.len(), |index| {
        let mut cell = cells[index].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(item) = cell.0.take() {
            cell.1 = Some(f(item));
        }
    });
    cells.into_iter().filter_map(|cell| cell.into_inner().unwrap_or_else(PoisonError::into_inner).1).collect()
}

/// Keeps the other threads of this thread's pool from going to sleep between operations that follow closely. Costs nothing
/// where they come late: each thread gives up by itself.
pub(crate) fn keep_awake() {
    thread_local! {
        static IS_LOOKING: Cell<bool> = const { Cell::new(false) };
    }
    let Some(caller) = rayon::current_thread_index() else { return };
    if threads() == 1 || !has_own_processor() {
        return;
    }
    rayon::spawn_broadcast(move |thread| {
        // What is found may be this very task, sent again.
        if thread.index() == caller || IS_LOOKING.replace(true) {
            return;
        }
        let mut last = Instant::now();
        while last.elapsed() < BETWEEN_OPERATIONS {
            if rayon::yield_now() == Some(Yield::Executed) {
                last = Instant::now();
            }
            pause();
        }
        IS_LOOKING.set(false);
    });
}

fn pause() {
    (0..TURNS_BETWEEN_LOOKS).for_each(|_| std::hint::spin_loop());
}

/// Whether a thread that waits keeps no other from working: there are no more of them than processors.
fn has_own_processor() -> bool {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    threads() <= *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, NonZero::get))
}

/// Indices that nobody has taken yet: those from the upper half of the number to the lower.
struct Pieces(AtomicU64);

impl Pieces {
    fn new(count: usize) -> Self {
        Self(AtomicU64::new(u64::from(u32::try_from(count).expect("fewer than 2³² pieces of work"))))
    }

    fn take(&self, from_front: bool) -> Option<usize> {
        let mut taken = None;
        let rest = |left: u64| {
            let (first, end) = (left >> 32, left & u64::from(u32::MAX));
            taken = (first < end).then_some(if from_front { first } else { end.wrapping_sub(1) });
            taken.map(|_| if from_front { left + (1 << 32) } else { left - 1 })
        };
        // What the pieces read and write is handed over by the scope and by `done`.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
        taken.map(|index| index as usize)
    }
}

/// Counts a piece also when it panics, or its waiter would wait in vain.
struct CountsAtEnd<'a>(&'a AtomicUsize);

impl Drop for CountsAtEnd<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// Cuts `0..len` into at most `parts` contiguous ranges of nearly equal, never zero, length.
pub(super) fn split(len: usize, parts: usize) -> Vec<Range<usize>> {
    let parts = parts.clamp(1, len.max(1));
    (0..parts).map(|i| i * len / parts..(i + 1) * len / parts).filter(|r| !r.is_empty()).collect()
}

/// Band height that gives every thread a few bands of `rows` rows: enough to balance, few enough to be cheap.
pub(super) fn band(rows: usize) -> usize {
    rows.div_ceil(4 * threads()).max(1)
}

/// Computes partial results of `size` values over `0..len`; they come in index order. One per thread, or a few where they
/// are small: a thread that comes late takes fewer then.
pub(super) fn partials<A: Send>(len: usize, size: usize, f: impl Fn(Range<usize>) -> A + Sync) -> Vec<A> {
    map(split(len, part_count(size)), f)
}

/// How many partial results of `size` values there are.
pub(super) fn part_count(size: usize) -> usize {
    if size <= SMALL_PARTIAL { 4 * threads() } else { threads() }
}

/// Adds partial sums in index order.
pub(super) fn add_up<T: Element>(parts: Vec<Vec<T>>) -> Vec<T> {
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_default();
    let rest: Vec<Vec<T>> = parts.collect();
    let pieces = total.chunks_mut(SUM_PIECE).enumerate().collect();
    map(pieces, |(piece, total)| {
        for part in &rest {
            let part = &part[piece * SUM_PIECE..];
            total.iter_mut().zip(part).for_each(|(total, value)| *total += *value);
        }
    });
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(threads: usize, f: impl FnOnce() + Send) {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f);
    }

    #[test]
    fn every_index_comes_once_and_results_are_in_order() {
        for threads in [1, 2, 3, 5] {
            on(threads, || {
                for count in [0, 1, 2, 7, 1000] {
                    keep_awake();
                    let items: Vec<usize> = (0..count).collect();
                    let expected: Vec<usize> = items.iter().map(|i| i * i).collect();
                    assert_eq!(map(items, |i| i * i), expected, "{count} on {threads} threads");
                }
            });
        }
    }

    #[test]
    fn pieces_of_pieces_are_done_too() {
        on(3, || {
            let sums = map((0..20).collect(), |i: usize| map((0..i).collect(), |j: usize| j).len());
            assert_eq!(sums, (0..20).collect::<Vec<_>>());
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        on(2, || {
            for bad in [0, 5, 9] {
                let outcome = std::panic::catch_unwind(|| for_each_index(10, |i| assert_ne!(i, bad)));
                assert!(outcome.is_err());
            }
            assert_eq!(map(vec![1, 2, 3], |i| 2 * i), [2, 4, 6]);
        });
    }

    #[test]
    fn split_covers_the_range_without_empty_parts() {
        for len in [0, 1, 2, 7, 100] {
            for parts in [1, 2, 3, 8, 200] {
                let ranges = split(len, parts);
                assert_eq!(ranges.iter().cloned().flatten().collect::<Vec<_>>(), (0..len).collect::<Vec<_>>());
                assert!(ranges.len() <= parts && ranges.iter().all(|r| !r.is_empty()));
            }
        }
    }

    #[test]
    fn sums_are_added_in_order() {
        let parts = vec![vec![1e8_f32; 40_000], vec![1.0; 40_000], vec![-1e8; 40_000]];
        assert_eq!(add_up(parts), vec![(1e8_f32 + 1.0) - 1e8; 40_000]);
        assert_eq!(add_up::<f32>(Vec::new()), Vec::<f32>::new());
    }
}
