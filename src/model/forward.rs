//! The training-time forward: one walk over the graph, differentiable in parameters and mask.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use super::Params;
use super::ops::{Norm, Ops, TensorOps};
use crate::graph::{Activation, Graph, NodeId, Op};
use crate::nn::{self, Backend, BatchStatistics, Tape, Value};
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
    /// The classifier's input, f32 `[N, features]`, detached.
    pub features: Tensor,
    /// Batch statistics of each batch normalisation (mode [`Mode::Train`] only), detached.
    pub statistics: Vec<(NodeId, BatchStatistics)>,
    /// How gradients come from logits to parameters, if kernels computed them and somebody wants gradients.
    record: Option<Record>,
}

/// A pass that can be run backwards.
#[derive(Debug)]
struct Record {
    /// What happened, of the last part.
    tape: Tape,
    logits: Value,
    /// The parts before it, and what computes them again.
    earlier: Vec<Tensor>,
    graph: Option<Graph>,
    params: Params,
    masks: HashMap<NodeId, Tensor>,
    mode: Mode,
    memory: ActivationMemory,
}

impl Record {
    /// Each parameter with its gradient.
    fn backward(self, gradient: &Tensor) -> Result<Vec<(Tensor, Tensor)>> {
        let mut end = gradient.dim(0)?;
        let mut part = |images: usize| {
            end -= images;
            gradient.narrow(0, end, images)
        };
        let mut sums = self.tape.backward(&self.logits, &part(self.logits.tensor().dim(0)?)?)?;
        let Some(graph) = &self.graph else { return Ok(sums) };
        let forward = Forward::new(graph, &self.params, self.mode).masked(self.masks);
        for images in self.earlier.iter().rev() {
            let mut tape = self.memory.tape();
            let (_, logits) = forward.walk(&mut tape, images)?;
            // Every part leaves the same parameters behind in the same order.
            for ((_, sum), (_, gradient)) in sums.iter_mut().zip(tape.backward(&logits, &part(images.dim(0)?)?)?) {
                nn::add_to(sum, &gradient)?;
            }
        }
        Ok(sums)
    }
}

impl Output {
    /// Gradients of `loss`, a function of the logits, with respect to every variable that the pass depended on. Frees
    /// the activations that were kept for this. (`loss.backward()` by itself ends at the logits.)
    ///
    /// # Errors
    /// [`Error::Tensor`] from the tensor library.
    pub fn backward(self, loss: &Tensor) -> Result<GradStore> {
        let mut store = loss.backward()?;
        let Some(record) = self.record else { return Ok(store) };
        let Some(gradient) = store.remove(&self.logits) else { return Ok(store) };
        nn::keep_awake();
        let mut behind: Option<Tensor> = None;
        for (parameter, gradient) in record.backward(&gradient)? {
            if parameter.is_variable() {
                store.insert(&parameter, gradient);
                continue;
            }
            // candle knows how the parameter was made: a function whose gradient there is this one carries it on.
            let product = (&parameter * gradient)?.sum_all()?;
            behind = Some(behind.map_or(Ok(product.clone()), |sum| sum + &product)?);
        }
        if let Some(behind) = behind {
            store.extend(behind.backward()?)?;
        }
        Ok(store)
    }
}

impl Output {
    /// The outputs of a batch's parts as one.
    fn join(mut parts: Vec<Self>) -> Result<Self> {
        let all = |of: &dyn Fn(&Self) -> &Tensor| Tensor::cat(&parts.iter().map(of).collect::<Vec<_>>(), 0);
        let (logits, features) = (all(&|part| &part.logits)?, all(&|part| &part.features)?);
        let share = 1.0 / parts.len() as f64;
        let mut statistics = parts.pop().map(|last| last.statistics).unwrap_or_default();
        for (i, (_, sum)) in statistics.iter_mut().enumerate().filter(|_| !parts.is_empty()) {
            for part in &parts {
                let BatchStatistics { mean, var } = &part.statistics[i].1;
                *sum = BatchStatistics { mean: (&sum.mean + mean)?, var: (&sum.var + var)? };
            }
            *sum = BatchStatistics { mean: (&sum.mean * share)?, var: (&sum.var * share)? };
        }
        Ok(Self { logits, features, statistics, record: None })
    }
}

/// Fewest images that batch statistics are taken of.
pub const LEAST_IMAGES: usize = 2;

/// A forward pass over a graph with given parameters.
#[derive(Debug)]
pub struct Forward<'a> {
    graph: &'a Graph,
    params: &'a Params,
    backend: Option<Backend>,
    mode: Mode,
    memory: ActivationMemory,
    masks: HashMap<NodeId, Tensor>,
}

