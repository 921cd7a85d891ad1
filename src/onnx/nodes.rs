//! What each operation is in ONNX.

use candle_core::{DType, Device};

use super::proto::{self, Attribute};
use super::{INPUT, OUTPUT};
use crate::graph::{Activation, Conv2d, Graph, NodeId, Op, Padding, Pool2d};
use crate::weights::ParamTensors;
use crate::{Error, Result};

/// Collects ONNX nodes and constants along the graph.
///
/// Values are called `NODE/PART`, constants `NODE.PART`. Names of nodes are unique and no part occurs in both, so
/// names of values and constants are unique, whatever the nodes are called.
pub(super) struct Nodes<'a> {
    graph: &'a Graph,
    params: &'a ParamTensors,
    /// For each node of the graph, the name of its output.
    outputs: Vec<String>,
    nodes: Vec<proto::Node>,
    constants: Vec<proto::Tensor>,
}

impl<'a> Nodes<'a> {
    /// The nodes and constants of `graph`.
    ///
    /// # Errors
    /// As [`super::export`].
    pub fn of(graph: &'a Graph, params: &'a ParamTensors) -> Result<(Vec<proto::Node>, Vec<proto::Tensor>)> {
        let mut all = Self { graph, params, outputs: Vec::new(), nodes: Vec::new(), constants: Vec::new() };
        for id in 0..graph.nodes().len() {
            let output = all.append(id)?;
            all.outputs.push(output);
        }
        Ok((all.nodes, all.constants))
    }

    /// Appends what node `id` computes and returns the name of its output.
    fn append(&mut self, id: NodeId) -> Result<String> {
        let graph = self.graph;
        let node = &graph.nodes()[id];
        let inputs: Vec<String> = node.inputs.iter().map(|&i| self.outputs[i].clone()).collect();
        let with = |more: &[String]| [&inputs, more].concat();
        Ok(match &node.op {
            Op::Input { .. } => INPUT.to_string(),
            // Nothing when serving.
            Op::Dropout { .. } => inputs.concat(),
            Op::Conv2d(conv) => {
                let params = self.params(id)?;
                self.emit(id, "Conv", with(&params), convolution(conv))
            }
            Op::Linear { .. } => {
                let params = self.params(id)?;
                self.emit(id, "Gemm", with(&params), vec![Attribute::int("transB", 1)])
            }
            Op::BatchNorm { eps } => {
                let params = self.params(id)?;
                self.emit(id, "BatchNormalization", with(&params), vec![Attribute::float("epsilon", *eps as f32)])
            }
            Op::Activation { function } => self.activation(id, *function, inputs),
            Op::MaxPool(pool) => self.emit(id, "MaxPool", inputs, pooling(pool)),
            Op::AvgPool(pool) => {
                let mut attributes = pooling(pool);
                attributes.push(Attribute::int("count_include_pad", 1));
                self.emit(id, "AveragePool", inputs, attributes)
            }
            Op::GlobalAvgPool => self.emit(id, "GlobalAveragePool", inputs, vec![]),
            Op::Subsample { stride } => {
                let bounds = [
                    self.integers(id, "starts", &[0, 0]),
                    self.integers(id, "ends", &[i64::MAX, i64::MAX]),
                    self.integers(id, "axes", &[2, 3]),
                    self.integers(id, "steps", &int(*stride)),
                ];
                self.emit(id, "Slice", with(&bounds), vec![])
            }
            Op::PadChannels { before, after } => {
                let pads = self.integers(id, "pads", &[0, *before as i64, 0, 0, 0, *after as i64, 0, 0]);
                self.emit(id, "Pad", with(&[pads]), vec![])
            }
            Op::Add => self.sum(id, inputs),
            Op::Scale => self.emit(id, "Mul", inputs, vec![]),
            Op::Concat => self.emit(id, "Concat", inputs, vec![Attribute::int("axis", 1)]),
            Op::Flatten => self.emit(id, "Flatten", inputs, vec![Attribute::int("axis", 1)]),
        })
    }

    fn activation(&mut self, id: NodeId, function: Activation, inputs: Vec<String>) -> String {
        match function {
            Activation::Relu => self.emit(id, "Relu", inputs, vec![]),
            Activation::Relu6 => {
                let bounds = [self.scalar(id, "min", 0.0), self.scalar(id, "max", 6.0)];
                self.emit(id, "Clip", [&inputs[..], &bounds].concat(), vec![])
            }
            Activation::Sigmoid => self.emit(id, "Sigmoid", inputs, vec![]),
            Activation::HardSigmoid => self.emit(id, "HardSigmoid", inputs, hard_sigmoid()),
            Activation::Silu => self.gated(id, "Sigmoid", inputs, vec![]),
            Activation::HardSwish => self.gated(id, "HardSigmoid", inputs, hard_sigmoid()),
        }
    }

