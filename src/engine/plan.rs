//! From a folded graph to steps with kernels, packed weights and places in memory.

use std::collections::HashMap;

use super::fold::Folded;
use super::fuse::{Step, fuse, is_depthwise};
use super::kernels::epilogue::Epilogue;
use super::kernels::{
    Activate, Affine, Concat, Conv, ConvWeights, Depthwise, Flatten, GlobalAvgPool, ImageIn, Kernel, PadChannels,
    PoolKind, Pooling, Scale, Subsample, Sum, View, Winograd,
};
use super::memory::{Lifetime, place};
use super::select::winograd_tile;
use super::simd::{Isa, padded};
use crate::graph::{Conv2d, Graph, NodeId, Op};
use crate::weights::ParamTensors;
use crate::{Error, Result};

/// A step ready to run.
pub(super) struct Planned {
    /// The layer's name in the graph.
    pub layer: String,
    /// Output shape, without the batch.
    pub shape: Vec<usize>,
    /// Multiply-accumulates per image.
    pub macs: u64,
    pub kernel: Box<dyn Kernel>,
}

/// A compiled network.
pub(super) struct Plan {
    pub steps: Vec<Planned>,
    /// f32 values of activations for the largest batch.
    pub arena: usize,
    /// f32 values of scratch per worker.
    pub scratch: usize,
    /// Where the logits lie.
    pub logits: View,
}

impl Plan {
    /// Compiles `folded` for `isa` and at most `max_batch` images.
    ///
    /// # Errors
    /// [`Error::Shape`] if a parameter is missing; [`Error::Tensor`] if one cannot be read.
    pub fn new(folded: Folded, isa: Isa, max_batch: usize) -> Result<Self> {
        let Folded { graph, mut params } = folded;
        let steps = fuse(&graph);
        let mut views = views(&graph, &steps);
        let arena = assign(&graph, &steps, &mut views, max_batch);
        let mut planned = vec![Planned {
            layer: "input".to_string(),
            shape: graph.shape(0).dims(),
            macs: 0,
            kernel: Box::new(ImageIn { output: views[&0] }),
        }];
        for step in &steps {
            planned.push(Planned {
                layer: graph.nodes()[step.node].name.clone(),
                shape: graph.shape(step.output).dims(),
                macs: graph.node_cost(step.node).macs,
                kernel: kernel(&graph, step, &views, (&mut params, isa))?,
            });
        }
        let scratch = planned.iter().map(|step| step.kernel.scratch()).max().unwrap_or(0);
        let last = steps.last().map_or(0, |step| step.output);
        Ok(Self { steps: planned, arena, scratch, logits: views[&last] })
    }

    /// Bytes of packed weights.
    pub fn weight_bytes(&self) -> usize {
        self.steps.iter().map(|step| step.kernel.weight_bytes()).sum()
    }
}

/// The layout of every value, without its place.
fn views(graph: &Graph, steps: &[Step]) -> HashMap<NodeId, View> {
    let mut views: HashMap<NodeId, View> = (std::iter::once(0).chain(steps.iter().map(|s| s.output)))
        .map(|id| {
            let (size, channels) = (graph.shape(id).spatial(), graph.shape(id).channels());
            (id, View { offset: 0, size, channels, pixel: padded(channels), margin: [0; 4] })
        })
        .collect();
    if let Some(conv) = stem(graph, steps)
        && let Some(image) = views.get_mut(&0)
    {
        let p = conv.padding;
        image.pixel = image.channels;
        image.margin = [p.top, p.bottom, p.left, p.right];
    }
    views
}

/// The dense convolution that alone reads the image, if there is one: it gets the image with its padding around and no
/// channel padding, so that a row of its kernel is one run of values.
fn stem<'a>(graph: &'a Graph, steps: &[Step]) -> Option<&'a Conv2d> {
    let mut readers = steps.iter().filter(|step| step.inputs.contains(&0) || step.residual == Some(0));
    let (first, None) = (readers.next()?, readers.next()) else { return None };
    match &graph.nodes()[first.node].op {
        Op::Conv2d(conv)
            if conv.dilation == [1, 1] && first.residual != Some(0) && !is_depthwise(graph, first.node) =>
        {
            Some(conv)
        }
        _ => None,
    }
}

