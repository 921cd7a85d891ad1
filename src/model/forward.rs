//! The training-time forward: one walk over the graph, differentiable in parameters and mask.

use std::collections::HashMap;

use candle_core::Tensor;

use super::Params;
use crate::graph::{Activation, Graph, NodeId, Op};
use crate::nn::{self, Backend, BatchStatistics};
use crate::{Error, Result};

/// Which statistics batch normalisation uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Running statistics: what a served model does.
    Eval,
    /// Statistics of the batch, which are returned.
    Train,
}

/// What a forward pass returns.
#[derive(Debug)]
pub struct Output {
    /// Raw logits, f32 `[N, classes]`.
    pub logits: Tensor,
    /// The classifier's input, f32 `[N, features]`.
    pub features: Tensor,
    /// Batch statistics of each batch normalisation (mode [`Mode::Train`] only), detached.
    pub statistics: Vec<(NodeId, BatchStatistics)>,
}

/// A forward pass over a graph with given parameters.
#[derive(Debug)]
pub struct Forward<'a> {
    graph: &'a Graph,
    params: &'a Params,
    backend: Option<Backend>,
    mode: Mode,
    masks: HashMap<NodeId, Tensor>,
}

impl<'a> Forward<'a> {
    /// A pass in `mode` without a mask.
    pub fn new(graph: &'a Graph, params: &'a Params, mode: Mode) -> Self {
        Self { graph, params, backend: None, mode, masks: HashMap::new() }
    }

    /// Lays per-layer mask vectors (see [`super::ChannelMask::gather`]) over the network.
    pub fn masked(mut self, masks: HashMap<NodeId, Tensor>) -> Self {
        self.masks = masks;
        self
    }

    /// Uses `backend` instead of the one for the images' device.
    pub fn with_backend(mut self, backend: Backend) -> Self {
        self.backend = Some(backend);
        self
    }

    /// Runs the pass.
    ///
    /// Dropout is the identity in both modes: adaptation is driven by a teacher's answers, and their agreement
    /// must not depend on chance.
    ///
    /// # Shapes
    /// `images` f32 `[N, C, H, W]`, normalised; H and W may differ from the graph's input size where the network
    /// allows it.
    ///
    /// # Errors
    /// [`Error::Shape`] if channels or a parameter's shape do not fit; [`Error::Tensor`] from the tensor library.
    pub fn run(&self, images: &Tensor) -> Result<Output> {
        let [channels, ..] = self.graph.input_shape();
        match images.dims() {
            [_, c, _, _] if *c == channels => {}
            other => {
                return Err(Error::Shape(format!(
                    "{}: expected images of shape [N, {channels}, H, W], got {other:?}",
                    self.graph.name()
                )));
            }
        }
        let backend = self.backend.unwrap_or_else(|| Backend::for_device(images.device()));
        let nodes = self.graph.nodes();
        let consumers = self.graph.consumers();
        let mut readers_left: Vec<usize> = consumers.iter().map(Vec::len).collect();
        let mut values: Vec<Option<Tensor>> = vec![None; nodes.len()];
        let mut statistics = Vec::new();
        let mut features = None;
        values[0] = Some(backend.from_nchw(images)?);
        for id in 1..nodes.len() {
            let node = &nodes[id];
            let inputs = node.inputs.iter().map(|&i| self.value(&values, i)).collect::<Result<Vec<_>>>()?;
            if id == self.graph.output() {
                features = inputs.first().cloned();
            }
            let out = match &node.op {
                // An activation is computed together with the batch normalisation in front of it.
                Op::Activation { .. } if self.fused_activation(node.inputs[0], &consumers).is_some() => {
                    inputs[0].clone()
                }
                Op::BatchNorm { eps } => {
                    let activation = self.fused_activation(id, &consumers);
                    let (y, batch) = self.batch_norm((id, *eps), &inputs[0], backend, activation)?;
                    statistics.extend(batch.map(|batch| (id, batch)));
                    y
                }
                op => self.compute(id, op, &inputs, backend)?,
            };
            values[id] = Some(out);
            for &input in &node.inputs {
                readers_left[input] -= 1;
                if readers_left[input] == 0 {
                    values[input] = None;
                }
            }
        }
        let logits = self.value(&values, self.graph.output())?;
        Ok(Output { features: features.unwrap_or_else(|| logits.clone()), logits, statistics })
    }

