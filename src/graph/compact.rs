//! The graph with channels removed: new widths, and for each node which of its channels are left.

use super::{ChannelGroups, Graph, GraphBuilder, NodeId, Op};
use crate::{Error, Result};

/// Which entries of the flat mask stay, `true` = keep. Length [`ChannelGroups::len`].
pub type Keep = [bool];

/// A narrower graph and the way back to the one it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Compaction {
    /// The graph after removal.
    pub graph: Graph,
    /// For each node the channels of the original output that are left, ascending.
    pub kept: Vec<Vec<usize>>,
}

impl Compaction {
    /// The positions along the input dimension of a node's weight that are left.
    ///
    /// # Shapes
    /// For `groups = 1` indices into the input's channels; for a grouped convolution indices within one block, so
    /// always 0 for a depthwise one.
    pub fn kept_inputs(&self, original: &Graph, id: NodeId) -> Vec<usize> {
        let node = &original.nodes()[id];
        let Some(&input) = node.inputs.first() else { return Vec::new() };
        let block = match &node.op {
            Op::Conv2d(_) if !original.produces(id) => return vec![0],
            Op::Conv2d(conv) => original.shape(input).channels() / conv.groups,
            _ => original.shape(input).channels(),
        };
        self.kept[input].iter().copied().filter(|&c| c < block).collect()
    }
}

impl Graph {
    /// Removes every entry of `groups` whose `keep` is false.
    ///
    /// # Errors
    /// [`Error::Shape`] if `keep` has the wrong length or a node would lose its last channel.
    pub fn compact(&self, groups: &ChannelGroups, keep: &Keep) -> Result<Compaction> {
        if keep.len() != groups.len() {
            return Err(Error::Shape(format!(
                "{}: expected {} mask entries, got {}",
                self.name(),
                groups.len(),
                keep.len()
            )));
        }
        let kept: Vec<Vec<usize>> = (0..self.nodes().len())
            .map(|id| {
                let entries = groups.node_entries(id).iter().enumerate();
                entries.filter(|(_, e)| keep.get(**e as usize).copied().unwrap_or(true)).map(|(c, _)| c).collect()
            })
            .collect();
        let [_, h, w] = self.input_shape();
        let mut builder = GraphBuilder::new(self.name(), [self.input_shape()[0], h, w]);
        for (id, node) in self.nodes().iter().enumerate().skip(1) {
            let width = kept[id].len();
            if width == 0 {
                return Err(Error::Shape(format!("{}: node {} would lose its last channel", self.name(), node.name)));
            }
            let op = match &node.op {
                Op::Conv2d(conv) => {
                    let mut conv = *conv;
                    let depthwise = !self.produces(id);
                    conv.out_channels = width;
                    conv.groups = if depthwise { width } else { conv.groups };
                    Op::Conv2d(conv)
                }
                Op::Linear { bias, .. } => Op::Linear { out_features: width, bias: *bias },
                Op::PadChannels { before, .. } => {
                    let last = before + self.shape(node.inputs[0]).channels();
                    Op::PadChannels {
                        before: kept[id].iter().filter(|&&c| c < *before).count(),
                        after: kept[id].iter().filter(|&&c| c >= last).count(),
                    }
                }
                same @ (Op::Input { .. }
                | Op::BatchNorm { .. }
                | Op::Activation { .. }
                | Op::MaxPool(_)
                | Op::AvgPool(_)
                | Op::GlobalAvgPool
                | Op::Subsample { .. }
                | Op::Add
                | Op::Scale
                | Op::Concat
                | Op::Flatten
                | Op::Dropout { .. }) => same.clone(),
            };
            builder.node(&node.name, op, &node.inputs);
        }
        Ok(Compaction { graph: builder.finish()?, kept })
    }
}
