//! From a folded graph to steps with kernels, packed weights and places in memory.

use std::collections::HashMap;

use super::EngineConfig;
use super::calibration::Calibration;
use super::element::Quant;
use super::fold::Folded;
use super::fuse::{Step, fuse, is_dense, is_depthwise};
pub(super) use super::kernels::View;
use super::kernels::{
    Activate, Affine, Concat, Conv, ConvInt8, ConvWeights, Depthwise, Flatten, GlobalAvgPool, ImageIn, Kernel,
    PadChannels, PoolKind, Pooling, Scale, Subsample, Sum, Winograd,
};
use super::memory::{Lifetime, place};
use super::select::winograd_tile;
use crate::graph::{Conv2d, Graph, NodeId, Op};
use crate::simd::epilogue::Epilogue;
use crate::simd::{Isa, padded};
use crate::weights::ParamTensors;
use crate::{Error, Result};

/// A step ready to run.
pub(super) struct Planned {
    /// The layer's name in the graph.
    pub layer: String,
    /// Output shape, without the batch.
    pub shape: Vec<usize>,
    /// The node whose value it writes, and where.
    pub value: String,
    pub output: View,
    /// Multiply-accumulates per image.
    pub macs: u64,
    pub kernel: Box<dyn Kernel>,
}

/// A compiled network.
pub(super) struct Plan {
    pub steps: Vec<Planned>,
    /// Stored values of activations for the largest batch.
    pub arena: usize,
    /// f32 values of scratch per worker.
    pub scratch: usize,
    /// Where the logits lie, and whether as f32 whatever the arena holds.
    pub logits: View,
    pub real_logits: bool,
}

impl Plan {
    /// Compiles `folded`; with a calibration, to 8 bits.
    ///
    /// # Errors
    /// [`Error::Shape`] if a parameter is missing; [`Error::Tensor`] if one cannot be read; [`Error::Config`] if the
    /// calibration lacks a node.
    pub fn new(folded: Folded, config: EngineConfig, calibration: Option<&Calibration>) -> Result<Self> {
        let Folded { graph, params } = folded;
        let steps = fuse(&graph);
        let mut views = views(&graph, &steps);
        if let Some(calibration) = calibration {
            quantize(&graph, &steps, &mut views, calibration)?;
        }
        let last = steps.last().map_or(0, |step| step.output);
        let dense_last = steps.last().is_some_and(|step| is_dense(&graph, step.node));
        let real_logits = calibration.is_some() && dense_last;
        let widths = |id: NodeId| if real_logits && id == last { size_of::<f32>() } else { 1 };
        let arena = assign(&graph, &steps, &mut views, (config.max_batch, &widths));
        let mut planned = vec![Planned {
            layer: "input".to_string(),
            shape: graph.shape(0).dims(),
            value: graph.nodes()[0].name.clone(),
            output: views[&0],
            macs: 0,
            kernel: Box::new(ImageIn { output: views[&0] }),
        }];
        let mut build = Builder { graph: &graph, views: &views, params, isa: config.isa, int8: calibration.is_some() };
        for step in &steps {
            planned.push(Planned {
                layer: graph.nodes()[step.node].name.clone(),
                shape: graph.shape(step.output).dims(),
                value: graph.nodes()[step.output].name.clone(),
                output: views[&step.output],
                macs: graph.node_cost(step.node).macs,
                kernel: build.kernel(step, real_logits && step.output == last)?,
            });
        }
        let scratch = planned.iter().map(|step| step.kernel.scratch()).max().unwrap_or(0);
        Ok(Self { steps: planned, arena, scratch, logits: views[&last], real_logits })
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
            (id, View { offset: 0, size, channels, pixel: padded(channels), margin: [0; 4], quant: Quant::IDENTITY })
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

/// Gives every value its quantisation. What only moves or compares values keeps that of its input.
fn quantize(graph: &Graph, steps: &[Step], views: &mut HashMap<NodeId, View>, calibration: &Calibration) -> Result<()> {
    let mut set = |id: NodeId, quant: Quant| {
        if let Some(view) = views.get_mut(&id) {
            view.quant = quant;
        }
        quant
    };
    let mut known = HashMap::from([(0, set(0, calibration.quant(&graph.nodes()[0].name)?))]);
    for step in steps {
        let quant = match graph.nodes()[step.node].op {
            Op::MaxPool(_) | Op::Subsample { .. } | Op::PadChannels { .. } | Op::Flatten => {
                known.get(&step.inputs[0]).copied().unwrap_or(Quant::IDENTITY)
            }
            _ => calibration.quant(&graph.nodes()[step.output].name)?,
        };
        known.insert(step.output, set(step.output, quant));
    }
    Ok(())
}

/// Gives every value its place, each stored value counted `widths` times; returns the size of the whole.
fn assign(
    graph: &Graph,
    steps: &[Step],
    views: &mut HashMap<NodeId, View>,
    (max_batch, widths): (usize, &dyn Fn(NodeId) -> usize),
) -> usize {
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
        .map(|id| Lifetime { size: views[id].image() * max_batch * widths(*id), first: lives[id].0, last: lives[id].1 })
        .collect();
    let (offsets, total) = place(&buffers);
    for (id, offset) in ids.into_iter().zip(offsets) {
        if let Some(view) = views.get_mut(&id) {
            view.offset = offset;
        }
    }
    total
}

/// What kernels are made from.
struct Builder<'a> {
    graph: &'a Graph,
    views: &'a HashMap<NodeId, View>,
    params: ParamTensors,
    isa: Isa,
    int8: bool,
}

impl Builder<'_> {
    /// Takes a parameter out, so that its memory is free as soon as it is packed.
    fn take(&mut self, id: NodeId, suffix: &str) -> Result<Vec<f32>> {
        let name = format!("{}.{suffix}", self.graph.nodes()[id].name);
        let tensor = (self.params.remove(&name))
            .ok_or_else(|| Error::Shape(format!("{}: parameter {name} is missing", self.graph.name())))?;
        Ok(tensor.to_device(&candle_core::Device::Cpu)?.flatten_all()?.to_vec1()?)
    }

