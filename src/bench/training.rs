//! What a step of adaptation costs.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::adapt::{AdaptConfig, Imitation, peak_rss_mb};
use crate::model::Teacher;
use crate::rng::Rng;
use crate::timing::Stats;

const WARM_UPS: usize = 1;

/// Speed of training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingSpeed {
    /// File, or architecture of a random model.
    pub model: String,
    /// Images of a step.
    pub batch: usize,
    /// Height and width of its images.
    pub size: [usize; 2],
    /// Steps measured.
    pub steps: usize,
    /// Milliseconds of a step: forward, backward, update.
    pub median_ms: f64,
    /// Throughput.
    pub images_per_s: f64,
    /// Most memory this process held, in bytes.
    pub peak_rss_bytes: u64,
    /// Threads.
    pub threads: usize,
}

/// Times steps of fine-tuning on random images, at the size and batch `config` trains with.
///
/// # Errors
/// As training.
pub fn training_speed(
    name: &str,
    model: &Teacher,
    config: &AdaptConfig,
    steps: usize,
    device: &Device,
) -> Result<TrainingSpeed> {
    let [channels, height, width] = model.graph.input_shape();
    let [height, width] = config.augment.train_size.unwrap_or([height, width]);
    let batch = config.batch_size;
    let mut rng = Rng::new(config.seed);
    let pixels: Vec<f32> = (0..batch * channels * height * width).map(|_| rng.normal()).collect();
    let images = Tensor::from_vec(pixels, (batch, channels, height, width), device)?;
    let answers = Tensor::zeros((batch, model.graph.num_classes()), DType::F32, device)?;
    let mut student = Imitation::new(&model.graph, &model.params, config)?;
    let mut times = Vec::new();
    for step in 0..WARM_UPS + steps {
        let start = Instant::now();
        student.step(&images, &answers, config.fine_tune.lr)?;
        if step >= WARM_UPS {
            times.push(vec![start.elapsed().as_secs_f64() * 1e3]);
        }
    }
    let median = Stats::of(&times).map_or(f64::NAN, |stats| stats.median);
    Ok(TrainingSpeed {
        model: name.to_string(),
        batch,
        size: [height, width],
        steps,
        median_ms: median,
        images_per_s: batch as f64 / median * 1e3,
        peak_rss_bytes: peak_rss_mb() << 20,
        threads: rayon::current_num_threads(),
    })
}
