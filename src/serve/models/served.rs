//! One version of one model, answering.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use candle_core::Device;
use tokio::sync::oneshot;

use super::queue::{Job, NotTaken, Queue, Reply};
use super::worker::{Pace, Worker};
use crate::engine::{EngineConfig, Precision};
use crate::model::{Runner, RunnerConfig, Teacher};
use crate::serve::error::{Code, Refusal};
use crate::serve::metrics::{Counter, ModelMetrics};
use crate::serve::protocol::Signature;
use crate::store::{ModelName, Version};
use crate::{Error, Result};

/// How models are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSettings {
    /// Threads, images at a time, instruction set.
    pub engine: EngineConfig,
    /// The numbers to compute with.
    pub precision: Precision,
    /// The most images that wait for a model.
    pub queue_images: usize,
    /// How long the engine may take for a batch of several requests.
    pub batch_target: Duration,
}

/// A version that answers. Its engine belongs to one thread, which ends and frees it once the version was retired and
/// everything that waited is answered.
#[derive(Debug)]
pub struct Served {
    /// The model.
    pub name: ModelName,
    /// The version.
    pub version: Version,
    /// What it takes and gives.
    pub signature: Signature,
    /// SHA-256 of its file.
    pub sha256: String,
    queue: Arc<Queue>,
    pace: Arc<Pace>,
    metrics: Arc<ModelMetrics>,
    /// How often each class was the most likely one.
    predicted: Box<[Counter]>,
    last_answer: Mutex<Instant>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unanswered {
    /// This version is on its way out: ask the registry for the one that serves now.
    Retired,
    /// The request cannot be answered.
    Refused(Refusal),
}

/// The end of a version's thread, for whoever retires it.
#[derive(Debug)]
pub(super) struct Ended(mpsc::Receiver<()>);

impl Ended {
    /// Waits until the engine is freed; `false` if that takes longer than `patience`.
    pub fn wait(&self, patience: Duration) -> bool {
        self.0.recv_timeout(patience) != Err(mpsc::RecvTimeoutError::Timeout)
    }
}

impl Served {
    /// Compiles `model`, tries it, and starts its thread. Returns when it is ready to answer.
    ///
    /// # Errors
    /// As [`Runner::new`]; [`Error::Numeric`] if the smoke inference fails; [`Error::Config`] if the system gives no
    /// thread.
    pub(super) fn start(
        (name, version): (&ModelName, Version),
        model: Teacher,
        settings: &ModelSettings,
        metrics: Arc<ModelMetrics>,
        release_memory: fn(),
    ) -> Result<(Self, Ended)> {
        let (queue, pace) = (Arc::new(Queue::new(settings.queue_images, metrics.clone())), Arc::new(Pace::default()));
        let sha256 = model.sha256.clone();
        let (ready, started) = mpsc::channel();
        let (ended, end) = mpsc::channel();
        let parts = (settings.clone(), queue.clone(), pace.clone(), metrics.clone());
        let thread = thread::Builder::new().name(format!("model-{version}")).spawn(move || {
            let (settings, queue, pace, metrics) = parts;
            match compile(model, &settings) {
                Err(error) => drop(ready.send(Err(error))),
                Ok(runner) => {
                    let (max_batch, target) = (settings.engine.max_batch, settings.batch_target);
                    let mut worker = Worker { runner, max_batch, target, queue, pace, metrics };
                    let tried = worker.smoke().map(|()| signature(&worker.runner));
                    let good = tried.is_ok();
                    if ready.send(tried).is_ok() && good {
                        worker.work();
                    }
                }
            }
            release_memory();
            // Nobody may be waiting for it.
            let _ = ended.send(());
        });
        thread.map_err(|e| Error::Config(format!("{name}: cannot start a thread: {e}")))?;
        let died = |_| Error::Numeric(format!("{name} version {version}: compiling or the smoke inference panicked"));
        let signature = started.recv().map_err(died)??;
        let predicted = signature.class_names.iter().map(|_| Counter::default()).collect();
        let last_answer = Mutex::new(Instant::now());
        let served =
            Self { name: name.clone(), version, signature, sha256, queue, pace, metrics, predicted, last_answer };
        Ok((served, Ended(end)))
    }

