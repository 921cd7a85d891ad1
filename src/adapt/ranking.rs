//! The ranking of channels: it decides which go, and breaks ADMM's ties.

use candle_core::{DType, Tensor, Var};

use super::lesson::ImageLabels;
use super::memory::at_evaluation_size;
use super::pass::Answers;
use super::run::Context;
use super::target::pass_config;
use crate::Result;
use crate::data::{OrderedPass, Transform};
use crate::graph::{ChannelGroups, Graph};
use crate::loss;
use crate::model::{ChannelMask, Forward, Mode, Params};
use crate::prune::importance::{Criterion, Fisher, Taylor, magnitude, percentile_rank};
use crate::rng::Rng;

/// Each mask entry's importance percentile in [0, 1], by the configured criterion.
///
/// Fisher information needs labels: they are sampled from the teacher's own softmax. TCP's criterion needs a loss of task
/// and transfer: without source data it is that of phase 1, with pseudo labels from the teacher's answers. So no true label
/// is used.
///
/// # Errors
/// As the loader and the network; [`crate::Error::Interrupted`] after a requested stop.
pub(super) fn rank(
    context: &Context,
    network: (&Graph, &ChannelGroups),
    params: &Params,
    teacher: &Answers,
    round: usize,
) -> Result<Vec<f32>> {
    let ranked = Ranked { context, network, params, teacher, round };
    let scores = match context.config.mask.criterion {
        Criterion::Magnitude => magnitude(network.0, network.1, params)?,
        Criterion::Fisher => ranked.fisher()?,
        Criterion::Transfer => ranked.transfer()?,
    };
    Ok(percentile_rank(&scores))
}

/// The round of a run's only ranking.
pub(super) const ONLY: usize = 0;

/// Batches of images for Fisher information where rankings follow one another. Each image's gradient is squared by itself: labels
/// are drawn, so gradients mostly cancel, and the square of one image's tells as much as that of many together.
const FISHER_BATCHES: usize = 3;

/// Images for the estimates of `round`, other ones each time.
pub(super) fn sample(context: &Context, round: usize, rng: &mut Rng) -> Vec<usize> {
    let mask = &context.config.mask;
    let batches = if round == ONLY { mask.importance_batches } else { mask.round_batches };
    let mut order = context.train.clone();
    rng.shuffle(&mut order);
    order.truncate(batches * context.config.batch_size);
    order
}

struct Ranked<'a> {
    context: &'a Context<'a>,
    network: (&'a Graph, &'a ChannelGroups),
    params: &'a Params,
    teacher: &'a Answers,
    round: usize,
}

impl Ranked<'_> {
    fn fisher(self) -> Result<Vec<f64>> {
        let Self { context, network, teacher, round, .. } = self;
        let mut rng = Rng::stream(context.config.seed, 0x4649_5348 + round as u64);
        let mut fisher = Fisher::new(network.1.len());
        let mut images = sample(context, round, &mut rng);
        let mut at_once = context.config.batch_size;
        if round != ONLY {
            images.truncate(FISHER_BATCHES * at_once);
            at_once = 1;
        }
        let loss = |logits: &Tensor, indices: &[usize]| {
            let probs = candle_nn::ops::softmax(&teacher.logits_of(indices)?, 1)?.to_vec2::<f32>()?;
            let sampled: Vec<u32> = probs.iter().map(|row| rng.weighted(row) as u32).collect();
            loss::cross_entropy(logits, &Tensor::from_vec(sampled, indices.len(), context.device)?, None)
        };
        self.mask_gradients((images, at_once), loss, |gradient| fisher.add(gradient))?;
        Ok(fisher.scores())
    }

    fn transfer(self) -> Result<Vec<f64>> {
        let Self { context, network: (_, groups), teacher, round, .. } = self;
        let images = sample(context, round, &mut Rng::stream(context.config.seed, 0x5443_5021 + round as u64));
        let mut taylor = Taylor::new(groups.len());
        let labels = ImageLabels::of(teacher)?;
        let weight = context.config.teacher.pseudo_label_weight;
        let loss = |logits: &Tensor, indices: &[usize]| Ok(labels.loss(logits, indices, weight)?.0);
        self.mask_gradients((images, context.config.batch_size), loss, |gradient| taylor.add(gradient))?;
        Ok(taylor.scores(groups.prunable().map(|group| group.entries.clone())))
    }

    /// Hands `add` the gradient of `loss` with respect to a mask of ones, so many of the images at once.
    fn mask_gradients(
        self,
        (images, at_once): (Vec<usize>, usize),
        mut loss: impl FnMut(&Tensor, &[usize]) -> Result<Tensor>,
        mut add: impl FnMut(&[f32]),
    ) -> Result<()> {
        let Context { config, device, memory, safety, .. } = self.context;
        let (graph, groups) = self.network;
        let memory = at_evaluation_size(*memory, graph, config);
        let layout = ChannelMask::new(groups, device)?;
        let transform = Transform::Eval(self.context.teacher.info.preprocess.clone());
        for batch in OrderedPass::new(self.context.images.subset(images)?, transform, pass_config(at_once))? {
            safety.go_on("while channels were ranked")?;
            let batch = batch?;
            let mask = Var::ones(groups.len(), DType::F32, device)?;
            let forward = Forward::new(graph, self.params, Mode::Eval).sparing(memory);
            let output = forward.masked(layout.gather(mask.as_tensor())?).run(&batch.to_tensor(device)?)?;
            let loss = loss(&output.logits, &batch.indices)?;
            if let Some(gradient) = output.backward(&loss)?.get(&mask) {
                add(&gradient.to_vec1::<f32>()?);
            }
        }
        Ok(())
    }
}
