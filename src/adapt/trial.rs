//! Training steps outside a run, to measure what they cost.

use std::fmt;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::config::AdaptConfig;
use super::drive::Steps;
use super::finetune_phase::FineTunePhase;
use super::mask_phase::MaskPhase;
use super::memory::memory_plan;
use super::pass::Answers;
use super::train::Setting;
use crate::data::Batch;
use crate::graph::ChannelGroups;
use crate::model::Teacher;
use crate::prune::{Budget, Selector};
use crate::rng::Rng;
use crate::{Error, Result};

/// Removed where the configuration has no budget.
const PRUNING_RATIO: f64 = 0.5;

/// A training step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepKind {
    /// Forward, backward and update on distillation, as in fine-tuning.
    Plain,
    /// Fit, close and probe of ADMP, with the masks' updates.
    Admp,
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Admp => "admp",
        })
    }
}

impl std::str::FromStr for StepKind {
    type Err = Error;

    /// # Errors
    /// [`Error::Usage`] for anything but `plain` and `admp`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "plain" => Ok(Self::Plain),
            "admp" => Ok(Self::Admp),
            other => Err(Error::Usage(format!("expected plain or admp, got {other:?}"))),
        }
    }
}

/// Takes `steps` training steps of the whole network on random images, at the size and batch `config` trains with, and
/// tells how long each took.
///
/// # Errors
/// As a run, without those of images and files.
pub fn trial(
    kind: StepKind,
    model: &Teacher,
    config: &AdaptConfig,
    steps: usize,
    device: &Device,
) -> Result<Vec<Duration>> {
    let groups = ChannelGroups::new(&model.graph, config.scope);
    let memory = memory_plan(&model.graph, config)?.memory;
    let setting = Setting { graph: &model.graph, groups: &groups, source: None, config, memory, device };
    let mut rng = Rng::new(config.seed);
    let (batch, answers) = random_batch(setting, &mut rng)?;
    match kind {
        StepKind::Plain => time(FineTunePhase::new(setting, &model.graph, &model.params, &answers)?, &batch, steps),
        StepKind::Admp => {
            let budget = config.budget.unwrap_or(Budget::channels(PRUNING_RATIO));
            let selector = Selector::new(&model.graph, &groups, budget, &config.limits)?;
            let rank = (0..groups.len()).map(|_| rng.uniform()).collect();
            time(MaskPhase::new(setting, &model.params, &selector, rank, &answers)?, &batch, steps)
        }
    }
}

fn random_batch(Setting { graph, config, .. }: Setting, rng: &mut Rng) -> Result<(Batch, Answers)> {
    let ([channels, height, width], images) = (graph.input_shape(), config.batch_size);
    let [height, width] = config.augment.train_size.unwrap_or([height, width]);
    let shape = [images, channels, height, width];
    let mut normal = |count: usize| (0..count).map(|_| rng.normal()).collect::<Vec<f32>>();
    let batch = Batch { images: normal(shape.iter().product()), shape, indices: (0..images).collect() };
    let logits = normal(images * graph.num_classes());
    let logits = Tensor::from_vec(logits, (images, graph.num_classes()), &Device::Cpu)?;
    Ok((batch, Answers::new((0..images).collect(), logits.clone(), logits)))
}

fn time(mut phase: impl Steps, batch: &Batch, steps: usize) -> Result<Vec<Duration>> {
    let mut step = |index: usize| {
        let start = Instant::now();
        phase.step(index, batch, None)?;
        Ok(start.elapsed())
    };
    (0..steps).map(&mut step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{ArchOptions, build};
    use crate::model::ModelInfo;
    use crate::model::testing::random_params;
    use crate::weights::ModelDescription;

    #[test]
    fn both_kinds_of_step_are_taken() {
        let graph = build("lenet_bn", &ArchOptions { num_classes: 4, input: [1, 28, 28] }).unwrap();
        let params = random_params(&graph, &mut Rng::new(1));
        let info = ModelInfo::resolve("a test".as_ref(), &ModelDescription::default(), &graph).unwrap();
        let model = Teacher { graph, params, info, sha256: String::new(), provenance: None, int8: None };
        let mut config = AdaptConfig::for_model(&model.info);
        config.batch_size = 4;
        for kind in [StepKind::Plain, StepKind::Admp] {
            let times = trial(kind, &model, &config, 3, &Device::Cpu).unwrap();
            assert_eq!(times.len(), 3);
            assert_eq!(kind.to_string().parse::<StepKind>().unwrap(), kind);
        }
    }
}
