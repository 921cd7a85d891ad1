//! The inference engine: a network compiled into a plan of fused steps over packed weights.
//!
//! Batch normalisation is folded into the layer in front of it, residual and activation into the step that produces the
//! map, weights are packed for the register tile of the instruction set found at run time, and every activation has its
//! place in one arena, sized before the first run. A request allocates nothing.

mod calibration;
mod element;
mod fold;
mod fuse;
#[allow(
    clippy::needless_range_loop,
    reason = "register tiles are indexed by constants, so that they stay in registers"
)]
mod kernels;
mod memory;
mod plan;
mod pool;
mod select;
#[allow(
    clippy::needless_range_loop,
    reason = "register tiles are indexed by constants, so that they stay in registers"
)]
mod simd;
#[cfg(test)]
mod tests;

pub use calibration::Calibration;
pub use fold::Folded;
pub use simd::Isa;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::graph::Graph;
use crate::weights::ParamTensors;
use crate::{Error, Result};

use kernels::{Context, OVERRUN};
use memory::Memory;
use plan::Plan;
use pool::{Barrier, Pool};

/// The numbers an engine computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floating point throughout.
    #[default]
    F32,
    /// Activations as 8-bit integers, dense layers by 8-bit products with one scale per output channel; depthwise
    /// convolutions and everything else in f32 arithmetic on 8-bit values.
    Int8,
}

impl Precision {
    /// Bytes of a stored activation.
    const fn bytes(self) -> usize {
        match self {
            Self::F32 => size_of::<f32>(),
            Self::Int8 => 1,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Int8 => "int8",
        })
    }
}

impl std::str::FromStr for Precision {
    type Err = Error;

    /// # Errors
    /// [`Error::Usage`] for anything but `f32` and `int8`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "f32" => Ok(Self::F32),
            "int8" => Ok(Self::Int8),
            other => Err(Error::Usage(format!("expected f32 or int8, got {other:?}"))),
        }
    }
}

/// How a network is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// Threads that work on one request.
    pub threads: usize,
    /// The most images one call may bring; activation memory is proportional to it.
    pub max_batch: usize,
    /// The instruction set of the kernels.
    pub isa: Isa,
}

impl Default for EngineConfig {
    /// All processors, one image at a time, the best instruction set there is.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { threads, max_batch: 1, isa: Isa::detect() }
    }
}

/// Bytes an engine holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// Packed weights.
    pub weights: usize,
    /// The arena of activations and the threads' scratch.
    pub activations: usize,
}

/// What one step of a profiled run took.
#[derive(Debug, Clone, PartialEq)]
pub struct StepProfile {
    /// The layer's name in the graph.
    pub layer: String,
    /// The algorithm.
    pub kernel: String,
    /// Output shape, without the batch.
    pub shape: Vec<usize>,
    /// Multiply-accumulates of the whole batch.
    pub macs: u64,
    /// Seconds, from the end of the step before.
    pub seconds: f64,
}

/// A compiled network, ready to answer. Owns its memory and its threads; one request at a time.
pub struct Engine {
    plan: Plan,
    config: EngineConfig,
    precision: Precision,
    input: [usize; 3],
    classes: usize,
    arena: Memory,
    scratch: Vec<Memory>,
    pool: Pool,
    barrier: Barrier,
    /// The next task of each step.
    next_task: Vec<AtomicUsize>,
}

impl Engine {
    /// Compiles a network. Takes the parameters by value: each is freed as soon as it is packed, unless the caller keeps
    /// another copy.
    ///
    /// # Errors
    /// [`Error::Config`] for zero threads or a zero batch, or an instruction set this processor lacks; [`Error::Shape`] if a
    /// parameter is missing or misshapen; [`Error::Config`] too if the system gives no thread.
    pub fn compile(graph: &Graph, params: ParamTensors, config: EngineConfig) -> Result<Self> {
        Self::build(graph, params, config, None)
    }

