//! The ranking of channels that breaks ADMM's ties.

use candle_core::{Tensor, Var};

use super::pass::Answers;
use super::run::Context;
use super::target::pass_config;
use crate::Result;
use crate::data::{OrderedPass, Transform};
use crate::loss;
use crate::model::{ChannelMask, Forward, Mode, Params};
use crate::prune::importance::{Criterion, Fisher, magnitude, percentile_rank};
use crate::rng::Rng;

/// Each mask entry's importance percentile in [0, 1], by the configured criterion.
///
/// Fisher information needs labels: they are sampled from the teacher's own softmax, so no true label is used.
pub(super) fn rank(context: &Context, params: &Params, teacher: &Answers) -> Result<Vec<f32>> {
    let graph = &context.teacher.graph;
    let scores = match context.config.mask.criterion {
        Criterion::Magnitude => magnitude(graph, context.groups, params)?,
        Criterion::Fisher => fisher(context, params, teacher)?,
    };
    Ok(percentile_rank(&scores))
}

fn fisher(context: &Context, params: &Params, teacher: &Answers) -> Result<Vec<f64>> {
    let Context { config, device, groups, memory, .. } = context;
    let mut rng = Rng::stream(config.seed, 0x4649_5348);
    let mut order = context.train.clone();
    rng.shuffle(&mut order);
    order.truncate(config.mask.importance_batches * config.batch_size);
    let layout = ChannelMask::new(groups, device)?;
    let mut fisher = Fisher::new(groups.len());
    let transform = Transform::Eval(context.teacher.info.preprocess.clone());
    for batch in OrderedPass::new(context.images.subset(order)?, transform, pass_config(config.batch_size))? {
        let batch = batch?;
        let probs = teacher.logits_of(&batch.indices)?;
        let probs: Vec<Vec<f32>> = candle_nn::ops::softmax(&probs, 1)?.to_vec2()?;
        let sampled: Vec<u32> = probs.iter().map(|row| rng.weighted(row) as u32).collect();
        let labels = Tensor::from_vec(sampled, batch.indices.len(), device)?;
        let mask = Var::ones(groups.len(), candle_core::DType::F32, device)?;
        let forward = Forward::new(&context.teacher.graph, params, Mode::Eval).sparing(*memory);
        let output = forward.masked(layout.gather(mask.as_tensor())?).run(&batch.to_tensor(device)?)?;
        let loss = loss::cross_entropy(&output.logits, &labels, None)?;
        let store = output.backward(&loss)?;
        if let Some(gradient) = store.get(&mask) {
            fisher.add(&gradient.to_vec1()?);
        }
    }
    Ok(fisher.scores())
}
