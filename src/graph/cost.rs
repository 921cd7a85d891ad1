//! The cost rule: multiply-accumulates, parameters and bytes of each operation.

use std::ops::{Add, AddAssign};

use serde::{Deserialize, Serialize};

use super::{Graph, NodeId, Op};

/// What a node or a network costs, per image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Multiply-accumulates of convolutions and linear layers (1 MAC = 2 FLOPs); other operations count 0.
    pub macs: u64,
    /// Trained values (weights, biases, batch-norm scale and shift; no running statistics).
    pub params: u64,
    /// Bytes of all tensors stored in f32, running statistics included.
    pub bytes: u64,
    /// Bytes of the outputs in f32.
    pub activation_bytes: u64,
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            macs: self.macs.saturating_add(other.macs),
            params: self.params.saturating_add(other.params),
            bytes: self.bytes.saturating_add(other.bytes),
            activation_bytes: self.activation_bytes.saturating_add(other.activation_bytes),
        }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::default(), Add::add)
    }
}

impl Graph {
    /// Cost of node `id`.
    pub fn node_cost(&self, id: NodeId) -> Cost {
        let node = &self.nodes()[id];
        let out = self.shape(id);
        let channels_in = node.inputs.first().map_or(0, |&i| self.shape(i).channels()) as u64;
        let macs = match &node.op {
            Op::Conv2d(c) => {
                let per_output = (channels_in / c.groups as u64) * (c.kernel[0] * c.kernel[1]) as u64;
                out.elements().saturating_mul(per_output)
            }
            Op::Linear { out_features, .. } => channels_in * *out_features as u64,
            Op::Input { .. }
            | Op::BatchNorm { .. }
            | Op::Activation { .. }
            | Op::MaxPool(_)
            | Op::AvgPool(_)
            | Op::GlobalAvgPool
            | Op::Subsample { .. }
            | Op::PadChannels { .. }
            | Op::Add
            | Op::Scale
            | Op::Concat
            | Op::Flatten
            | Op::Dropout { .. } => 0,
        };
        let (mut params, mut values) = (0, 0);
        for spec in self.node_params(id) {
            let n: u64 = spec.shape.iter().map(|d| *d as u64).product();
            values += n;
            if spec.kind.is_trained() {
                params += n;
            }
        }
        Cost { macs, params, bytes: 4 * values, activation_bytes: 4 * out.elements() }
    }

    /// Cost of the whole network.
    pub fn cost(&self) -> Cost {
        (0..self.nodes().len()).map(|id| self.node_cost(id)).sum()
    }
}