    /// As [`Engine::compile`], for [`Precision::Int8`].
    ///
    /// # Errors
    /// As [`Engine::compile`], and [`Error::Config`] if `calibration` belongs to another network.
    pub fn compile_int8(
        graph: &Graph,
        params: ParamTensors,
        config: EngineConfig,
        calibration: &Calibration,
    ) -> Result<Self> {
        Self::build(graph, params, config, Some(calibration))
    }

    fn build(
        graph: &Graph,
        params: ParamTensors,
        config: EngineConfig,
        calibration: Option<&Calibration>,
    ) -> Result<Self> {
        if config.threads == 0 || config.max_batch == 0 {
            let EngineConfig { threads, max_batch, .. } = config;
            return Err(Error::Config(format!(
                "engine: expected threads and max_batch of at least 1, got {threads} and {max_batch}"
            )));
        }
        if !Isa::available().contains(&config.isa) {
            return Err(Error::Config(format!("engine: this processor lacks {}", config.isa)));
        }
        let precision = if calibration.is_some() { Precision::Int8 } else { Precision::F32 };
        let plan = Plan::new(Folded::new(graph, params)?, config, calibration)?;
        let pool = Pool::new(config.threads)
            .map_err(|e| Error::Config(format!("engine: cannot start {} threads: {e}", config.threads)))?;
        Ok(Self {
            config,
            input: graph.input_shape(),
            classes: graph.num_classes(),
            precision,
            arena: Memory::zeroed((plan.arena * precision.bytes() + OVERRUN).div_ceil(size_of::<f32>())),
            scratch: (0..config.threads).map(|_| Memory::zeroed(plan.scratch)).collect(),
            barrier: Barrier::new(pool.threads()),
            next_task: plan.steps.iter().map(|_| AtomicUsize::new(0)).collect(),
            pool,
            plan,
        })
    }

    /// Channels, height, width of an image.
    pub const fn input_shape(&self) -> [usize; 3] {
        self.input
    }

    /// Length of one image's logits.
    pub const fn num_classes(&self) -> usize {
        self.classes
    }

    /// How it was compiled.
    pub const fn config(&self) -> EngineConfig {
        self.config
    }

    /// The numbers it computes with.
    pub const fn precision(&self) -> Precision {
        self.precision
    }

    /// Bytes held, known before the first run.
    pub fn memory(&self) -> MemoryUse {
        let activations = self.arena.len() + self.scratch.iter().map(Memory::len).sum::<usize>();
        MemoryUse { weights: self.plan.weight_bytes(), activations: activations * size_of::<f32>() }
    }

    /// Computes logits.
    ///
    /// # Shapes
    /// `images` `[N, C, H, W]`, normalised, N ≤ `max_batch`; `logits` `[N, classes]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the lengths do not fit.
    pub fn infer(&mut self, images: &[f32], logits: &mut [f32]) -> Result<()> {
        self.run(images, logits, &|_| {})
    }

    /// As [`Engine::infer`], with the time of every step.
    ///
    /// # Errors
    /// As [`Engine::infer`].
    pub fn profile(&mut self, images: &[f32], logits: &mut [f32]) -> Result<Vec<StepProfile>> {
        let batch = (logits.len() / self.classes.max(1)) as u64;
        let ends: Vec<std::sync::OnceLock<Instant>> = self.plan.steps.iter().map(|_| Default::default()).collect();
        let start = Instant::now();
        self.run(images, logits, &|step| {
            // Each step ends once.
            let _ = ends[step].set(Instant::now());
        })?;
        let mut last = start;
        Ok((self.plan.steps.iter().zip(&ends))
            .map(|(step, end)| {
                let end = end.get().copied().unwrap_or(last);
                let seconds = end.saturating_duration_since(last).as_secs_f64();
                last = end;
                StepProfile {
                    layer: step.layer.clone(),
                    kernel: step.kernel.name(),
                    shape: step.shape.clone(),
                    macs: step.macs * batch,
                    seconds,
                }
            })
            .collect())
    }