    /// Logits of `count` normalised images, `[count, C, H, W]`.
    ///
    /// # Errors
    /// [`Unanswered::Retired`] if another version took over before these images were queued: nothing was computed, ask
    /// again there. [`Unanswered::Refused`] with [`Code::Overloaded`], [`Code::DeadlineExceeded`],
    /// [`Code::NotFinite`], or [`Code::InvalidParameter`] for more images than the queue ever takes.
    pub async fn infer(&self, images: Vec<f32>, count: usize, deadline: Instant) -> Result<Reply, Unanswered> {
        let most = self.queue.most_images();
        if count > most {
            let message = format!("expected at most {most} images in a request, got {count}");
            return Err(Unanswered::Refused(Refusal::new(Code::InvalidParameter, message)));
        }
        self.queued(images, count, deadline, Queue::push).await
    }

    /// As [`Served::infer`] for one image of zeros, ahead of everything that waits: whether the engine works.
    ///
    /// # Errors
    /// As [`Served::infer`].
    pub async fn probe(&self, deadline: Instant) -> Result<Reply, Unanswered> {
        let images = vec![0.0; self.signature.per_image()];
        self.queued(images, 1, deadline, Queue::push_front).await
    }

    /// Counts an answer to a client, who waited for it since it was queued.
    pub(crate) fn answered(&self, reply: &Reply, waited: Duration) {
        self.metrics.answered.increment();
        self.metrics.recent.observe(waited);
        for row in reply.logits.chunks(self.predicted.len().max(1)) {
            let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            if let Some(count) = best.and_then(|(class, _)| self.predicted.get(class)) {
                count.increment();
            }
        }
    }

    /// How often each class was the most likely one of a client's image, since this version serves.
    pub fn predicted(&self) -> Vec<u64> {
        self.predicted.iter().map(Counter::get).collect()
    }

    /// How long ago it last answered anything: a request, a probe, its smoke inference.
    pub fn silence(&self) -> Duration {
        self.last_answer.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    async fn queued(
        &self,
        images: Vec<f32>,
        count: usize,
        deadline: Instant,
        put: impl FnOnce(&Queue, Job) -> Result<(), NotTaken>,
    ) -> Result<Reply, Unanswered> {
        let (reply, answer) = oneshot::channel();
        let job = Job { images, count, queued: Instant::now(), deadline, reply };
        match put(&self.queue, job) {
            Ok(()) => {}
            Err(NotTaken::Closed) => return Err(Unanswered::Retired),
            Err(NotTaken::Full) => {
                self.metrics.overloaded.increment();
                return Err(Unanswered::Refused(self.overloaded()));
            }
        }
        let refused = |code, message: &str| Err(Unanswered::Refused(Refusal::new(code, message)));
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(answer)) => {
                *self.last_answer.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                answer.map_err(Unanswered::Refused)
            }
            Ok(Err(_)) => refused(Code::Internal, "the engine ended without an answer"),
            Err(_) => refused(Code::DeadlineExceeded, "the answer was not ready in time"),
        }
    }

    fn overloaded(&self) -> Refusal {
        let waiting = self.queue.images();
        let seconds = (waiting as f64 * self.pace.seconds()).ceil().clamp(1.0, 60.0) as u64;
        let message = format!("{waiting} images wait already, try again in {seconds} s");
        Refusal { retry_after: Some(seconds), ..Refusal::new(Code::Overloaded, message) }
    }

    /// Takes no more requests; what waits is answered.
    pub(super) fn retire(&self) {
        self.queue.close();
    }
}

fn compile(model: Teacher, settings: &ModelSettings) -> Result<Runner> {
    let config = RunnerConfig { device: Device::Cpu, precision: settings.precision, engine: settings.engine };
    Runner::new(model, &config)
}

fn signature(runner: &Runner) -> Signature {
    let info = runner.info.clone();
    Signature { input: runner.input_shape(), class_names: info.class_names, preprocess: info.preprocess }
}
