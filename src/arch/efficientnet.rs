//! Networks of timm's EfficientNet family: MobileNet V1 to V3 and EfficientNet-Lite0.
//!
//! # Source
//! Howard et al. 2017, arXiv:1704.04861 (MobileNet); Sandler et al. 2018, arXiv:1801.04381 (V2); Howard et al. 2019,
//! arXiv:1905.02244 (V3); Tan, Le 2019, arXiv:1905.11946 (EfficientNet; Lite0 drops its gates). Tables and names as
//! in timm 1.0.

use super::inverted_residual::{Blocks, Flavour, Kind, Layers, conv};
use super::{ArchOptions, EPS};
use crate::Result;
use crate::graph::{Activation, Conv2d, Graph, GraphBuilder, Op};

use Activation::{HardSwish, Relu, Relu6};
use Kind::{Inverted, Plain, Separable, SeparableActivated};

/// What stands between the last block and the classifier.
#[derive(Debug, Clone, Copy)]
enum Head {
    /// Global pooling only.
    None,
    /// A 1×1 convolution of this width with batch normalisation, then global pooling.
    Conv(usize),
    /// Global pooling, then a 1×1 convolution of this width with a bias.
    PooledConv(usize),
}

/// A network as a table: its stem, its stages of blocks, its head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Network {
    stem: usize,
    stages: &'static [&'static [Blocks]],
    head: Head,
    activation: Activation,
    flavour: Flavour,
}

const PYTORCH: Flavour = Flavour { eps: EPS, same_padding: false };
const TENSORFLOW: Flavour = Flavour { eps: 1e-3, same_padding: true };

impl Network {
    /// The same network as trained in TensorFlow (timm's `tf_` names): SAME padding and its epsilon.
    pub const fn tensorflow(self) -> Self {
        Self { flavour: TENSORFLOW, ..self }
    }
}

const fn inverted([repeats, stride, width]: [usize; 3], expansion: f64, activation: Activation) -> Blocks {
    Blocks::new(Inverted, [repeats, stride, width], activation).expansion(expansion)
}

pub(super) const MOBILENET_V1: Network = Network {
    stem: 32,
    stages: &[
        &[Blocks::new(SeparableActivated, [1, 1, 64], Relu6)],
        &[Blocks::new(SeparableActivated, [2, 2, 128], Relu6)],
        &[Blocks::new(SeparableActivated, [2, 2, 256], Relu6)],
        &[Blocks::new(SeparableActivated, [6, 2, 512], Relu6)],
        &[Blocks::new(SeparableActivated, [2, 2, 1024], Relu6)],
    ],
    head: Head::None,
    activation: Relu6,
    flavour: PYTORCH,
};

pub(super) const MOBILENET_V2: Network = Network {
    stem: 32,
    stages: &[
        &[Blocks::new(Separable, [1, 1, 16], Relu6)],
        &[inverted([2, 2, 24], 6.0, Relu6)],
        &[inverted([3, 2, 32], 6.0, Relu6)],
        &[inverted([4, 2, 64], 6.0, Relu6)],
        &[inverted([3, 1, 96], 6.0, Relu6)],
        &[inverted([3, 2, 160], 6.0, Relu6)],
        &[inverted([1, 1, 320], 6.0, Relu6)],
    ],
    head: Head::Conv(1280),
    activation: Relu6,
    flavour: PYTORCH,
};

pub(super) const MOBILENET_V3_LARGE: Network = Network {
    stem: 16,
    stages: &[
        &[Blocks::new(Separable, [1, 1, 16], Relu)],
        &[inverted([1, 2, 24], 4.0, Relu), inverted([1, 1, 24], 3.0, Relu)],
        &[inverted([3, 2, 40], 3.0, Relu).kernel(5).gated()],
        &[
            inverted([1, 2, 80], 6.0, HardSwish),
            inverted([1, 1, 80], 2.5, HardSwish),
            inverted([2, 1, 80], 2.3, HardSwish),
        ],
        &[inverted([2, 1, 112], 6.0, HardSwish).gated()],
        &[inverted([3, 2, 160], 6.0, HardSwish).kernel(5).gated()],
        &[Blocks::new(Plain, [1, 1, 960], HardSwish).kernel(1)],
    ],
    head: Head::PooledConv(1280),
    activation: HardSwish,
    flavour: PYTORCH,
};

pub(super) const LITE0: Network = Network {
    stem: 32,
    stages: &[
        &[Blocks::new(Separable, [1, 1, 16], Relu6)],
        &[inverted([2, 2, 24], 6.0, Relu6)],
        &[inverted([2, 2, 40], 6.0, Relu6).kernel(5)],
        &[inverted([3, 2, 80], 6.0, Relu6)],
        &[inverted([3, 1, 112], 6.0, Relu6).kernel(5)],
        &[inverted([4, 2, 192], 6.0, Relu6).kernel(5)],
        &[inverted([1, 1, 320], 6.0, Relu6)],
    ],
    head: Head::Conv(1280),
    activation: Relu6,
    flavour: PYTORCH,
};

/// The network of a table.
pub(super) fn build(name: &str, options: &ArchOptions, network: &Network) -> Result<Graph> {
    let mut builder = GraphBuilder::new(name, options.input);
    let image = builder.input();
    let mut layers = Layers { builder: &mut builder, prefix: String::new(), flavour: network.flavour };
    let x = layers.conv_bn("conv_stem", "bn1", conv(network.stem, 3, 2), image);
    let mut x = layers.activation("act1", network.activation, x);
    for (stage, rows) in network.stages.iter().enumerate() {
        let blocks =
            rows.iter().flat_map(|row| (0..row.repeats).map(move |i| (row, if i == 0 { row.stride } else { 1 })));
        for (index, (row, stride)) in blocks.enumerate() {
            layers.prefix = format!("blocks.{stage}.{index}.");
            x = layers.block(row, stride, x);
        }
    }
    layers.prefix.clear();
    match network.head {
        Head::None => {}
        Head::Conv(width) => {
            x = layers.conv_bn("conv_head", "bn2", conv(width, 1, 1), x);
            x = layers.activation("act2", network.activation, x);
        }
        Head::PooledConv(width) => {
            x = builder.node("global_pool", Op::GlobalAvgPool, &[x]);
            x = builder.conv("conv_head", Conv2d::new(width, 1).with_bias(), x);
            x = builder.activation("act2", network.activation, x);
            let flat = builder.node("flatten", Op::Flatten, &[x]);
            builder.node("classifier", Op::Linear { out_features: options.num_classes, bias: true }, &[flat]);
            return builder.finish();
        }
    }
    builder.classifier("classifier", options.num_classes, x);
    builder.finish()
}
