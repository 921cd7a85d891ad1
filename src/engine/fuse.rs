//! Which nodes of a folded graph become one step.

use crate::graph::{Activation, Graph, NodeId, Op};

/// One step: a node, and the nodes behind it that it absorbs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    /// The node that does the work.
    pub node: NodeId,
    /// What it reads, residual excluded.
    pub inputs: Vec<NodeId>,
    /// A map added before the activation.
    pub residual: Option<NodeId>,
    /// Applied last.
    pub activation: Option<Activation>,
    /// The node whose value the step writes.
    pub output: NodeId,
}

/// The steps of a graph in order. Every input names a node that an earlier step writes, or node 0.
///
/// A dense convolution absorbs the sum that alone reads it, where the other summand is already there; then whatever has
/// an epilogue absorbs the activation that alone reads it. Flattening a 1×1 map is no step at all.
pub(super) fn fuse(graph: &Graph) -> Vec<Step> {
    let consumers = graph.consumers();
    let mut written_by: Vec<Option<NodeId>> = vec![None; graph.nodes().len()];
    written_by[0] = Some(0);
    let mut absorbed = vec![false; graph.nodes().len()];
    let mut steps = Vec::new();
    for (id, node) in graph.nodes().iter().enumerate().skip(1) {
        if absorbed[id] {
            continue;
        }
        let value = |input: &NodeId| written_by[*input].unwrap_or(*input);
        let inputs: Vec<NodeId> = node.inputs.iter().map(value).collect();
        if is_identity(graph, id) {
            written_by[id] = Some(inputs[0]);
            continue;
        }
        let mut step = Step { node: id, inputs, residual: None, activation: None, output: id };
        if is_dense(graph, id)
            && let [sum] = consumers[id].as_slice()
            && let Op::Add = graph.nodes()[*sum].op
            && let [a, b] = *graph.nodes()[*sum].inputs
            && a != b
            && let Some(other) = written_by[if a == id { b } else { a }]
        {
            absorbed[*sum] = true;
            step.residual = Some(other);
            step.output = *sum;
        }
        if has_epilogue(&node.op)
            && let [activation] = consumers[step.output].as_slice()
            && let Op::Activation { function } = graph.nodes()[*activation].op
        {
            absorbed[*activation] = true;
            step.activation = Some(function);
            step.output = *activation;
        }
        if let Op::Activation { function } = node.op {
            step.activation = Some(function);
        }
        for covered in [id, step.output] {
            written_by[covered] = Some(step.output);
        }
        steps.push(step);
    }
    steps
}

/// Whether the node's value is its input's as it lies in memory.
fn is_identity(graph: &Graph, id: NodeId) -> bool {
    let node = &graph.nodes()[id];
    match node.op {
        Op::Dropout { .. } => true,
        Op::Flatten => graph.shape(node.inputs[0]).spatial() == [1, 1],
        _ => false,
    }
}

/// Whether the node is a convolution with one filter per channel.
pub(super) fn is_depthwise(graph: &Graph, id: NodeId) -> bool {
    let node = &graph.nodes()[id];
    match &node.op {
        Op::Conv2d(conv) => {
            let channels = graph.shape(node.inputs[0]).channels();
            conv.groups > 1 && conv.groups == channels && conv.out_channels == channels
        }
        _ => false,
    }
}

/// Whether the node ends in the matrix product.
pub(super) fn is_dense(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.nodes()[id].op, Op::Conv2d(_) | Op::Linear { .. }) && !is_depthwise(graph, id)
}

fn has_epilogue(op: &Op) -> bool {
    matches!(op, Op::Conv2d(_) | Op::Linear { .. } | Op::BatchNorm { .. } | Op::Add | Op::Scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Conv2d, GraphBuilder};

    #[test]
    fn a_residual_block_is_two_steps() {
        let mut b = GraphBuilder::new("block", [8, 4, 4]);
        let x = b.conv("a", Conv2d::new(8, 3).padding(1).with_bias(), 0);
        let x = b.activation("a.act", Activation::Relu, x);
        let y = b.conv("b", Conv2d::new(8, 3).padding(1).with_bias(), x);
        let sum = b.node("add", Op::Add, &[y, x]);
        let out = b.activation("add.act", Activation::Relu, sum);
        b.classifier("fc", 3, out);
        let graph = b.finish().unwrap();
        let steps = fuse(&graph);
        let conv_a = Step { node: 1, inputs: vec![0], residual: None, activation: Some(Activation::Relu), output: 2 };
        let conv_b =
            Step { node: 3, inputs: vec![2], residual: Some(2), activation: Some(Activation::Relu), output: 5 };
        assert_eq!(steps[..2], [conv_a, conv_b]);
        // Global pooling, then the linear layer reads it without a flattening step.
        assert_eq!(steps.len(), 4);
        assert_eq!(steps[3].inputs, vec![steps[2].output]);
    }

    #[test]
    fn a_summand_that_is_read_elsewhere_stays() {
        let mut b = GraphBuilder::new("shared", [8, 4, 4]);
        let x = b.conv("a", Conv2d::new(8, 1).with_bias(), 0);
        let y = b.conv("b", Conv2d::new(8, 1).with_bias(), x);
        let sum = b.node("add", Op::Add, &[y, x]);
        let both = b.node("concat", Op::Concat, &[sum, y]);
        b.classifier("fc", 3, both);
        let graph = b.finish().unwrap();
        let nodes: Vec<NodeId> = fuse(&graph).iter().map(|s| s.node).collect();
        assert!(nodes.contains(&sum), "{nodes:?}");
    }

    #[test]
    fn doubling_a_map_is_no_residual() {
        let mut b = GraphBuilder::new("double", [8, 4, 4]);
        let x = b.conv("a", Conv2d::new(8, 1).with_bias(), 0);
        let sum = b.node("add", Op::Add, &[x, x]);
        b.classifier("fc", 3, sum);
        let steps = fuse(&b.finish().unwrap());
        assert_eq!(steps[0].residual, None);
        assert_eq!(steps[1].inputs, vec![x, x]);
    }
}