/// Gives every value its place; returns the size of the whole.
fn assign(graph: &Graph, steps: &[Step], views: &mut HashMap<NodeId, View>, max_batch: usize) -> usize {
    // Step 0 writes the image, step i + 1 is `steps[i]`. The logits stay to the end.
    let mut lives: HashMap<NodeId, (usize, usize)> = HashMap::from([(0, (0, 0))]);
    for (i, step) in steps.iter().enumerate() {
        for input in step.inputs.iter().chain(&step.residual) {
            if let Some(life) = lives.get_mut(input) {
                life.1 = i + 1;
            }
        }
        let last = if i + 1 == steps.len() { i + 2 } else { i + 1 };
        lives.insert(step.output, (i + 1, last));
    }
    let ids: Vec<NodeId> = (0..graph.nodes().len()).filter(|id| views.contains_key(id)).collect();
    let buffers: Vec<Lifetime> = (ids.iter())
        .map(|id| Lifetime { size: views[id].image() * max_batch, first: lives[id].0, last: lives[id].1 })
        .collect();
    let (offsets, total) = place(&buffers);
    for (id, offset) in ids.into_iter().zip(offsets) {
        if let Some(view) = views.get_mut(&id) {
            view.offset = offset;
        }
    }
    total
}

/// Takes a parameter out, so that its memory is free as soon as it is packed.
fn take(graph: &Graph, id: NodeId, suffix: &str, params: &mut ParamTensors) -> Result<Vec<f32>> {
    let name = format!("{}.{suffix}", graph.nodes()[id].name);
    let tensor =
        params.remove(&name).ok_or_else(|| Error::Shape(format!("{}: parameter {name} is missing", graph.name())))?;
    Ok(tensor.to_device(&candle_core::Device::Cpu)?.flatten_all()?.to_vec1()?)
}

fn kernel(
    graph: &Graph,
    step: &Step,
    views: &HashMap<NodeId, View>,
    (params, isa): (&mut ParamTensors, Isa),
) -> Result<Box<dyn Kernel>> {
    let node = &graph.nodes()[step.node];
    let inputs: Vec<View> = step.inputs.iter().map(|id| views[id]).collect();
    let (input, output) = (inputs[0], views[&step.output]);
    let epilogue = Epilogue::new(step.activation);
    let residual = step.residual.map(|id| views[&id]);
    Ok(match &node.op {
        Op::Conv2d(conv) => {
            let weight = take(graph, step.node, "weight", params)?;
            let bias = conv.bias.then(|| take(graph, step.node, "bias", params)).transpose()?;
            let weights = ConvWeights { weight: &weight, bias: bias.as_deref() };
            if is_depthwise(graph, step.node) {
                Box::new(Depthwise::new(*conv, &weights, [input, output], epilogue))
            } else if let Some(tile) = winograd_tile(conv, &input, &output) {
                Box::new(Winograd::new((isa, tile), *conv, &weights, [input, output], (residual, epilogue)))
            } else {
                Box::new(Conv::new(isa, *conv, &weights, [input, output], (residual, epilogue)))
            }
        }
        Op::Linear { out_features, bias } => {
            let weight = take(graph, step.node, "weight", params)?;
            let bias = bias.then(|| take(graph, step.node, "bias", params)).transpose()?;
            let weights = ConvWeights { weight: &weight, bias: bias.as_deref() };
            let conv = Conv2d::new(*out_features, 1);
            Box::new(Conv::new(isa, conv, &weights, [input, output], (residual, epilogue)))
        }
        Op::BatchNorm { eps } => {
            let mut vector = |suffix| take(graph, step.node, suffix, params);
            let (weight, bias) = (vector("weight")?, vector("bias")?);
            let (mean, var) = (vector("running_mean")?, vector("running_var")?);
            let factor = |c: usize| f64::from(weight[c]) / (f64::from(var[c]) + eps).sqrt();
            let mut scale: Vec<f32> = (0..weight.len()).map(|c| factor(c) as f32).collect();
            let shift = |c: usize| (f64::from(bias[c]) - f64::from(mean[c]) * factor(c)) as f32;
            let mut shift: Vec<f32> = (0..weight.len()).map(shift).collect();
            scale.resize(output.pixel, 0.0);
            shift.resize(output.pixel, 0.0);
            Box::new(Affine { input, output, scale, shift, epilogue })
        }
        Op::Activation { .. } => Box::new(Activate { input, output, epilogue }),
        Op::MaxPool(pool) => Box::new(Pooling { input, output, pool: *pool, kind: PoolKind::Max }),
        Op::AvgPool(pool) => Box::new(Pooling { input, output, pool: *pool, kind: PoolKind::Average }),
        Op::GlobalAvgPool => Box::new(GlobalAvgPool { input, output }),
        Op::Subsample { stride } => Box::new(Subsample { input, output, stride: *stride }),
        Op::PadChannels { before, .. } => Box::new(PadChannels { input, output, before: *before }),
        Op::Add => Box::new(Sum { inputs, output, epilogue }),
        Op::Scale => Box::new(Scale { input, gate: inputs[1], output, epilogue }),
        Op::Concat => Box::new(Concat { inputs, output }),
        Op::Flatten => Box::new(Flatten { input, output }),
        Op::Input { .. } | Op::Dropout { .. } => {
            return Err(Error::Shape(format!("{}: node {} cannot be a step", graph.name(), node.name)));
        }
    })
}
