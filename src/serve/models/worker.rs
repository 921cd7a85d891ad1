//! The thread that owns a model's engine.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::queue::{Job, Queue, Reply};
use crate::model::Runner;
use crate::serve::error::{Code, Refusal};
use crate::serve::metrics::ModelMetrics;
use crate::{Error, Result};

/// Weight of the latest batch in the running mean of the time per image.
const NEWEST: f64 = 0.2;

/// Seconds per image, known to the worker that measures and to those who ask how long the queue is.
#[derive(Debug, Default)]
pub(super) struct Pace(AtomicU64);

impl Pace {
    /// Mean seconds per image lately.
    pub fn seconds(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    fn observe(&self, seconds: f64) {
        let before = self.seconds();
        let mean = if before > 0.0 { before + NEWEST * (seconds - before) } else { seconds };
        self.0.store(mean.to_bits(), Ordering::Relaxed);
    }

    /// How many images fit into `target`, from 1 to `most`.
    fn images_within(&self, target: Duration, most: usize) -> usize {
        let fitting = target.as_secs_f64() / self.seconds().max(f64::MIN_POSITIVE);
        (fitting as usize).clamp(1, most)
    }
}

/// The engine and what it needs to work off a queue.
pub(super) struct Worker {
    pub runner: Runner,
    pub max_batch: usize,
    pub target: Duration,
    pub queue: Arc<Queue>,
    pub pace: Arc<Pace>,
    pub metrics: Arc<ModelMetrics>,
}

impl Worker {
    /// Runs the largest batch, then one image, of zeros: the memory is touched, the pace is known, and a model that
    /// cannot answer is found before anybody asks it.
    ///
    /// # Errors
    /// [`Error::Numeric`] if the logits are not finite; whatever keeps it from running.
    pub fn smoke(&mut self) -> Result<()> {
        let per_image: usize = self.runner.input_shape().iter().product();
        for images in [self.max_batch, 1] {
            let start = Instant::now();
            let logits = self.runner.logits(&vec![0.0; images * per_image])?;
            if !logits.iter().all(|logit| logit.is_finite()) {
                return Err(Error::Numeric("smoke inference: expected finite logits, got NaN or infinity".into()));
            }
            self.pace.observe(start.elapsed().as_secs_f64() / images as f64);
        }
        Ok(())
    }

    /// Answers until the queue is closed and empty.
    pub fn work(&mut self) {
        let mut images = Vec::new();
        loop {
            let most = self.pace.images_within(self.target, self.max_batch);
            let Some(batch) = self.queue.take(most) else { return };
            let batch = self.still_wanted(batch);
            match &batch[..] {
                [] => continue,
                [alone] => self.answer(&alone.images, batch.as_slice()).hand_out(batch),
                many => {
                    images.clear();
                    many.iter().for_each(|job| images.extend_from_slice(&job.images));
                    self.answer(&images, many).hand_out(batch);
                }
            }
        }
    }

    /// Leaves out jobs whose client is gone, and answers those that waited too long.
    fn still_wanted(&self, batch: Vec<Job>) -> Vec<Job> {
        let now = Instant::now();
        let (wanted, late): (Vec<Job>, Vec<Job>) =
            batch.into_iter().filter(|job| !job.reply.is_closed()).partition(|job| now < job.deadline);
        for job in late {
            self.metrics.expired.increment();
            let message = format!("waited {} ms for the engine, longer than allowed", job.queued.elapsed().as_millis());
            // Nobody may be waiting any more.
            let _ = job.reply.send(Err(Refusal::new(Code::DeadlineExceeded, message)));
        }
        wanted
    }

    fn answer(&mut self, images: &[f32], jobs: &[Job]) -> Outcome {
        let start = Instant::now();
        // A panic is answered, not died of: the engine overwrites all of its state in the next run.
        let logits = catch_unwind(AssertUnwindSafe(|| self.runner.logits(images)))
            .unwrap_or_else(|_| Err(Error::Numeric("the engine panicked".into())));
        let compute = start.elapsed();
        let count: usize = jobs.iter().map(|job| job.count).sum();
        self.pace.observe(compute.as_secs_f64() / count as f64);
        self.metrics.batch_images.observe(count as f64);
        self.metrics.compute_seconds.observe(compute.as_secs_f64());
        self.metrics.compute_seconds_fine.observe(compute.as_secs_f64());
        jobs.iter().for_each(|job| self.metrics.queue_seconds.observe((start - job.queued).as_secs_f64()));
        Outcome { logits, classes: self.runner.num_classes(), start, compute }
    }
}

/// What came out of a batch.
struct Outcome {
    logits: Result<Vec<f32>>,
    classes: usize,
    start: Instant,
    compute: Duration,
}

impl Outcome {
    /// Gives every job its rows.
    fn hand_out(self, batch: Vec<Job>) {
        if let Err(error) = &self.logits {
            log::error!("inference failed: {error}");
        }
        let mut first = 0;
        for job in batch {
            let rows = first..first + job.count * self.classes;
            first = rows.end;
            let answer = match &self.logits {
                Err(error) => Err(Refusal::new(Code::Internal, format!("inference failed: {error}"))),
                Ok(logits) => {
                    let logits = logits.get(rows).unwrap_or_default().to_vec();
                    if logits.iter().all(|logit| logit.is_finite()) {
                        Ok(Reply { logits, queue: self.start - job.queued, compute: self.compute })
                    } else {
                        Err(Refusal::new(Code::NotFinite, "the input's values are so large that the network overflows"))
                    }
                }
            };
            // Nobody may be waiting any more.
            let _ = job.reply.send(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_batch_follows_the_pace() {
        let pace = Pace::default();
        let within = |ms| pace.images_within(Duration::from_millis(ms), 8);
        assert_eq!(within(20), 8, "nothing is known yet");
        pace.observe(0.010);
        assert_eq!((within(20), within(5), within(1000)), (2, 1, 8));
        pace.observe(0.060);
        assert!((pace.seconds() - 0.020).abs() < 1e-9);
    }
}
