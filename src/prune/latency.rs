//! Time as a cost: what a network takes per image, from the times of its layers at other widths.
//!
//! Where the times come from is not known here: whoever runs the network has measured them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::graph::{Graph, Node, NodeId, Op};
use crate::{Error, Result};

/// A layer's time is a sum of so many terms.
const TERMS: usize = 4;
/// A term of which no larger part is left when others are accounted for depends on them.
const SINGULAR: f64 = 1e-9;
/// A network whose layers add up to so much more or less of its whole time than others' was disturbed.
const DISTURBED: f64 = 0.3;

/// Times of a network whose layers have some widths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TimedNetwork {
    /// Nanoseconds per image, all in all.
    pub ns: u64,
    /// Its layers.
    pub layers: Vec<TimedLayer>,
}

/// Time of one layer, with what was fused into it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TimedLayer {
    /// Its node's name in the graph.
    pub layer: String,
    /// Channels of its (first) input.
    pub inputs: usize,
    /// Channels of its output.
    pub outputs: usize,
    /// Nanoseconds per image.
    pub ns: u64,
}

/// A layer that takes time.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Layer {
    node: NodeId,
    /// Whether its outputs mix its inputs. Told from the whole network: a depthwise layer's last channel looks dense.
    dense: bool,
    /// Which of the model's times are its.
    which: usize,
}

/// Predicts the time of any narrower version of one graph.
///
/// The time of a dense layer with x input and y output channels is modelled as `a + b·x + c·y + d·x·y`, that of any other
/// layer as `a + c·y`, x and y rounded up to the blocks that kernels take at a time. No coefficient is negative: more
/// channels never take less time. Layers of equal shape have their coefficients in common, those of least squared error;
/// one factor makes the sum over layers fit whole networks.
#[derive(Debug, Clone, PartialEq)]
pub struct LatencyModel {
    blocks: [usize; 2],
    layers: Vec<Layer>,
    times: Vec<[f64; TERMS]>,
    factor: f64,
}

impl LatencyModel {
    /// Fits `networks`, narrower versions of `graph`, run by kernels that take `blocks` of input channels and of a dense
    /// layer's output channels at a time.
    ///
    /// # Errors
    /// [`Error::Config`] if there is nothing to fit, or a layer is not one of `graph`'s.
    pub fn fit(graph: &Graph, networks: &[TimedNetwork], blocks: [usize; 2]) -> Result<Self> {
        let networks = undisturbed(networks)?;
        let layers = layers(graph, networks.first().map_or(&[], |network| &network.layers))?;
        let mut model = Self { blocks, layers: layers.values().copied().collect(), times: Vec::new(), factor: 1.0 };
        let mut rows = Vec::new();
        for network in &networks {
            let row = |timed: &TimedLayer| {
                let &layer = layers.get(timed.layer.as_str()).ok_or_else(|| unknown(graph, timed))?;
                Ok((layer.which, model.terms(layer, timed.inputs, timed.outputs), timed.ns as f64))
            };
            rows.push(network.layers.iter().map(row).collect::<Result<Vec<_>>>()?);
        }
        let shapes = layers.values().map(|layer| layer.which + 1).max().unwrap_or(0);
        model.times = (0..shapes)
            .map(|which| {
                let of_shape = rows.iter().flatten().filter(|row| row.0 == which);
                non_negative_least_squares(&of_shape.map(|&(_, terms, ns)| (terms, ns)).collect::<Vec<_>>())
            })
            .collect();
        let sum = |rows: &[Row]| rows.iter().map(|(which, terms, _)| dot(&model.times[*which], terms)).sum::<f64>();
        let ratios =
            networks.iter().zip(&rows).map(|(network, rows)| network.ns as f64 / sum(rows).max(f64::MIN_POSITIVE));
        model.factor = median(ratios.collect());
        Ok(model)
    }

    /// The time of `graph`, in nanoseconds per image.
    ///
    /// # Panics
    /// If `graph` has fewer nodes than the one the times were taken of; one made from it by compaction has as many.
    pub fn nanoseconds(&self, graph: &Graph) -> u64 {
        let time = |&layer: &Layer| {
            let inputs = graph.nodes()[layer.node].inputs.first().map_or(0, |&i| graph.shape(i).channels());
            dot(&self.times[layer.which], &self.terms(layer, inputs, graph.shape(layer.node).channels()))
        };
        (self.factor * self.layers.iter().map(time).sum::<f64>()).round() as u64
    }

    /// The same model, all times multiplied by `factor`: a measured network near those of interest took so much longer.
    #[must_use]
    pub fn corrected(&self, factor: f64) -> Self {
        Self { factor: self.factor * factor, ..self.clone() }
    }

    fn terms(&self, layer: Layer, inputs: usize, outputs: usize) -> [f64; TERMS] {
        let [of_inputs, of_outputs] = self.blocks;
        if !layer.dense {
            return [1.0, 0.0, outputs.next_multiple_of(of_inputs) as f64, 0.0];
        }
        let (x, y) = (inputs.next_multiple_of(of_inputs) as f64, outputs.next_multiple_of(of_outputs) as f64);
        [1.0, x, y, x * y]
    }
}

