//! VGG networks with batch normalisation and torchvision's names.
//!
//! # Source
//! Simonyan, Zisserman 2014, arXiv:1409.1556; torchvision 0.29 for batch normalisation and the 7×7 adaptive
//! pooling. That pooling is an ordinary one wherever 7 divides the feature map; other sizes would need windows of
//! different sizes and are refused.

use super::{ArchOptions, EPS};
use crate::graph::{Activation, Conv2d, Graph, GraphBuilder, NodeId, Op, Padding, Pool2d};
use crate::{Error, Result};

/// Side of the feature map that the classifier reads.
const MAP: usize = 7;
/// Five poolings halve the image five times.
const REDUCTION: usize = 32;
const HIDDEN: usize = 4096;

/// A VGG with `depths[i]` convolutions in stage i.
pub(super) fn build(name: &str, options: &ArchOptions, depths: [usize; 5]) -> Result<Graph> {
    let mut b = GraphBuilder::new(name, options.input);
    let mut x = b.input();
    let mut index = 0;
    for (depth, width) in depths.into_iter().zip([64, 128, 256, 512, 512]) {
        for _ in 0..depth {
            x = b.conv(&format!("features.{index}"), Conv2d::new(width, 3).padding(1).with_bias(), x);
            x = b.batch_norm(&format!("features.{}", index + 1), EPS, x);
            x = b.activation(&format!("features.{}", index + 2), Activation::Relu, x);
            index += 3;
        }
        x = b.max_pool(&format!("features.{index}"), Pool2d::new(2, 2), x);
        index += 1;
    }
    x = adaptive_pool(&mut b, name, options, x)?;
    x = b.node("flatten", Op::Flatten, &[x]);
    for index in [0, 3] {
        x = b.node(&format!("classifier.{index}"), Op::Linear { out_features: HIDDEN, bias: true }, &[x]);
        x = b.activation(&format!("classifier.{}", index + 1), Activation::Relu, x);
        x = b.node(&format!("classifier.{}", index + 2), Op::Dropout { p: 0.5 }, &[x]);
    }
    b.node("classifier.6", Op::Linear { out_features: options.num_classes, bias: true }, &[x]);
    b.finish()
}

/// Average pooling to 7×7; nothing at all at the design size.
fn adaptive_pool(b: &mut GraphBuilder, name: &str, options: &ArchOptions, x: NodeId) -> Result<NodeId> {
    let [_, height, width] = options.input;
    let map = [height / REDUCTION, width / REDUCTION];
    if map.iter().any(|&side| side == 0 || side % MAP != 0) {
        return Err(Error::Config(format!(
            "{name}: height and width must be multiples of {} (224, 448, ...), got {height}×{width}",
            MAP * REDUCTION
        )));
    }
    let kernel = map.map(|side| side / MAP);
    if kernel == [1, 1] {
        return Ok(x);
    }
    Ok(b.node("avgpool", Op::AvgPool(Pool2d { kernel, stride: kernel, padding: Padding::default() }), &[x]))
}