    /// As [`Engine::infer`] for one image and f32; `seen` gets every value by the name of its node.
    fn observe(
        &mut self,
        image: &[f32],
        logits: &mut [f32],
        seen: &mut (dyn FnMut(&str, &[f32]) + Send),
    ) -> Result<()> {
        let arena = self.arena.as_ptr() as usize;
        let outputs: Vec<(String, plan::View)> =
            self.plan.steps.iter().map(|step| (step.value.clone(), step.output)).collect();
        let seen = std::sync::Mutex::new((seen, Vec::new()));
        self.run(image, logits, &|step| {
            let (name, view) = &outputs[step];
            let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let (seen, values) = &mut *seen;
            values.clear();
            for pixel in 0..view.pixels() {
                let at = view.offset + pixel * view.pixel;
                // SAFETY: a view without margin in the arena; the workers go on only when this returns.
                values.extend_from_slice(unsafe {
                    std::slice::from_raw_parts((arena as *const f32).add(at), view.channels)
                });
            }
            seen(name, values);
        })
    }

    fn run(&mut self, images: &[f32], logits: &mut [f32], finished: &(dyn Fn(usize) + Sync)) -> Result<()> {
        let per_image: usize = self.input.iter().product();
        let batch = images.len() / per_image;
        if images.len() != batch * per_image
            || logits.len() != batch * self.classes
            || !(1..=self.config.max_batch).contains(&batch)
        {
            let ([c, h, w], most, classes) = (self.input, self.config.max_batch, self.classes);
            return Err(Error::Shape(format!(
                "engine: expected 1 to {most} images of {c}×{h}×{w} = {per_image} values and {classes} logits for each, \
                 got {} values and {} logits",
                images.len(),
                logits.len()
            )));
        }
        self.next_task.iter().for_each(|next| next.store(0, Ordering::Relaxed));
        let job = Job {
            steps: &self.plan.steps,
            next_task: &self.next_task,
            barrier: &self.barrier,
            scratch: &self.scratch,
            context: Context {
                isa: self.config.isa,
                precision: self.precision,
                batch,
                threads: self.config.threads,
                arena: self.arena.as_ptr(),
                scratch: std::ptr::null_mut(),
                images: images.as_ptr(),
            },
        };
        self.pool.run(&|worker| job.run(worker, finished));
        let view = &self.plan.logits;
        for (n, row) in logits.chunks_exact_mut(self.classes).enumerate() {
            // SAFETY: the view lies in the arena; all workers are done.
            unsafe {
                if self.precision == Precision::F32 || self.plan.real_logits {
                    let first = self.arena.as_ptr().cast::<u8>().add(view.offset * self.precision.bytes());
                    let values = first.cast::<f32>().add(n * view.image());
                    row.copy_from_slice(std::slice::from_raw_parts(values, self.classes));
                } else {
                    let values = self.arena.as_ptr().cast::<u8>().add(view.offset + n * view.image());
                    let values = std::slice::from_raw_parts(values, self.classes);
                    row.iter_mut().zip(values).for_each(|(to, q)| *to = view.quant.real(*q));
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { config, input, classes, .. } = self;
        f.debug_struct("Engine").field("config", config).field("input", input).field("classes", classes).finish()
    }
}

/// One run, as every worker sees it.
struct Job<'a> {
    steps: &'a [plan::Planned],
    next_task: &'a [AtomicUsize],
    barrier: &'a Barrier,
    scratch: &'a [Memory],
    context: Context,
}

// SAFETY: workers write to disjoint parts of the arena, each to its own scratch, and only read the images.
unsafe impl Sync for Job<'_> {}

impl Job<'_> {
    /// Goes through all steps, taking tasks until none is left; `finished` is told of every step once.
    fn run(&self, worker: usize, finished: &(dyn Fn(usize) + Sync)) {
        let context = Context { scratch: self.scratch[worker].as_ptr(), ..self.context };
        for (i, step) in self.steps.iter().enumerate() {
            let tasks = step.kernel.tasks(context.batch, context.threads);
            loop {
                let task = self.next_task[i].fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                // SAFETY: arena and scratch have the plan's sizes; the barrier separates the steps; a task is handed out
                // once; `compile` checked the instruction set.
                unsafe { step.kernel.run(task, &context) };
            }
            // The clock is read by the worker that ends the step: any other may have lost its processor meanwhile.
            self.barrier.wait(|| finished(i));
        }
    }
}