    /// A dense layer: `real` logits are written as f32.
    fn dense(&mut self, conv: Conv2d, step: &Step, real: bool) -> Result<Box<dyn Kernel>> {
        let (input, output) = (self.views[&step.inputs[0]], self.views[&step.output]);
        let tail = (step.residual.map(|id| self.views[&id]), Epilogue::new(step.activation));
        let weight = self.take(step.node, "weight")?;
        let bias = conv.bias.then(|| self.take(step.node, "bias")).transpose()?;
        let weights = ConvWeights { weight: &weight, bias: bias.as_deref() };
        Ok(if self.int8 {
            Box::new(ConvInt8::new((self.isa, real), conv, &weights, [input, output], tail))
        } else if let Some(tile) = winograd_tile(&conv, &input, &output) {
            Box::new(Winograd::new((self.isa, tile), conv, &weights, [input, output], tail))
        } else {
            Box::new(Conv::new(self.isa, conv, &weights, [input, output], tail))
        })
    }

    /// The kernel of a step.
    fn kernel(&mut self, step: &Step, real: bool) -> Result<Box<dyn Kernel>> {
        let node = &self.graph.nodes()[step.node];
        let inputs: Vec<View> = step.inputs.iter().map(|id| self.views[id]).collect();
        let (input, output) = (inputs[0], self.views[&step.output]);
        let epilogue = Epilogue::new(step.activation);
        Ok(match &node.op {
            Op::Conv2d(conv) if is_depthwise(self.graph, step.node) => {
                let weight = self.take(step.node, "weight")?;
                let bias = conv.bias.then(|| self.take(step.node, "bias")).transpose()?;
                let weights = ConvWeights { weight: &weight, bias: bias.as_deref() };
                Box::new(Depthwise::new(*conv, &weights, [input, output], epilogue))
            }
            Op::Conv2d(conv) => self.dense(*conv, step, real)?,
            Op::Linear { out_features, bias } => {
                self.dense(Conv2d { bias: *bias, ..Conv2d::new(*out_features, 1) }, step, real)?
            }
            Op::BatchNorm { eps } => {
                let mut vector = |suffix| self.take(step.node, suffix);
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
                return Err(Error::Shape(format!("{}: node {} cannot be a step", self.graph.name(), node.name)));
            }
        })
    }
}