/// Which times a layer has, its terms and how long it took.
type Row = (usize, [f64; TERMS], f64);

/// The layers of `graph` that were timed, by name.
fn layers<'a>(graph: &'a Graph, timed: &[TimedLayer]) -> Result<BTreeMap<&'a str, Layer>> {
    let consumers = graph.consumers();
    let mut shapes: BTreeMap<String, usize> = BTreeMap::new();
    let layer = |timed: &TimedLayer| {
        let is_it = |(_, node): &(NodeId, &Node)| node.name == timed.layer;
        let (id, node) = graph.nodes().iter().enumerate().find(is_it).ok_or_else(|| unknown(graph, timed))?;
        let next = shapes.len();
        let which = *shapes.entry(shape(graph, &consumers, id)).or_insert(next);
        let dense = matches!(node.op, Op::Conv2d(_) | Op::Linear { .. }) && graph.produces(id);
        Ok((node.name.as_str(), Layer { node: id, dense, which }))
    };
    timed.iter().map(layer).collect()
}

fn unknown(graph: &Graph, layer: &TimedLayer) -> Error {
    Error::Config(format!("latency: layer {} is none of {}", layer.layer, graph.name()))
}

/// What layers of equal shape have in common: the operation, the maps it reads and writes, and what follows it up to
/// the next layer with weights, which may be fused into it.
fn shape(graph: &Graph, consumers: &[Vec<NodeId>], id: NodeId) -> String {
    let node = &graph.nodes()[id];
    let input = node.inputs.first().map(|&i| graph.shape(i));
    let mut tail = Vec::new();
    let mut at = id;
    while let [next] = consumers[at].as_slice()
        && !matches!(graph.nodes()[*next].op, Op::Conv2d(_) | Op::Linear { .. })
    {
        tail.push(graph.nodes()[*next].op.kind());
        at = *next;
    }
    format!("{:?} {input:?} {:?} {tail:?}", node.op, graph.shape(id))
}

/// The networks whose layers add up to their whole time as they do in most.
fn undisturbed(networks: &[TimedNetwork]) -> Result<Vec<&TimedNetwork>> {
    if networks.is_empty() || networks.iter().any(|network| network.ns == 0) {
        return Err(Error::Config("latency: expected times of networks and their layers, got none".into()));
    }
    let part = |n: &TimedNetwork| n.layers.iter().map(|l| l.ns as f64).sum::<f64>() / n.ns as f64;
    let usual = median(networks.iter().map(part).collect());
    Ok(networks.iter().filter(|n| (part(n) / usual - 1.0).abs() <= DISTURBED).collect())
}

/// The x ≥ 0 of least Σ (terms · x − time)²: where it is not zero it solves the unconstrained problem in those terms
/// alone, so of all subsets of terms whose solution is positive the one that explains most has it.
fn non_negative_least_squares(samples: &[([f64; TERMS], f64)]) -> [f64; TERMS] {
    // In terms of one scale, so that one threshold tells what is singular.
    let scale: [f64; TERMS] =
        std::array::from_fn(|j| samples.iter().map(|(terms, _)| terms[j]).fold(f64::MIN_POSITIVE, f64::max));
    let (mut normal, mut right) = ([[0.0; TERMS]; TERMS], [0.0; TERMS]);
    for (terms, time) in samples {
        for j in 0..TERMS {
            right[j] += terms[j] / scale[j] * time;
            for k in 0..TERMS {
                normal[j][k] += terms[j] / scale[j] * terms[k] / scale[k];
            }
        }
    }
    let mut best = (0.0, [0.0; TERMS]);
    for subset in 1_u32..1 << TERMS {
        let Some(x) = solve(&normal, &right, subset) else { continue };
        let explained = dot(&right, &x);
        if explained > best.0 && x.iter().all(|x| *x >= 0.0) {
            best = (explained, x);
        }
    }
    std::array::from_fn(|j| best.1[j] / scale[j])
}

/// Solves the positive definite system in the terms of `subset`, the others being zero; `None` if they depend on each
/// other.
fn solve(normal: &[[f64; TERMS]; TERMS], right: &[f64; TERMS], subset: u32) -> Option<[f64; TERMS]> {
    let inside = |j: usize| subset >> j & 1 == 1;
    let (mut a, mut x) = (*normal, *right);
    for j in (0..TERMS).filter(|&j| inside(j)) {
        if a[j][j] <= SINGULAR * normal[j][j] {
            return None;
        }
        for i in (0..TERMS).filter(|&i| inside(i) && i != j) {
            let factor = a[i][j] / a[j][j];
            (0..TERMS).for_each(|k| a[i][k] -= factor * a[j][k]);
            x[i] -= factor * x[j];
        }
    }
    Some(std::array::from_fn(|j| if inside(j) { x[j] / a[j][j] } else { 0.0 }))
}

fn dot(a: &[f64; TERMS], b: &[f64; TERMS]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests;
