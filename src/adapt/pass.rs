//! Passes over a set of images without gradients: logits, features, batch-norm statistics.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};

use super::drive::Safety;
use super::target::{ImageSet, pass_config};
use crate::data::{LoaderConfig, OrderedPass, Preprocess, Transform};
use crate::graph::{Graph, NodeId};
use crate::model::{ActivationMemory, Forward, Mode, Params, Runner};
use crate::nn::BatchStatistics;
use crate::rng::Rng;
use crate::{Error, Result};

/// A network to run: graph and parameters.
#[derive(Debug, Clone, Copy)]
pub struct Network<'a> {
    /// Architecture.
    pub graph: &'a Graph,
    /// Parameters, without gradients.
    pub params: &'a Params,
}

/// Answers for a list of images, in its order.
#[derive(Debug, Clone)]
pub struct Answers {
    /// Source indices of the rows; images that broke since screening are absent.
    pub indices: Vec<usize>,
    /// Raw logits, f32 `[N, classes]`, on the CPU.
    pub logits: Tensor,
    /// Penultimate features, f32 `[N, features]`, on the CPU.
    pub features: Tensor,
    /// Fraction of held-out images whose class a random change leaves as it is, if somebody looked.
    pub stability: Option<f64>,
    rows: HashMap<usize, u32>,
}

impl Answers {
    /// Answers for `indices`, row by row.
    pub fn new(indices: Vec<usize>, logits: Tensor, features: Tensor) -> Self {
        let rows = indices.iter().enumerate().map(|(row, &index)| (index, row as u32)).collect();
        Self { indices, logits, features, stability: None, rows }
    }

    /// The rows of `indices`, in that order.
    ///
    /// # Errors
    /// [`Error::Data`] if an image has no row.
    pub fn logits_of(&self, indices: &[usize]) -> Result<Tensor> {
        let rows = indices
            .iter()
            .map(|i| {
                self.rows.get(i).copied().ok_or_else(|| Error::data(format!("image #{i}"), "has no cached answer"))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(self.logits.index_select(&Tensor::from_vec(rows, indices.len(), &Device::Cpu)?, 0)?)
    }

    /// The most likely class of each row.
    pub fn classes(&self) -> Result<Vec<u32>> {
        Ok(self.logits.argmax(1)?.to_vec1()?)
    }

    /// Percentage of labelled images answered right; `None` without labels.
    pub fn accuracy(&self, images: &ImageSet) -> Result<Option<f64>> {
        let classes = self.classes()?;
        let labelled: Vec<bool> = (self.indices.iter().zip(&classes))
            .filter_map(|(&index, &class)| Some(images.label(index)? == class as usize))
            .collect();
        let right = labelled.iter().filter(|r| **r).count();
        Ok((!labelled.is_empty()).then(|| 100.0 * right as f64 / labelled.len() as f64))
    }
}

/// How images are read in a pass.
#[derive(Debug, Clone)]
pub struct PassConfig<'a> {
    /// The model's preprocessing; no augmentation.
    pub preprocess: &'a Preprocess,
    /// Images per forward.
    pub batch_size: usize,
    /// How activations are kept.
    pub memory: ActivationMemory,
    /// Where to compute.
    pub device: &'a Device,
    /// Who may stop it between two batches; nobody if it is a part of a step that cannot be left half done.
    pub safety: Option<&'a Safety>,
}

impl PassConfig<'_> {
    fn go_on(&self, at: &str) -> Result<()> {
        self.safety.map_or(Ok(()), |safety| safety.go_on(at))
    }
}

/// Runs `network` over `indices` of `images`. In [`Mode::Train`] the caller's order decides which images share batch
/// statistics: shuffle it.
///
/// # Errors
/// As the loader and the forward pass; [`Error::Interrupted`] after a requested stop.
pub fn answer(
    network: Network,
    images: &ImageSet,
    indices: &[usize],
    mode: Mode,
    config: &PassConfig,
) -> Result<Answers> {
    let transform = Transform::Eval(config.preprocess.clone());
    answer_views(network, images, indices, (mode, transform), config)
}

/// The same for images as `transform` shows them; its draws depend on the place in `indices` alone.
///
/// # Errors
/// As [`answer`].
pub(super) fn answer_views(
    network: Network,
    images: &ImageSet,
    indices: &[usize],
    (mode, transform): (Mode, Transform),
    config: &PassConfig,
) -> Result<Answers> {
    let (mut seen, mut logits, mut features) = (Vec::new(), Vec::new(), Vec::new());
    for batch in OrderedPass::new(images.subset(indices.to_vec())?, transform, pass_config(config.batch_size))? {
        config.go_on("while images were answered")?;
        let batch = batch?;
        let forward = Forward::new(network.graph, network.params, mode).sparing(config.memory);
        let output = forward.run(&batch.to_tensor(config.device)?)?;
        logits.push(output.logits.to_device(&Device::Cpu)?);
        features.push(output.features.to_device(&Device::Cpu)?);
        seen.extend(batch.indices);
    }
    if logits.is_empty() {
        return Err(Error::data("target", "expected at least one readable image, got none"));
    }
    Ok(Answers::new(seen, Tensor::cat(&logits, 0)?, Tensor::cat(&features, 0)?))
}

