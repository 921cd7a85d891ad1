//! The small ResNets for 32×32 images, with parameter-free shortcuts (option A of the paper).
//!
//! # Source
//! He, Zhang, Ren, Sun 2015, arXiv:1512.03385, section 4.2; names and padding of the shortcut as in
//! akamaster/pytorch_resnet_cifar10.

use super::resnet::{conv_bn, conv3x3, join};
use super::{ArchOptions, EPS};
use crate::Result;
use crate::graph::{Activation, Graph, GraphBuilder, NodeId, Op};

/// Three stages of `depth` basic blocks with 16, 32 and 64 channels: 6·depth + 2 layers.
pub(super) fn build(name: &str, options: &ArchOptions, depth: usize) -> Result<Graph> {
    let mut b = GraphBuilder::new(name, options.input);
    let x = b.conv("conv1", conv3x3(16, 1), b.input());
    let x = b.batch_norm("bn1", EPS, x);
    let mut x = b.activation("relu", Activation::Relu, x);
    for stage in 0..3 {
        for index in 0..depth {
            let stride = if stage > 0 && index == 0 { 2 } else { 1 };
            x = block(&mut b, &format!("layer{}.{index}", stage + 1), [16 << stage, stride], x);
        }
    }
    b.classifier("linear", options.num_classes, x);
    b.finish()
}

fn block(b: &mut GraphBuilder, prefix: &str, [width, stride]: [usize; 2], x: NodeId) -> NodeId {
    let y = conv_bn(b, prefix, 1, conv3x3(width, stride), x);
    let y = b.activation(&format!("{prefix}.relu1"), Activation::Relu, y);
    let y = conv_bn(b, prefix, 2, conv3x3(width, 1), y);
    let shortcut = if stride == 1 {
        x
    } else {
        let half = b.node(&format!("{prefix}.shortcut.subsample"), Op::Subsample { stride: [stride, stride] }, &[x]);
        let pad = Op::PadChannels { before: width / 4, after: width / 4 };
        b.node(&format!("{prefix}.shortcut.pad"), pad, &[half])
    };
    join(b, prefix, y, shortcut)
}
