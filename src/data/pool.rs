//! A few threads that work through jobs and hand the results back in the order of the jobs.
//!
//! Not rayon: its global pool belongs to the arithmetic, and a decoder that waits for a disk must not hold it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::error::{Error, Result};

/// Threads that turn jobs `J` into results `R`; dropped, it stops them and waits.
#[derive(Debug)]
pub(super) struct OrderedPool<J, R> {
    jobs: Option<Sender<(u64, J)>>,
    results: Receiver<(u64, std::thread::Result<R>)>,
    /// Results that came before their turn.
    early: BTreeMap<u64, std::thread::Result<R>>,
    submitted: u64,
    delivered: u64,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl<J: Send + 'static, R: Send + 'static> OrderedPool<J, R> {
    /// Starts `workers` threads that each call `work`.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses a thread.
    pub(super) fn start(workers: usize, work: impl Fn(J) -> R + Send + Sync + 'static) -> Result<Self> {
        let (jobs, job_queue) = channel::<(u64, J)>();
        let (result_sender, results) = channel();
        let (job_queue, work) = (Arc::new(Mutex::new(job_queue)), Arc::new(work));
        let stop = Arc::new(AtomicBool::new(false));
        // Made before the threads: if one cannot start, dropping it stops the others.
        let mut pool = Self {
            jobs: Some(jobs),
            results,
            early: BTreeMap::new(),
            submitted: 0,
            delivered: 0,
            stop: Arc::clone(&stop),
            threads: Vec::new(),
        };
        for index in 0..workers {
            let (job_queue, work) = (Arc::clone(&job_queue), Arc::clone(&work));
            let (stop, results) = (Arc::clone(&stop), result_sender.clone());
            let run = move || {
                loop {
                    let job = job_queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((number, job)) = job else { return };
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let result = catch_unwind(AssertUnwindSafe(|| work(job)));
                    if results.send((number, result)).is_err() {
                        return;
                    }
                }
            };
            let thread = std::thread::Builder::new().name(format!("loader-{index}")).spawn(run);
            pool.threads.push(thread.map_err(|e| Error::io("start", "loader thread", e))?);
        }
        Ok(pool)
    }

    /// Jobs whose results were not yet taken.
    pub(super) fn in_flight(&self) -> u64 {
        self.submitted - self.delivered
    }

    /// Queues a job.
    pub(super) fn submit(&mut self, job: J) {
        if let Some(jobs) = &self.jobs
            && jobs.send((self.submitted, job)).is_ok()
        {
            self.submitted += 1;
        }
    }

    /// Waits for the result of the oldest job; `None` if there is none in flight.
    ///
    /// # Panics
    /// With the panic of the job, if it panicked.
    pub(super) fn next(&mut self) -> Option<R> {
        if self.in_flight() == 0 {
            return None;
        }
        let result = loop {
            if let Some(result) = self.early.remove(&self.delivered) {
                break result;
            }
            let (number, result) = self.results.recv().ok()?;
            self.early.insert(number, result);
        };
        self.delivered += 1;
        Some(result.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

impl<J, R> Drop for OrderedPool<J, R> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A job's panic was caught; nothing is left to report.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_jobs() {
        let mut pool = OrderedPool::start(3, |job: u64| {
            std::thread::sleep(Duration::from_millis(5 * (4 - job % 5)));
            job * 10
        })
        .unwrap();
        assert_eq!(pool.next(), None);
        (0..12).for_each(|job| pool.submit(job));
        assert_eq!(pool.in_flight(), 12);
        for job in 0..12 {
            assert_eq!(pool.next(), Some(job * 10));
        }
        assert_eq!((pool.in_flight(), pool.next()), (0, None));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_rest_goes_on() {
        let mut pool = OrderedPool::start(1, |job: u32| {
            assert!(job != 1, "job one fails");
            job
        })
        .unwrap();
        (0..3).for_each(|job| pool.submit(job));
        assert_eq!(pool.next(), Some(0));
        assert!(catch_unwind(AssertUnwindSafe(|| pool.next())).is_err());
        assert_eq!(pool.next(), Some(2));
    }

    #[test]
    fn dropping_with_jobs_in_flight_does_not_hang() {
        let mut pool = OrderedPool::start(2, |job: u32| std::thread::sleep(Duration::from_millis(job.into()))).unwrap();
        (0..50).for_each(|_| pool.submit(20));
        let started = std::time::Instant::now();
        drop(pool);
        assert!(started.elapsed() < Duration::from_millis(400));
    }
}
