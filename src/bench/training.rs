//! What a step of adaptation costs.

use std::time::Duration;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::adapt::{AdaptConfig, StepKind, forecast, memory_plan, peak_rss_mb, trial};
use crate::model::Teacher;

/// Steps before measuring.
const WARM_UPS: usize = 2;

/// Speed of training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingSpeed {
    /// File, or architecture of a random model.
    pub arch: String,
    /// What a step is.
    pub step: StepKind,
    /// Images of a step.
    pub batch: usize,
    /// Height and width of its images; one number if they are the same.
    pub size: Size,
    /// Threads.
    pub threads: usize,
    /// Throughput over all measured steps.
    pub images_per_s: f64,
    /// Throughput of a plain step as [`forecast`] tells it beforehand.
    pub expected_images_per_s: f64,
    /// Parts that a batch went through the network in.
    pub parts: usize,
    /// Whether batch normalisations were computed again for the backward pass.
    pub recomputes: bool,
    /// Most memory a run was expected to take, in MB.
    pub planned_mb: u64,
    /// Memory these steps were expected to take, in MB.
    pub expected_mb: u64,
    /// Most memory this process held, in MB.
    pub peak_rss_mb: u64,
    /// Steps measured.
    pub steps: usize,
    /// Mean milliseconds of a step.
    pub step_ms: f64,
}

/// Height and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// Of a square.
    Side(usize),
    /// Of a rectangle.
    Sides([usize; 2]),
}

/// Times training steps on random images, at the size and batch `config` trains with; `steps` of ADMP are rounded up to
/// a multiple of those between two moves of the adversary.
///
/// # Errors
/// As training.
pub fn training_speed(
    (name, kind): (&str, StepKind),
    model: &Teacher,
    config: &AdaptConfig,
    steps: usize,
    device: &Device,
) -> Result<TrainingSpeed> {
    let [_, height, width] = model.graph.input_shape();
    let [height, width] = config.augment.train_size.unwrap_or([height, width]);
    let steps = match kind {
        StepKind::Plain => steps,
        // The adversary has its full part in them.
        StepKind::Admp => steps.next_multiple_of(config.mask.probe_every.max(1)),
    };
    config.train.check(&model.graph)?;
    let plan = memory_plan(&model.graph, config)?;
    let expected = forecast(model, config, device)?;
    let times = trial(kind, model, config, WARM_UPS + steps, device)?;
    let mean = times[WARM_UPS..].iter().sum::<Duration>().as_secs_f64() / steps as f64;
    Ok(TrainingSpeed {
        arch: name.to_string(),
        step: kind,
        batch: config.batch_size,
        size: if height == width { Size::Side(height) } else { Size::Sides([height, width]) },
        threads: rayon::current_num_threads(),
        images_per_s: config.batch_size as f64 / mean,
        expected_images_per_s: expected.images_per_s,
        parts: plan.memory.parts,
        recomputes: plan.memory.recomputes,
        planned_mb: plan.bytes / 1_000_000,
        expected_mb: plan.step_bytes / 1_000_000,
        peak_rss_mb: peak_rss_mb(),
        steps,
        step_ms: mean * 1e3,
    })
}
