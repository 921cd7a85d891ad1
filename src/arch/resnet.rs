//! ResNets with torchvision's names (timm's are the same): basic and bottleneck blocks.
//!
//! # Source
//! He, Zhang, Ren, Sun 2015, arXiv:1512.03385. As torchvision 0.29: the stride of a bottleneck is in its 3×3
//! convolution.

use super::{ArchOptions, EPS};
use crate::Result;
use crate::graph::{Activation, Conv2d, Graph, GraphBuilder, NodeId, Op, Pool2d};

/// A ResNet of basic blocks (two 3×3 convolutions), `depths[i]` blocks in stage i.
pub(super) fn basic(name: &str, options: &ArchOptions, depths: [usize; 4]) -> Result<Graph> {
    build(name, options, depths, |b, prefix, [width, stride], x| {
        let y = conv_bn(b, prefix, 1, conv3x3(width, stride), x);
        let y = b.activation(&format!("{prefix}.relu1"), Activation::Relu, y);
        let y = conv_bn(b, prefix, 2, conv3x3(width, 1), y);
        let shortcut = shortcut(b, prefix, [width, stride], x);
        join(b, prefix, y, shortcut)
    })
}

/// A ResNet of bottleneck blocks (1×1, 3×3, 1×1 with four times the width), `depths[i]` blocks in stage i.
pub(super) fn bottleneck(name: &str, options: &ArchOptions, depths: [usize; 4]) -> Result<Graph> {
    build(name, options, depths, |b, prefix, [width, stride], x| {
        let y = conv_bn(b, prefix, 1, Conv2d::new(width, 1), x);
        let y = b.activation(&format!("{prefix}.relu1"), Activation::Relu, y);
        let y = conv_bn(b, prefix, 2, conv3x3(width, stride), y);
        let y = b.activation(&format!("{prefix}.relu2"), Activation::Relu, y);
        let y = conv_bn(b, prefix, 3, Conv2d::new(4 * width, 1), y);
        let shortcut = shortcut(b, prefix, [4 * width, stride], x);
        join(b, prefix, y, shortcut)
    })
}

/// Appends one block under a prefix, with its width and stride.
type Block = fn(&mut GraphBuilder, &str, [usize; 2], NodeId) -> NodeId;

fn build(name: &str, options: &ArchOptions, depths: [usize; 4], block: Block) -> Result<Graph> {
    let mut b = GraphBuilder::new(name, options.input);
    let x = b.conv("conv1", Conv2d::new(64, 7).stride(2).padding(3), b.input());
    let x = b.batch_norm("bn1", EPS, x);
    let x = b.activation("relu", Activation::Relu, x);
    let mut x = b.max_pool("maxpool", Pool2d::new(3, 2).padding(1), x);
    for (stage, depth) in depths.into_iter().enumerate() {
        for index in 0..depth {
            let stride = if stage > 0 && index == 0 { 2 } else { 1 };
            x = block(&mut b, &format!("layer{}.{index}", stage + 1), [64 << stage, stride], x);
        }
    }
    b.classifier("fc", options.num_classes, x);
    b.finish()
}

pub(super) fn conv3x3(width: usize, stride: usize) -> Conv2d {
    Conv2d::new(width, 3).stride(stride).padding(1)
}

/// `PREFIX.convI` followed by `PREFIX.bnI`.
pub(super) fn conv_bn(b: &mut GraphBuilder, prefix: &str, i: usize, conv: Conv2d, x: NodeId) -> NodeId {
    let x = b.conv(&format!("{prefix}.conv{i}"), conv, x);
    b.batch_norm(&format!("{prefix}.bn{i}"), EPS, x)
}

/// The block's input, through a 1×1 convolution where the block changes the shape.
fn shortcut(b: &mut GraphBuilder, prefix: &str, [width, stride]: [usize; 2], x: NodeId) -> NodeId {
    if stride == 1 && b.channels(x) == width {
        return x;
    }
    let x = b.conv(&format!("{prefix}.downsample.0"), Conv2d::new(width, 1).stride(stride), x);
    b.batch_norm(&format!("{prefix}.downsample.1"), EPS, x)
}

/// The residual addition and its ReLU.
pub(super) fn join(b: &mut GraphBuilder, prefix: &str, y: NodeId, shortcut: NodeId) -> NodeId {
    let sum = b.node(&format!("{prefix}.add"), Op::Add, &[y, shortcut]);
    b.activation(&format!("{prefix}.relu"), Activation::Relu, sum)
}
