//! Batch normalisation folded into the layer in front of it.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use crate::graph::{Graph, GraphBuilder, NodeId, Op};
use crate::weights::ParamTensors;
use crate::{Error, Result};

/// A network for inference: the same logits with fewer operations.
#[derive(Debug, Clone)]
pub struct Folded {
    /// The graph without the batch normalisations that could be folded and without dropout.
    pub graph: Graph,
    /// Its parameters.
    pub params: ParamTensors,
}

impl Folded {
    /// Folds every batch normalisation that alone reads a convolution or linear layer into that layer's weight and
    /// bias, and drops dropout. A normalisation elsewhere (in front of its convolution, as in DenseNet) stays.
    ///
    /// Takes the parameters by value, so that a caller who holds no other copy never holds them twice.
    ///
    /// # Errors
    /// [`Error::Shape`] if a parameter is missing; [`Error::Tensor`] from the tensor library.
    pub fn new(graph: &Graph, mut params: ParamTensors) -> Result<Self> {
        let consumers = graph.consumers();
        let normed: BTreeMap<NodeId, (NodeId, f64)> = (graph.nodes().iter().enumerate())
            .filter_map(|(id, node)| match node.op {
                Op::BatchNorm { eps } => Some((node.inputs[0], (id, eps))),
                _ => None,
            })
            .filter(|(producer, _)| {
                let op = &graph.nodes()[*producer].op;
                matches!(op, Op::Conv2d(_) | Op::Linear { .. }) && consumers[*producer].len() == 1
            })
            .collect();
        let mut builder = GraphBuilder::new(graph.name(), graph.input_shape());
        let mut folded = ParamTensors::new();
        let mut position: Vec<NodeId> = vec![0];
        for (id, node) in graph.nodes().iter().enumerate().skip(1) {
            let inputs: Vec<NodeId> = node.inputs.iter().map(|&i| position[i]).collect();
            let absorbed = matches!(node.op, Op::BatchNorm { .. }) && normed.contains_key(&node.inputs[0]);
            if absorbed || matches!(node.op, Op::Dropout { .. }) {
                position.push(inputs[0]);
                continue;
            }
            let mut own = take(graph, id, &mut params)?;
            let mut op = node.op.clone();
            if let Some(&(norm, eps)) = normed.get(&id) {
                let norm = take(graph, norm, &mut params)?;
                fold_norm(&mut own, &norm, eps)?;
                match &mut op {
                    Op::Conv2d(conv) => conv.bias = true,
                    Op::Linear { bias, .. } => *bias = true,
                    _ => {}
                }
            }
            folded.extend(own.into_iter().map(|(suffix, tensor)| (format!("{}.{suffix}", node.name), tensor)));
            position.push(builder.node(&node.name, op, &inputs));
        }
        Ok(Self { graph: builder.finish()?, params: folded })
    }
}

/// Moves the parameters of node `id` out of `params`, by suffix.
fn take(graph: &Graph, id: NodeId, params: &mut ParamTensors) -> Result<BTreeMap<String, Tensor>> {
    let prefix = format!("{}.", graph.nodes()[id].name);
    (graph.node_params(id).into_iter())
        .map(|spec| match params.remove(&spec.name) {
            Some(tensor) if tensor.dims() == spec.shape => {
                let suffix = spec.name.strip_prefix(&prefix).unwrap_or(&spec.name);
                Ok((suffix.to_string(), tensor))
            }
            Some(tensor) => Err(Error::Shape(format!(
                "{}: parameter {}: expected shape {:?}, got {:?}",
                graph.name(),
                spec.name,
                spec.shape,
                tensor.dims()
            ))),
            None => Err(Error::Shape(format!("{}: parameter {} is missing", graph.name(), spec.name))),
        })
        .collect()
}

/// y = γ·(W x + b − μ)/σ + β, as one weight and one bias. In f64: the factors of a pretrained network span many
/// orders of magnitude.
fn fold_norm(own: &mut BTreeMap<String, Tensor>, norm: &BTreeMap<String, Tensor>, eps: f64) -> Result<()> {
    let vector = |params: &BTreeMap<String, Tensor>, name: &str| -> Result<Vec<f32>> {
        let tensor = params.get(name).ok_or_else(|| Error::Shape(format!("parameter {name} is missing")))?;
        Ok(tensor.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?)
    };
    let (gamma, beta) = (vector(norm, "weight")?, vector(norm, "bias")?);
    let (mean, var) = (vector(norm, "running_mean")?, vector(norm, "running_var")?);
    let weight = own.get("weight").ok_or_else(|| Error::Shape("parameter weight is missing".to_string()))?.clone();
    let (dims, device) = (weight.dims().to_vec(), weight.device().clone());
    let mut values = vector(own, "weight")?;
    let mut bias = if own.contains_key("bias") { vector(own, "bias")? } else { vec![0.0; gamma.len()] };
    let per_channel = values.len() / gamma.len().max(1);
    for (c, row) in values.chunks_mut(per_channel.max(1)).enumerate() {
        let factor = f64::from(gamma[c]) / (f64::from(var[c]) + eps).sqrt();
        row.iter_mut().for_each(|w| *w = (f64::from(*w) * factor) as f32);
        bias[c] = ((f64::from(bias[c]) - f64::from(mean[c])) * factor + f64::from(beta[c])) as f32;
    }
    own.insert("weight".to_string(), Tensor::from_vec(values, dims, &device)?);
    own.insert("bias".to_string(), Tensor::from_vec(bias, gamma.len(), &device)?);
    Ok(())
}
