//! DenseNets with torchvision's names.
//!
//! # Source
//! Huang, Liu, van der Maaten, Weinberger 2016, arXiv:1608.06993; torchvision 0.29.

use super::{ArchOptions, EPS};
use crate::Result;
use crate::graph::{Activation, Conv2d, Graph, GraphBuilder, NodeId, Op, Pool2d};

/// Channels that each dense layer adds.
const GROWTH: usize = 32;
/// Width of a layer's 1×1 convolution, in growths.
const BOTTLENECK: usize = 4;

/// A DenseNet with `depths[i]` layers in block i.
pub(super) fn build(name: &str, options: &ArchOptions, depths: [usize; 4]) -> Result<Graph> {
    let mut b = GraphBuilder::new(name, options.input);
    let x = b.conv("features.conv0", Conv2d::new(2 * GROWTH, 7).stride(2).padding(3), b.input());
    let x = b.batch_norm("features.norm0", EPS, x);
    let x = b.activation("features.relu0", Activation::Relu, x);
    let mut x = b.max_pool("features.pool0", Pool2d::new(3, 2).padding(1), x);
    for (block, depth) in depths.into_iter().enumerate() {
        let prefix = format!("features.denseblock{}", block + 1);
        for layer in 1..=depth {
            x = dense_layer(&mut b, &format!("{prefix}.denselayer{layer}"), x);
        }
        if block + 1 < depths.len() {
            x = transition(&mut b, &format!("features.transition{}", block + 1), x);
        }
    }
    let x = b.batch_norm("features.norm5", EPS, x);
    let x = b.activation("features.relu5", Activation::Relu, x);
    b.classifier("classifier", options.num_classes, x);
    b.finish()
}

/// `x` and behind it the channels that this layer makes from it.
fn dense_layer(b: &mut GraphBuilder, prefix: &str, x: NodeId) -> NodeId {
    let y = norm_relu(b, prefix, "1", x);
    let y = b.conv(&format!("{prefix}.conv1"), Conv2d::new(BOTTLENECK * GROWTH, 1), y);
    let y = norm_relu(b, prefix, "2", y);
    let y = b.conv(&format!("{prefix}.conv2"), Conv2d::new(GROWTH, 3).padding(1), y);
    b.node(&format!("{prefix}.concat"), Op::Concat, &[x, y])
}

/// Halves channels, height and width.
fn transition(b: &mut GraphBuilder, prefix: &str, x: NodeId) -> NodeId {
    let x = norm_relu(b, prefix, "", x);
    let x = b.conv(&format!("{prefix}.conv"), Conv2d::new(b.channels(x) / 2, 1), x);
    b.node(&format!("{prefix}.pool"), Op::AvgPool(Pool2d::new(2, 2)), &[x])
}

fn norm_relu(b: &mut GraphBuilder, prefix: &str, suffix: &str, x: NodeId) -> NodeId {
    let x = b.batch_norm(&format!("{prefix}.norm{suffix}"), EPS, x);
    b.activation(&format!("{prefix}.relu{suffix}"), Activation::Relu, x)
}