    /// x times a function of x.
    fn gated(&mut self, id: NodeId, gate: &str, inputs: Vec<String>, attributes: Vec<Attribute>) -> String {
        let gate = self.emit_part(id, (gate, "gate"), inputs.clone(), attributes);
        self.emit(id, "Mul", [inputs, vec![gate]].concat(), vec![])
    }

    /// The inputs added one after the other, as the forward pass does.
    fn sum(&mut self, id: NodeId, inputs: Vec<String>) -> String {
        let mut left = inputs.into_iter();
        let mut sum = left.next().unwrap_or_default();
        let count = left.len();
        for (index, input) in left.enumerate() {
            let pair = vec![sum, input];
            sum = match index + 1 == count {
                true => self.emit(id, "Add", pair, vec![]),
                false => self.emit_part(id, ("Add", &format!("sum{index}")), pair, vec![]),
            };
        }
        sum
    }

    /// Appends the operator that gives node `id` its output.
    fn emit(&mut self, id: NodeId, op: &str, inputs: Vec<String>, attributes: Vec<Attribute>) -> String {
        self.emit_part(id, (op, "out"), inputs, attributes)
    }

    /// Appends an operator on the way to node `id`'s output; `part` names its value.
    fn emit_part(
        &mut self,
        id: NodeId,
        (op, part): (&str, &str),
        inputs: Vec<String>,
        attributes: Vec<Attribute>,
    ) -> String {
        let is_output = id == self.graph.output() && part == "out";
        let value = if is_output { OUTPUT.to_string() } else { format!("{}/{part}", self.graph.nodes()[id].name) };
        self.nodes.push(proto::Node {
            input: inputs,
            output: vec![value.clone()],
            name: value.clone(),
            op_type: op.to_string(),
            attribute: attributes,
        });
        value
    }

    /// Appends the parameters of node `id` and returns their names, in the graph's order, which is ONNX's, too.
    fn params(&mut self, id: NodeId) -> Result<Vec<String>> {
        let specs = self.graph.node_params(id);
        for spec in &specs {
            let wrong = |what: String| Error::Shape(format!("{}: parameter {} {what}", self.graph.name(), spec.name));
            let tensor = self.params.get(&spec.name).ok_or_else(|| wrong("is missing".into()))?;
            if tensor.dims() != spec.shape {
                return Err(wrong(format!("has shape {:?}, expected {:?}", tensor.dims(), spec.shape)));
            }
            let mut raw = Vec::with_capacity(tensor.elem_count() * size_of::<f32>());
            tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.write_bytes(&mut raw)?;
            self.constants.push(proto::Tensor {
                dims: spec.shape.iter().map(|&d| d as i64).collect(),
                data_type: proto::FLOAT,
                name: spec.name.clone(),
                raw_data: Some(raw),
            });
        }
        Ok(specs.into_iter().map(|spec| spec.name).collect())
    }

    fn integers(&mut self, id: NodeId, part: &str, values: &[i64]) -> String {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(id, part, (vec![values.len() as i64], proto::INT64), raw)
    }

    fn scalar(&mut self, id: NodeId, part: &str, value: f32) -> String {
        self.constant(id, part, (vec![], proto::FLOAT), value.to_le_bytes().to_vec())
    }

    fn constant(&mut self, id: NodeId, part: &str, (dims, data_type): (Vec<i64>, i32), raw: Vec<u8>) -> String {
        let name = format!("{}.{part}", self.graph.nodes()[id].name);
        self.constants.push(proto::Tensor { dims, data_type, name: name.clone(), raw_data: Some(raw) });
        name
    }
}

fn convolution(conv: &Conv2d) -> Vec<Attribute> {
    vec![
        Attribute::ints("kernel_shape", int(conv.kernel).to_vec()),
        Attribute::ints("strides", int(conv.stride).to_vec()),
        Attribute::ints("pads", pads(conv.padding)),
        Attribute::ints("dilations", int(conv.dilation).to_vec()),
        Attribute::int("group", conv.groups as i64),
    ]
}

fn pooling(pool: &Pool2d) -> Vec<Attribute> {
    vec![
        Attribute::ints("kernel_shape", int(pool.kernel).to_vec()),
        Attribute::ints("strides", int(pool.stride).to_vec()),
        Attribute::ints("pads", pads(pool.padding)),
    ]
}

/// relu6(x + 3) / 6 as ONNX has it: max(0, min(1, alpha · x + beta)).
fn hard_sigmoid() -> Vec<Attribute> {
    vec![Attribute::float("alpha", 1.0 / 6.0), Attribute::float("beta", 0.5)]
}

/// All beginnings, then all ends.
fn pads(p: Padding) -> Vec<i64> {
    [p.top, p.left, p.bottom, p.right].map(|pixels| pixels as i64).to_vec()
}

fn int(pair: [usize; 2]) -> [i64; 2] {
    pair.map(|n| n as i64)
}
