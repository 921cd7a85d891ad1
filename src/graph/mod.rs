//! The architecture as data: a graph of nodes over a closed set of operations. No tensors here.
//!
//! Everything else walks this graph: the training forward, the check of a weights file, the channel groups, the
//! surgery, the serialisation. It knows no architecture by name (see [`crate::arch`]) and no tensor library.

mod builder;
mod channels;
mod compact;
mod cost;
mod display;
mod groups;
mod json;
pub mod op;
mod params;
mod shape;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
pub(crate) mod tests;

pub use builder::GraphBuilder;
pub use compact::{Compaction, Keep};
pub use cost::Cost;
pub use groups::{ChannelGroup, ChannelGroups, MaskPoint, Scope};
pub use op::{Activation, ChannelRule, Conv2d, Op, Padding, Pool2d};
pub use params::{ParamKind, ParamSpec};
pub use shape::Shape;

/// Index of a node in its graph's topological order.
pub type NodeId = usize;

/// One operation in a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Unique name; its parameters are called `NAME.weight` and so on.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// The nodes whose outputs it reads, all earlier in the order.
    pub inputs: Vec<NodeId>,
}

/// A validated network: nodes in topological order, shapes inferred, the last node the output (logits).
///
/// Built by [`GraphBuilder`] or [`Graph::from_json`]; immutable afterwards.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    name: String,
    nodes: Vec<Node>,
    shapes: Vec<Shape>,
}

impl Graph {
    /// The architecture's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The nodes in topological order; node 0 is the input.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Output shape of node `id`, per image.
    ///
    /// # Panics
    /// If `id` is not a node of this graph.
    pub fn shape(&self, id: NodeId) -> Shape {
        self.shapes[id]
    }

    /// The output node.
    pub fn output(&self) -> NodeId {
        self.nodes.len() - 1
    }

    /// Length of the logits.
    pub fn num_classes(&self) -> usize {
        self.shape(self.output()).channels()
    }

    /// Channels, height, width of the input image.
    pub fn input_shape(&self) -> [usize; 3] {
        let s = self.shape(0);
        let [h, w] = s.spatial();
        [s.channels(), h, w]
    }

    /// The node whose output the classifier reads: the penultimate features.
    pub fn features(&self) -> NodeId {
        self.nodes[self.output()].inputs.first().copied().unwrap_or(0)
    }

    /// For each node, the nodes that read it.
    pub fn consumers(&self) -> Vec<Vec<NodeId>> {
        let mut consumers = vec![Vec::new(); self.nodes.len()];
        for (id, node) in self.nodes.iter().enumerate() {
            for &input in &node.inputs {
                consumers[input].push(id);
            }
        }
        consumers
    }

    /// The same network for another input height and width.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if some layer does not fit, or if the network depends on the size (flatten of a map
    /// larger than 1×1 in front of a linear layer).
    pub fn resized(&self, height: usize, width: usize) -> crate::Result<Self> {
        let mut builder = GraphBuilder::new(&self.name, [self.input_shape()[0], height, width]);
        for node in &self.nodes[1..] {
            builder.node(&node.name, node.op.clone(), &node.inputs);
        }
        let resized = builder.finish()?;
        let expected: Vec<_> = self.params().collect();
        if resized.params().ne(expected) {
            return Err(crate::Error::Shape(format!(
                "{}: parameters depend on the input size, so it cannot run at {height}×{width}",
                self.name
            )));
        }
        Ok(resized)
    }
}
