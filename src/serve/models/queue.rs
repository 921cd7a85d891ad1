//! The requests that wait for a model's engine.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::serve::error::Refusal;
use crate::serve::metrics::ModelMetrics;

/// A request for logits.
#[derive(Debug)]
pub(super) struct Job {
    /// `[count, C, H, W]`, normalised.
    pub images: Vec<f32>,
    /// Number of images.
    pub count: usize,
    /// When it began to wait.
    pub queued: Instant,
    /// When nobody wants the answer any more.
    pub deadline: Instant,
    /// Where the logits go.
    pub reply: oneshot::Sender<Result<Reply, Refusal>>,
}

/// What an engine answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// `[count, classes]`.
    pub logits: Vec<f32>,
    /// How long the request waited.
    pub queue: Duration,
    /// How long the engine took for the batch it was in.
    pub compute: Duration,
}

/// Why a job was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// Too many images wait already.
    Full,
    /// The engine is on its way out; another one has taken its place.
    Closed,
}

/// Jobs in the order of their arrival, no more images than a bound.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    most_images: usize,
    metrics: Arc<ModelMetrics>,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    images: usize,
    closed: bool,
}

impl Queue {
    pub fn new(most_images: usize, metrics: Arc<ModelMetrics>) -> Self {
        Self { state: Mutex::default(), arrived: Condvar::new(), most_images, metrics }
    }

    /// The most images that can wait.
    pub fn most_images(&self) -> usize {
        self.most_images
    }

    /// Images waiting now.
    pub fn images(&self) -> usize {
        self.locked().images
    }

    /// Puts a job at the end.
    pub fn push(&self, job: Job) -> Result<(), NotTaken> {
        let mut state = self.locked();
        if state.closed {
            return Err(NotTaken::Closed);
        }
        if state.images + job.count > self.most_images {
            return Err(NotTaken::Full);
        }
        state.images += job.count;
        state.jobs.push_back(job);
        self.changed(state);
        Ok(())
    }

    /// Puts a job in front of all others, however many wait: a probe asks whether the engine works, not whether it is
    /// busy.
    pub fn push_front(&self, job: Job) -> Result<(), NotTaken> {
        let mut state = self.locked();
        if state.closed {
            return Err(NotTaken::Closed);
        }
        state.images += job.count;
        state.jobs.push_front(job);
        self.changed(state);
        Ok(())
    }

    /// The next jobs, at least one and no more than `most_images` images unless a single one has more. Waits for the
    /// first and not for others, so a lone request is never held back. `None` once the queue is closed and empty.
    pub fn take(&self, most_images: usize) -> Option<Vec<Job>> {
        let mut state = self.locked();
        loop {
            if let Some(first) = state.jobs.pop_front() {
                let mut images = first.count;
                let mut batch = vec![first];
                while let Some(next) = state.jobs.pop_front_if(|job| images + job.count <= most_images) {
                    images += next.count;
                    batch.push(next);
                }
                state.images -= images;
                self.metrics.queued_images.set(state.images as u64);
                return Some(batch);
            }
            if state.closed {
                return None;
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes no more jobs; those that wait are still handed out.
    pub fn close(&self) {
        self.locked().closed = true;
        self.arrived.notify_all();
    }

    fn changed(&self, state: MutexGuard<State>) {
        self.metrics.queued_images.set(state.images as u64);
        drop(state);
        self.arrived.notify_one();
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::metrics::Metrics;

    fn queue(most: usize) -> Queue {
        Queue::new(most, Metrics::default().model(&"m".parse().unwrap()))
    }

    fn job(count: usize) -> Job {
        let now = Instant::now();
        let reply = oneshot::channel().0;
        Job { images: vec![0.0; count], count, queued: now, deadline: now, reply }
    }

    fn counts(batch: Option<Vec<Job>>) -> Vec<usize> {
        batch.unwrap().iter().map(|job| job.count).collect()
    }

    #[test]
    fn batches_are_full_but_not_too_large_and_keep_the_order() {
        let queue = queue(100);
        for count in [1, 2, 3, 9, 1] {
            queue.push(job(count)).unwrap();
        }
        assert_eq!(queue.images(), 16);
        assert_eq!(counts(queue.take(4)), [1, 2]);
        assert_eq!(counts(queue.take(4)), [3]);
        assert_eq!(counts(queue.take(4)), [9], "a large job goes alone");
        assert_eq!(counts(queue.take(4)), [1]);
        assert_eq!(queue.images(), 0);
    }

    #[test]
    fn a_full_queue_takes_probes_only_and_those_first() {
        let queue = queue(3);
        queue.push(job(2)).unwrap();
        assert_eq!(queue.push(job(2)), Err(NotTaken::Full));
        queue.push(job(1)).unwrap();
        queue.push_front(job(1)).unwrap();
        assert_eq!(counts(queue.take(1)), [1]);
        assert_eq!(counts(queue.take(9)), [2, 1]);
    }

    #[test]
    fn a_closed_queue_hands_out_what_waits_and_ends() {
        let queue = queue(3);
        queue.push(job(1)).unwrap();
        queue.close();
        assert_eq!(queue.push(job(1)), Err(NotTaken::Closed));
        assert_eq!(queue.push_front(job(1)), Err(NotTaken::Closed));
        assert_eq!(counts(queue.take(1)), [1]);
        assert!(queue.take(1).is_none());
    }

    #[test]
    fn whoever_waits_is_woken_by_a_job_and_by_the_end() {
        let queue = Arc::new(queue(3));
        let waiter = std::thread::spawn({
            let queue = queue.clone();
            move || (counts(queue.take(1)), queue.take(1).is_none())
        });
        queue.push(job(1)).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        queue.close();
        assert_eq!(waiter.join().unwrap(), (vec![1], true));
    }
}
