//! Building a graph node by node, with the shape rule applied at once.

use std::collections::HashSet;

use super::{Activation, Conv2d, Graph, Node, NodeId, Op, Pool2d, Shape, shape};
use crate::{Error, Result};

/// Collects nodes; the first mistake is kept and reported by [`GraphBuilder::finish`], so that architectures read
/// as a plain sequence of layers.
#[derive(Debug)]
pub struct GraphBuilder {
    graph: Graph,
    names: HashSet<String>,
    error: Option<String>,
}

impl GraphBuilder {
    /// A graph with only its input, `[channels, height, width]`.
    pub fn new(name: &str, input: [usize; 3]) -> Self {
        let mut builder = Self {
            graph: Graph { name: name.to_string(), nodes: Vec::new(), shapes: Vec::new() },
            names: HashSet::new(),
            error: None,
        };
        builder.node("input", Op::Input { shape: input }, &[]);
        builder
    }

    /// The input node.
    pub fn input(&self) -> NodeId {
        0
    }

    /// Channels of node `id`'s output (0 after an error).
    pub fn channels(&self, id: NodeId) -> usize {
        self.graph.shapes.get(id).map_or(0, |s| s.channels())
    }

    /// Height and width of node `id`'s output (0 after an error).
    pub fn spatial(&self, id: NodeId) -> [usize; 2] {
        self.graph.shapes.get(id).map_or([0, 0], |s| s.spatial())
    }

    /// Appends an operation and returns its id.
    pub fn node(&mut self, name: &str, op: Op, inputs: &[NodeId]) -> NodeId {
        let id = self.graph.nodes.len();
        if self.error.is_none() {
            match self.check(name, &op, inputs, id) {
                Ok(shape) => self.graph.shapes.push(shape),
                Err(reason) => {
                    self.error = Some(format!("graph {}: node {name} ({}): {reason}", self.graph.name, op.kind()));
                }
            }
        }
        self.names.insert(name.to_string());
        self.graph.nodes.push(Node { name: name.to_string(), op, inputs: inputs.to_vec() });
        id
    }

    fn check(&self, name: &str, op: &Op, inputs: &[NodeId], id: NodeId) -> Result<Shape, String> {
        if name.is_empty() || self.names.contains(name) {
            return Err("the name is empty or already used".into());
        }
        if matches!(op, Op::Input { .. }) != (id == 0) {
            return Err("the input must be the first node, and the only one".into());
        }
        let shapes: Option<Vec<Shape>> = inputs.iter().map(|&i| self.graph.shapes.get(i).copied()).collect();
        shape::infer(op, &shapes.ok_or("an input is not an earlier node")?)
    }

    /// Appends a convolution.
    pub fn conv(&mut self, name: &str, conv: Conv2d, input: NodeId) -> NodeId {
        self.node(name, Op::Conv2d(conv), &[input])
    }

    /// Appends a batch normalisation with epsilon `eps`.
    pub fn batch_norm(&mut self, name: &str, eps: f64, input: NodeId) -> NodeId {
        self.node(name, Op::BatchNorm { eps }, &[input])
    }

    /// Appends an activation.
    pub fn activation(&mut self, name: &str, function: Activation, input: NodeId) -> NodeId {
        self.node(name, Op::Activation { function }, &[input])
    }

    /// Appends max pooling.
    pub fn max_pool(&mut self, name: &str, pool: Pool2d, input: NodeId) -> NodeId {
        self.node(name, Op::MaxPool(pool), &[input])
    }

    /// Appends global average pooling, flattening and a linear classifier with bias.
    pub fn classifier(&mut self, name: &str, classes: usize, input: NodeId) -> NodeId {
        let pooled = self.node("global_pool", Op::GlobalAvgPool, &[input]);
        let flat = self.node("flatten", Op::Flatten, &[pooled]);
        self.node(name, Op::Linear { out_features: classes, bias: true }, &[flat])
    }

    /// The finished graph; the node added last is the output.
    ///
    /// # Errors
    /// [`Error::Shape`] with the first node that did not fit; also if the output is not a vector, or if a node's
    /// output is never read.
    pub fn finish(self) -> Result<Graph> {
        if let Some(reason) = self.error {
            return Err(Error::Shape(reason));
        }
        let graph = self.graph;
        let output = graph.output();
        if !matches!(graph.nodes[output].op, Op::Linear { .. }) {
            return Err(Error::Shape(format!(
                "graph {}: the last node must be the linear classifier, got {} ({}) of shape {}",
                graph.name,
                graph.nodes[output].name,
                graph.nodes[output].op.kind(),
                graph.shape(output)
            )));
        }
        if let Some(unused) = graph.consumers().iter().take(output).position(Vec::is_empty) {
            return Err(Error::Shape(format!(
                "graph {}: the output of node {} is never used",
                graph.name, graph.nodes[unused].name
            )));
        }
        Ok(graph)
    }
}
