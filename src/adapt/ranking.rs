//! The ranking of channels that breaks ADMM's ties.

use std::collections::HashMap;

use candle_core::{DType, Tensor, Var};

use super::memory::at_evaluation_size;
use super::pass::Answers;
use super::run::Context;
use super::target::pass_config;
use super::teacher_phase::transfer_loss;
use crate::Result;
use crate::data::{OrderedPass, Transform};
use crate::loss;
use crate::model::{ChannelMask, Forward, Mode, Params};
use crate::prune::importance::{Criterion, Fisher, Taylor, magnitude, percentile_rank};
use crate::rng::Rng;

/// Each mask entry's importance percentile in [0, 1], by the configured criterion.
///
/// Fisher information needs labels: they are sampled from the teacher's own softmax. TCP's criterion needs a loss of task
/// and transfer: without source data it is that of phase 1, with pseudo labels from the teacher's answers. So no true label
/// is used.
pub(super) fn rank(context: &Context, params: &Params, teacher: &Answers) -> Result<Vec<f32>> {
    let scores = match context.config.mask.criterion {
        Criterion::Magnitude => magnitude(&context.teacher.graph, context.groups, params)?,
        Criterion::Fisher => fisher(context, params, teacher)?,
        Criterion::Transfer => transfer(context, params, teacher)?,
    };
    Ok(percentile_rank(&scores))
}

fn fisher(context: &Context, params: &Params, teacher: &Answers) -> Result<Vec<f64>> {
    let mut rng = Rng::stream(context.config.seed, 0x4649_5348);
    let mut fisher = Fisher::new(context.groups.len());
    let order = sample(context, &mut rng);
    let loss = |logits: &Tensor, indices: &[usize]| {
        let probs = candle_nn::ops::softmax(&teacher.logits_of(indices)?, 1)?.to_vec2::<f32>()?;
        let sampled: Vec<u32> = probs.iter().map(|row| rng.weighted(row) as u32).collect();
        loss::cross_entropy(logits, &Tensor::from_vec(sampled, indices.len(), context.device)?, None)
    };
    mask_gradients(context, params, order, loss, |gradient| fisher.add(gradient))?;
    Ok(fisher.scores())
}

fn transfer(context: &Context, params: &Params, teacher: &Answers) -> Result<Vec<f64>> {
    let mut taylor = Taylor::new(context.groups.len());
    let order = sample(context, &mut Rng::stream(context.config.seed, 0x5443_5021));
    let pseudo = loss::pseudo_labels(&teacher.features, &teacher.logits)?;
    let weights = pseudo.confidence_weights(context.teacher.graph.num_classes());
    let labels: HashMap<usize, (u32, f32)> =
        teacher.indices.iter().copied().zip(pseudo.labels.iter().copied().zip(weights)).collect();
    let weight = context.config.teacher.pseudo_label_weight;
    let loss =
        |logits: &Tensor, indices: &[usize]| transfer_loss(logits, indices, &labels, weight).map(|(total, _)| total);
    mask_gradients(context, params, order, loss, |gradient| taylor.add(gradient))?;
    Ok(taylor.scores(context.groups.prunable().map(|group| group.entries.clone())))
}

/// Images for an estimate.
fn sample(context: &Context, rng: &mut Rng) -> Vec<usize> {
    let mut order = context.train.clone();
    rng.shuffle(&mut order);
    order.truncate(context.config.mask.importance_batches * context.config.batch_size);
    order
}

/// Hands `add` the gradient of `loss` with respect to a mask of ones, batch by batch of the images in `order`.
fn mask_gradients(
    context: &Context,
    params: &Params,
    order: Vec<usize>,
    mut loss: impl FnMut(&Tensor, &[usize]) -> Result<Tensor>,
    mut add: impl FnMut(&[f32]),
) -> Result<()> {
    let Context { config, device, groups, memory, .. } = context;
    let memory = at_evaluation_size(*memory, &context.teacher.graph, config);
    let layout = ChannelMask::new(groups, device)?;
    let transform = Transform::Eval(context.teacher.info.preprocess.clone());
    for batch in OrderedPass::new(context.images.subset(order)?, transform, pass_config(config.batch_size))? {
        context.safety.go_on("while channels were ranked")?;
        let batch = batch?;
        let mask = Var::ones(groups.len(), DType::F32, device)?;
        let forward = Forward::new(&context.teacher.graph, params, Mode::Eval).sparing(memory);
        let output = forward.masked(layout.gather(mask.as_tensor())?).run(&batch.to_tensor(device)?)?;
        let loss = loss(&output.logits, &batch.indices)?;
        if let Some(gradient) = output.backward(&loss)?.get(&mask) {
            add(&gradient.to_vec1::<f32>()?);
        }
    }
    Ok(())
}