/// Source indices and raw logits `[N, classes]` of a compiled model's answers for `indices` of `images`; images that broke
/// since screening are absent.
///
/// # Errors
/// As the loader and the model; [`Error::Data`] if no image is left.
pub fn answer_by(runner: &mut Runner, images: &ImageSet, indices: &[usize]) -> Result<(Vec<usize>, Tensor)> {
    let (mut seen, mut logits) = (Vec::new(), Vec::new());
    let transform = Transform::Eval(runner.info.preprocess.clone());
    for batch in OrderedPass::new(images.subset(indices.to_vec())?, transform, LoaderConfig::default())? {
        let batch = batch?;
        logits.extend(runner.logits(&batch.images)?);
        seen.extend(batch.indices);
    }
    if seen.is_empty() {
        return Err(Error::data("target", "expected at least one readable image, got none"));
    }
    let shape = (seen.len(), runner.num_classes());
    Ok((seen, Tensor::from_vec(logits, shape, &Device::Cpu)?))
}

/// Most images that batch-norm statistics are estimated from.
const MOST_STATISTICS_IMAGES: usize = 1024;

/// Estimates batch-norm statistics on `images`: the mean over batches of each batch's mean and unbiased variance, as
/// PyTorch's cumulative average (`momentum=None`).
///
/// The images are shuffled by `seed`, since folders are sorted by class.
///
/// # Errors
/// As the loader and the forward pass.
pub fn estimate_statistics(
    network: Network,
    images: &ImageSet,
    indices: &[usize],
    seed: u64,
    config: &PassConfig,
) -> Result<Vec<(NodeId, BatchStatistics)>> {
    let mut order = indices.to_vec();
    Rng::stream(seed, 0x5354_4154).shuffle(&mut order);
    order.truncate(MOST_STATISTICS_IMAGES.max(config.batch_size));
    if order.len() > config.batch_size {
        // A small last batch would weigh as much as a full one.
        order.truncate(order.len() / config.batch_size * config.batch_size);
    }
    let mut sums: BTreeMap<NodeId, (Tensor, Tensor)> = BTreeMap::new();
    let mut batches = 0.0;
    let transform = Transform::Eval(config.preprocess.clone());
    for batch in OrderedPass::new(images.subset(order)?, transform, pass_config(config.batch_size))? {
        config.go_on("while statistics were estimated")?;
        let forward = Forward::new(network.graph, network.params, Mode::Train).sparing(config.memory);
        for (node, batch) in forward.run(&batch?.to_tensor(config.device)?)?.statistics {
            let sum = match sums.remove(&node) {
                Some((mean, var)) => ((mean + batch.mean)?, (var + batch.var)?),
                None => (batch.mean, batch.var),
            };
            sums.insert(node, sum);
        }
        batches += 1.0;
    }
    sums.into_iter()
        .map(|(node, (mean, var))| Ok((node, BatchStatistics { mean: (mean / batches)?, var: (var / batches)? })))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::arch::{ArchOptions, build};
    use crate::data::{Source, SourceConfig};
    use crate::model::ModelInfo;
    use crate::model::testing::random_params;
    use crate::weights::ModelDescription;

    #[test]
    fn a_pass_can_be_stopped() {
        let folder = tempfile::tempdir().unwrap();
        for index in 0..8 {
            image::GrayImage::new(28, 28).save(folder.path().join(format!("{index}.png"))).unwrap();
        }
        let graph = build("lenet_bn", &ArchOptions { num_classes: 4, input: [1, 28, 28] }).unwrap();
        let params = random_params(&graph, &mut Rng::new(1));
        let info = ModelInfo::resolve("a test".as_ref(), &ModelDescription::default(), &graph).unwrap();
        let source = Source::open(folder.path(), &SourceConfig::default()).unwrap();
        let images = ImageSet::open(source, &info, 0).unwrap();
        let (safety, memory) = (Safety::default(), ActivationMemory::default());
        let (preprocess, device) = (&info.preprocess, &Device::Cpu);
        let config = PassConfig { preprocess, batch_size: 4, memory, device, safety: Some(&safety) };
        let network = Network { graph: &graph, params: &params };
        let answered = || answer(network, &images, images.good(), Mode::Eval, &config).map(|answers| answers.indices);
        let estimated = || estimate_statistics(network, &images, images.good(), 0, &config);
        assert_eq!((answered().unwrap(), estimated().is_ok()), ((0..8).collect(), true));
        safety.stop.store(true, Ordering::Relaxed);
        for stopped in [answered().err(), estimated().err()] {
            assert!(matches!(&stopped, Some(Error::Interrupted(said)) if said.contains("--resume")), "{stopped:?}");
        }
        let within_a_step = PassConfig { safety: None, ..config };
        assert!(answer(network, &images, images.good(), Mode::Eval, &within_a_step).is_ok());
    }
}
