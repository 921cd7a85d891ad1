//! The threads of one engine.
//!
//! A plan has a hundred steps of some ten microseconds each; the threads go through it together and meet after every
//! step. So they wait by spinning for a short while, and sleep only when there is nothing to do for longer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Turns of a waiting loop before the processor is offered to others: some tens of microseconds.
const SPINS_BEFORE_YIELD: usize = 2_000;
/// Turns before an idle worker sleeps: some hundreds of microseconds, the gap between two requests under load.
const SPINS_BEFORE_SLEEP: usize = 20_000;

/// A job as the workers see it. The lifetime is erased; [`Pool::run`] returns only after the last use.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(usize) + Sync));

// SAFETY: the closure behind the pointer is `Sync`, and `Pool::run` keeps it alive until every worker is done.
unsafe impl Send for Job {}

struct Shared {
    job: Mutex<Option<Job>>,
    wake: Condvar,
    /// Number of the current job.
    epoch: AtomicUsize,
    /// Workers that have not finished it.
    running: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

/// Worker threads that run one closure at a time, each with its own index; the caller is worker 0.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// `threads` workers in all; `threads − 1` are started.
    ///
    /// # Errors
    /// The system's reason when it gives no thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            job: Mutex::new(None),
            wake: Condvar::new(),
            epoch: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self { shared, workers: Vec::new() };
        for index in 1..threads.max(1) {
            let shared = pool.shared.clone();
            let worker = std::thread::Builder::new().name(format!("engine-{index}"));
            pool.workers.push(worker.spawn(move || work(&shared, index))?);
        }
        Ok(pool)
    }

    /// Number of workers, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job(index)` on every worker at the same time and returns when all are done.
    ///
    /// # Panics
    /// If `job` panics on a worker.
    pub fn run(&mut self, job: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return job(0);
        }
        let erased: *const (dyn Fn(usize) + Sync + '_) = job;
        // SAFETY: only the lifetime changes; the pointer is used until `running` is 0, which is awaited below.
        let erased: *const (dyn Fn(usize) + Sync + 'static) = unsafe { std::mem::transmute(erased) };
        {
            let mut slot = self.shared.job.lock().unwrap_or_else(PoisonError::into_inner);
            *slot = Some(Job(erased));
            self.shared.running.store(self.workers.len(), Ordering::Relaxed);
            self.shared.epoch.fetch_add(1, Ordering::Release);
        }
        self.shared.wake.notify_all();
        // Waits also when `job` panics here: the workers still use it.
        let _wait = WaitForWorkers(&self.shared);
        job(0);
    }
}

struct WaitForWorkers<'a>(&'a Shared);

impl Drop for WaitForWorkers<'_> {
    fn drop(&mut self) {
        spin_until(|| self.0.running.load(Ordering::Acquire) == 0);
        if self.0.panicked.swap(false, Ordering::Relaxed) && !std::thread::panicking() {
            panic!("an engine thread panicked");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let _slot = self.shared.job.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.stop.store(true, Ordering::Relaxed);
            self.shared.epoch.fetch_add(1, Ordering::Release);
        }
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker reports panics through `panicked`.
            let _ = worker.join();
        }
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        let mut turns = 0;
        while shared.epoch.load(Ordering::Acquire) == seen && turns < SPINS_BEFORE_SLEEP {
            std::hint::spin_loop();
            turns += 1;
        }
        let job = {
            let mut slot = shared.job.lock().unwrap_or_else(PoisonError::into_inner);
            while shared.epoch.load(Ordering::Acquire) == seen {
                slot = shared.wake.wait(slot).unwrap_or_else(PoisonError::into_inner);
            }
            *slot
        };
        seen = shared.epoch.load(Ordering::Acquire);
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        if let Some(Job(job)) = job {
            // SAFETY: `Pool::run` keeps the closure alive until `running` is 0.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| unsafe { (*job)(index) }));
            if outcome.is_err() {
                shared.panicked.store(true, Ordering::Relaxed);
            }
        }
        shared.running.fetch_sub(1, Ordering::Release);
    }
}

/// Waits without sleeping, but lets others run when it takes long.
fn spin_until(done: impl Fn() -> bool) {
    let mut turns = 0;
    while !done() {
        turns += 1;
        if turns < SPINS_BEFORE_YIELD {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

/// A meeting point of all workers, used again and again.
pub(super) struct Barrier {
    threads: usize,
    arrived: AtomicUsize,
    round: AtomicUsize,
}

impl Barrier {
    /// A barrier for `threads` workers.
    pub fn new(threads: usize) -> Self {
        Self { threads, arrived: AtomicUsize::new(0), round: AtomicUsize::new(0) }
    }

    /// Returns when all workers have called it. What they wrote before is visible to all after. Whoever comes last calls
    /// `all_here` before anybody goes on.
    pub fn wait(&self, all_here: impl FnOnce()) {
        let round = self.round.load(Ordering::Relaxed);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            all_here();
            self.arrived.store(0, Ordering::Relaxed);
            self.round.store(round.wrapping_add(1), Ordering::Release);
        } else {
            spin_until(|| self.round.load(Ordering::Acquire) != round);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_runs_every_job_and_sees_what_the_others_wrote() {
        for threads in [1, 2, 3] {
            let mut pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            let barrier = Barrier::new(threads);
            for round in 1..200 {
                let marks: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
                let sums: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
                pool.run(&|worker| {
                    marks[worker].store(round, Ordering::Relaxed);
                    barrier.wait(|| {});
                    sums[worker].store(marks.iter().map(|m| m.load(Ordering::Relaxed)).sum(), Ordering::Relaxed);
                });
                assert!(sums.iter().all(|s| s.load(Ordering::Relaxed) == round * threads));
            }
        }
    }

    #[test]
    fn a_sleeping_worker_wakes() {
        let mut pool = Pool::new(2).unwrap();
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let calls = AtomicUsize::new(0);
            pool.run(&|_| {
                calls.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(calls.into_inner(), 2);
        }
    }

    #[test]
    fn a_panic_on_a_worker_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(2).unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(&|worker| assert!(worker == 0, "worker {worker} fails"));
        }));
        assert!(outcome.is_err());
        let calls = AtomicUsize::new(0);
        pool.run(&|_| {
            calls.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(calls.into_inner(), 2);
    }
}
