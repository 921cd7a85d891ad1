//! Calibration for 8-bit inference on the device's images, and whether the result is good enough to serve.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::gate::{Expect, GateConfig, Verdict, judge};
use super::pass::Network;
use super::target::{ImageSet, pass_config};
use crate::data::{OrderedPass, Preprocess, Transform};
use crate::engine::{Calibration, Engine, EngineConfig};
use crate::rng::Rng;
use crate::{Error, Result};

/// Most images to watch activations on, and most to compare answers on.
const MOST_IMAGES: usize = 256;
const STREAM: u64 = 0x494E_5438;

/// A calibration and what it costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Int8Outcome {
    /// Ranges of all activations.
    pub calibration: Calibration,
    /// The gate's verdict on 8-bit answers beside f32 ones.
    pub verdict: Verdict,
}

/// The demands on 8-bit answers: rounding is no reason to answer differently.
pub fn int8_gate() -> GateConfig {
    GateConfig {
        min_agreement: 0.95,
        min_information: 0.95,
        min_diversity: 0.95,
        min_images: 1,
        ..GateConfig::default()
    }
}

/// Watches `network` on one part of `images` and compares 8-bit with f32 answers on another.
///
/// # Errors
/// [`Error::Data`] if an image cannot be read; as [`Calibration::collect`].
pub fn calibrate_int8(
    network: Network,
    preprocess: &Preprocess,
    images: &ImageSet,
    gate: &GateConfig,
    seed: u64,
) -> Result<Int8Outcome> {
    let mut order = images.good().to_vec();
    Rng::stream(seed, STREAM).shuffle(&mut order);
    order.truncate(2 * MOST_IMAGES);
    let watched = order.split_off(order.len() / 2);
    let judged = order;
    let read = |indices: &[usize]| -> Result<OrderedPass> {
        OrderedPass::new(images.subset(indices.to_vec())?, Transform::Eval(preprocess.clone()), pass_config(16))
    };
    let config = EngineConfig { threads: rayon::current_num_threads(), max_batch: 16, ..EngineConfig::default() };
    let batches = read(&watched)?.map(|batch| Ok(batch?.images));
    let calibration = Calibration::collect(network.graph, network.params.clone(), config, batches)?;
    let mut exact = Engine::compile(network.graph, network.params.clone(), config)?;
    let mut rounded = Engine::compile_int8(network.graph, network.params.clone(), config, &calibration)?;
    let classes = exact.num_classes();
    let (mut want, mut got, mut count) = (Vec::new(), Vec::new(), 0);
    for batch in read(&judged)? {
        let batch = batch?;
        let size = batch.indices.len();
        for (engine, logits) in [(&mut exact, &mut want), (&mut rounded, &mut got)] {
            let mut rows = vec![0.0; size * classes];
            engine.infer(&batch.images, &mut rows)?;
            logits.extend(rows);
        }
        count += size;
    }
    if count == 0 {
        return Err(Error::data("images", "expected readable images to compare answers on, got none"));
    }
    let tensor = |rows: Vec<f32>| Tensor::from_vec(rows, (count, classes), &Device::Cpu);
    let verdict = judge(gate, Expect::RoundedAnswers, &tensor(got)?.into(), &tensor(want)?.into())?;
    Ok(Int8Outcome { calibration, verdict })
}
