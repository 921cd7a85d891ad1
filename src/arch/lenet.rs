//! A small LeNet-like network with batch normalisation for 28×28 and 32×32 images.

use super::{ArchOptions, EPS};
use crate::Result;
use crate::graph::{Activation, Conv2d, Graph, GraphBuilder, Pool2d};

/// Five 3×3 convolutions of 32, 32, 64, 64 and 128 channels, halved after the second and fourth.
pub(super) fn build(name: &str, options: &ArchOptions) -> Result<Graph> {
    let mut b = GraphBuilder::new(name, options.input);
    let mut x = b.input();
    for (index, width) in [32, 32, 64, 64, 128].into_iter().enumerate() {
        let i = index + 1;
        x = b.conv(&format!("conv{i}"), Conv2d::new(width, 3).padding(1), x);
        x = b.batch_norm(&format!("bn{i}"), EPS, x);
        x = b.activation(&format!("relu{i}"), Activation::Relu, x);
        if i == 2 || i == 4 {
            x = b.max_pool(&format!("pool{}", i / 2), Pool2d::new(2, 2), x);
        }
    }
    b.classifier("fc", options.num_classes, x);
    b.finish()
}