/// How a pass spares memory for activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivationMemory {
    /// A batch is cut into so many parts, as equal as can be and of two images at least, that go through the kernels one
    /// after the other: memory for activations is that of one part. [`Output::backward`] computes all but the last again,
    /// a third more arithmetic at most. Gradients are those of the whole batch, with one difference: in mode
    /// [`Mode::Train`] each part is normalised by statistics of its own, and the statistics returned are their mean
    /// ("ghost" batch normalisation, Hoffer, Hubara, Soudry 2017, arXiv:1705.08741).
    pub parts: usize,
    /// Batch normalisations and sums are computed again for the backward pass, see [`Tape::recomputing`].
    pub recomputes: bool,
}

impl Default for ActivationMemory {
    /// Everything at once, everything kept.
    fn default() -> Self {
        Self { parts: 1, recomputes: false }
    }
}

impl ActivationMemory {
    fn tape(self) -> Tape {
        if self.recomputes { Tape::new().recomputing() } else { Tape::new() }
    }
}

impl<'a> Forward<'a> {
    /// A pass in `mode` without a mask.
    pub fn new(graph: &'a Graph, params: &'a Params, mode: Mode) -> Self {
        Self { graph, params, backend: None, mode, memory: ActivationMemory::default(), masks: HashMap::new() }
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

    /// Spares memory on the CPU; other devices keep everything.
    pub fn sparing(mut self, memory: ActivationMemory) -> Self {
        self.memory = memory;
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
        match self.backend.unwrap_or_else(|| Backend::for_device(images.device())) {
            Backend::TensorOps => Ok(self.walk(&mut TensorOps, images)?.0),
            Backend::Kernels => self.run_kernels(images),
        }
    }

    fn run_kernels(&self, images: &Tensor) -> Result<Output> {
        nn::keep_awake();
        let count = images.dim(0)?;
        let parts = self.memory.parts.min(count / LEAST_IMAGES).max(1);
        let mut images: Vec<Tensor> = (0..parts)
            .map(|i| images.narrow(0, i * count / parts, (i + 1) * count / parts - i * count / parts))
            .collect::<std::result::Result<_, _>>()?;
        let mut outputs = Vec::with_capacity(parts);
        for images in &images[..parts - 1] {
            outputs.push(self.walk(&mut Tape::without_gradients(), images)?.0);
        }
        let mut tape = self.memory.tape();
        let last = images.pop().ok_or_else(|| Error::Shape("expected at least one image, got none".into()))?;
        let (output, logits) = self.walk(&mut tape, &last)?;
        outputs.push(output);
        let mut output = Output::join(outputs)?;
        if !tape.is_empty() {
            output.logits = Var::from_tensor(&output.logits)?.into_inner();
            let again = !images.is_empty();
            output.record = Some(Record {
                tape,
                logits,
                earlier: images,
                graph: again.then(|| self.graph.clone()),
                params: if again { self.params.clone() } else { Params::new() },
                masks: self.masks.clone(),
                mode: self.mode,
                memory: self.memory,
            });
        }
        Ok(output)
    }

    fn walk<O: Ops>(&self, ops: &mut O, images: &Tensor) -> Result<(Output, O::Value)> {
        let nodes = self.graph.nodes();
        let consumers = self.graph.consumers();
        let mut readers_left: Vec<usize> = consumers.iter().map(Vec::len).collect();
        let mut values: Vec<Option<O::Value>> = vec![None; nodes.len()];
        let mut statistics = Vec::new();
        let mut features = None;
        values[0] = Some(ops.images(images)?);
        for id in 1..nodes.len() {
            let node = &nodes[id];
            let inputs = node.inputs.iter().map(|&i| self.value(&values, i)).collect::<Result<Vec<_>>>()?;
            for &input in &node.inputs {
                readers_left[input] -= 1;
                if readers_left[input] == 0 {
                    values[input] = None;
                }
            }
            if id == self.graph.output() {
                features = inputs.first().map(|input| O::tensor(input).detach());
            }
            let out = match &node.op {
                // Computed together with what is in front of it.
                Op::Activation { .. } if self.fused_activation(node.inputs[0], &consumers).is_some() => {
                    inputs[0].clone()
                }
                Op::BatchNorm { eps } => {
                    let activation = self.fused_activation(id, &consumers);
                    let (y, batch) = self.batch_norm(ops, (id, *eps), &inputs[0], activation)?;
                    statistics.extend(batch.map(|batch| (id, batch)));
                    y
                }
                Op::Add => {
                    let y = ops.add(&inputs.iter().collect::<Vec<_>>(), self.fused_activation(id, &consumers))?;
                    self.masked_output(ops, id, y)?
                }
                op => {
                    let for_norm = self.mode == Mode::Train
                        && consumers[id].iter().any(|&reader| matches!(nodes[reader].op, Op::BatchNorm { .. }));
                    let y = self.compute(ops, (id, op, for_norm), &inputs)?;
                    self.masked_output(ops, id, y)?
                }
            };
            values[id] = Some(out);
        }
        let value = self.value(&values, self.graph.output())?;
        let logits = O::tensor(&value).clone();
        let features = features.unwrap_or_else(|| logits.detach());
        Ok((Output { features, logits, statistics, record: None }, value))
    }

    fn value<V: Clone>(&self, values: &[Option<V>], id: NodeId) -> Result<V> {
        values[id].clone().ok_or_else(|| Error::Shape(format!("{}: node {} has no value", self.graph.name(), id)))
    }

    fn param(&self, id: NodeId, suffix: &str) -> Result<&Tensor> {
        let name = format!("{}.{suffix}", self.graph.nodes()[id].name);
        self.params
            .get(&name)
            .ok_or_else(|| Error::Shape(format!("{}: parameter {name} is missing", self.graph.name())))
    }

    /// The activation that alone reads `id` and is computed together with it, if there is one.
    fn fused_activation(&self, id: NodeId, consumers: &[Vec<NodeId>]) -> Option<Activation> {
        let [only] = consumers[id].as_slice() else { return None };
        let nodes = self.graph.nodes();
        match (&nodes[id].op, &nodes[*only].op) {
            (Op::BatchNorm { .. }, Op::Activation { function }) => Some(*function),
            (Op::Add, Op::Activation { function: function @ (Activation::Relu | Activation::Relu6) })
                if !self.masks.contains_key(&id) =>
            {
                Some(*function)
            }
            _ => None,
        }
    }

    fn batch_norm<O: Ops>(
        &self,
        ops: &mut O,
        (id, eps): (NodeId, f64),
        x: &O::Value,
        activation: Option<Activation>,
    ) -> Result<(O::Value, Option<BatchStatistics>)> {
        let (mut weight, mut bias) = (self.param(id, "weight")?.clone(), self.param(id, "bias")?.clone());
        if let Some(mask) = self.masks.get(&id) {
            weight = (&weight * mask)?;
            bias = (&bias * mask)?;
        }
        let norm = Norm { weight: ops.parameter(&weight)?, bias: ops.parameter(&bias)?, eps, activation };
        match self.mode {
            Mode::Train => {
                let (y, batch) = ops.batch_norm_train(x, norm)?;
                Ok((y, Some(batch)))
            }
            Mode::Eval => {
                let running = [self.param(id, "running_mean")?, self.param(id, "running_var")?];
                Ok((ops.batch_norm_eval(x, norm, running)?, None))
            }
        }
    }

    fn compute<O: Ops>(
        &self,
        ops: &mut O,
        (id, op, for_norm): (NodeId, &Op, bool),
        inputs: &[O::Value],
    ) -> Result<O::Value> {
        let x = &inputs[0];
        match op {
            Op::Conv2d(conv) => {
                let (weight, bias) = self.layer(ops, id, conv.bias)?;
                ops.conv2d(x, &weight, bias.as_ref(), conv, for_norm)
            }
            Op::Linear { bias, .. } => {
                let (weight, bias) = self.layer(ops, id, *bias)?;
                ops.linear(x, &weight, bias.as_ref())
            }
            Op::Activation { function } => ops.activation(x, *function),
            Op::MaxPool(pool) => ops.max_pool2d(x, pool),
            Op::AvgPool(pool) => ops.avg_pool2d(x, pool),
            Op::GlobalAvgPool => ops.global_avg_pool(x),
            Op::Subsample { stride } => ops.subsample(x, *stride),
            Op::PadChannels { before, after } => ops.pad_channels(x, *before, *after),
            Op::Scale => ops.scale(x, &inputs[1]),
            Op::Concat => ops.concat(&inputs.iter().collect::<Vec<_>>()),
            Op::Flatten => ops.flatten(x),
            Op::Dropout { .. } => Ok(x.clone()),
            Op::Input { .. } | Op::BatchNorm { .. } | Op::Add => {
                Err(Error::Shape(format!("{}: node {id} is out of place", self.graph.name())))
            }
        }
    }

    /// Weight and bias of layer `id`.
    fn layer<O: Ops>(&self, ops: &mut O, id: NodeId, bias: bool) -> Result<(O::Value, Option<O::Value>)> {
        let weight = ops.parameter(self.param(id, "weight")?)?;
        let bias = if bias { Some(ops.parameter(self.param(id, "bias")?)?) } else { None };
        Ok((weight, bias))
    }

    /// Batch normalisation has its mask in scale and shift; elsewhere it multiplies the producer's own output.
    fn masked_output<O: Ops>(&self, ops: &mut O, id: NodeId, y: O::Value) -> Result<O::Value> {
        let Some(mask) = self.masks.get(&id) else { return Ok(y) };
        let mask = ops.parameter(mask)?;
        ops.mask(&y, &mask)
    }
}

#[cfg(test)]
mod tests;