    fn value(&self, values: &[Option<Tensor>], id: NodeId) -> Result<Tensor> {
        values[id].clone().ok_or_else(|| Error::Shape(format!("{}: node {} has no value", self.graph.name(), id)))
    }

    fn param(&self, id: NodeId, suffix: &str) -> Result<&Tensor> {
        let name = format!("{}.{suffix}", self.graph.nodes()[id].name);
        self.params
            .get(&name)
            .ok_or_else(|| Error::Shape(format!("{}: parameter {name} is missing", self.graph.name())))
    }

    /// The activation that alone reads batch normalisation `id`, if there is one.
    fn fused_activation(&self, id: NodeId, consumers: &[Vec<NodeId>]) -> Option<Activation> {
        let nodes = self.graph.nodes();
        match (&nodes[id].op, consumers[id].as_slice()) {
            (Op::BatchNorm { .. }, [only]) => match &nodes[*only].op {
                Op::Activation { function } => Some(*function),
                _ => None,
            },
            _ => None,
        }
    }

    fn batch_norm(
        &self,
        (id, eps): (NodeId, f64),
        x: &Tensor,
        backend: Backend,
        activation: Option<Activation>,
    ) -> Result<(Tensor, Option<BatchStatistics>)> {
        let (mut weight, mut bias) = (self.param(id, "weight")?.clone(), self.param(id, "bias")?.clone());
        if let Some(mask) = self.masks.get(&id) {
            weight = (&weight * mask)?;
            bias = (&bias * mask)?;
        }
        let norm = nn::BatchNorm { weight: &weight, bias: &bias, eps, activation };
        match self.mode {
            Mode::Train => {
                let (y, batch) = nn::batch_norm_train(backend, x, norm)?;
                Ok((y, Some(batch)))
            }
            Mode::Eval => {
                let (mean, var) = (self.param(id, "running_mean")?, self.param(id, "running_var")?);
                Ok((nn::batch_norm_eval(backend, x, norm, mean, var)?, None))
            }
        }
    }

    fn compute(&self, id: NodeId, op: &Op, inputs: &[Tensor], backend: Backend) -> Result<Tensor> {
        let x = &inputs[0];
        let y = match op {
            Op::Conv2d(conv) => {
                let bias = if conv.bias { Some(self.param(id, "bias")?) } else { None };
                nn::conv2d(backend, x, self.param(id, "weight")?, bias, conv)?
            }
            Op::Linear { bias, .. } => {
                let bias = if *bias { Some(self.param(id, "bias")?) } else { None };
                nn::linear(backend, x, self.param(id, "weight")?, bias)?
            }
            Op::Activation { function } => nn::activation(backend, x, *function)?,
            Op::MaxPool(pool) => nn::max_pool2d(backend, x, pool)?,
            Op::AvgPool(pool) => nn::avg_pool2d(backend, x, pool)?,
            Op::GlobalAvgPool => nn::global_avg_pool(backend, x)?,
            Op::Subsample { stride } => nn::subsample(backend, x, *stride)?,
            Op::PadChannels { before, after } => nn::pad_channels(backend, x, *before, *after)?,
            Op::Add => inputs[1..].iter().try_fold(x.clone(), |sum, other| sum + other)?,
            Op::Scale => nn::scale(backend, x, &inputs[1])?,
            Op::Concat => nn::concat(backend, &inputs.iter().collect::<Vec<_>>())?,
            Op::Flatten => nn::flatten(backend, x)?,
            Op::Dropout { .. } => x.clone(),
            Op::Input { .. } | Op::BatchNorm { .. } => {
                return Err(Error::Shape(format!("{}: node {id} is out of place", self.graph.name())));
            }
        };
        // Batch normalisation has its mask in scale and shift; here it multiplies the producer's own output.
        match self.masks.get(&id) {
            Some(mask) if y.rank() == 4 => nn::mask_channels(backend, &y, mask),
            Some(mask) => Ok(y.broadcast_mul(mask)?),
            None => Ok(y),
        }
    }
}
