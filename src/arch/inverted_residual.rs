//! The blocks of timm's EfficientNet and MobileNet families.
//!
//! # Source
//! Sandler et al. 2018, arXiv:1801.04381 (inverted residuals); Howard et al. 2019, arXiv:1905.02244 (squeeze and
//! excitation inside them); names, rounding and padding as in timm 1.0.

use crate::graph::{Activation, Conv2d, GraphBuilder, NodeId, Op, Padding};

/// The kinds of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Depthwise, then 1×1 without activation; a shortcut where shapes allow it (timm's `ds`).
    Separable,
    /// Depthwise, then 1×1, both with activation; never a shortcut (timm's `dsa`).
    SeparableActivated,
    /// 1×1 expansion, depthwise, 1×1 projection (timm's `ir`).
    Inverted,
    /// A plain convolution (timm's `cn`).
    Plain,
}

/// `repeats` equal blocks; the stride is that of the first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks {
    /// What each block is.
    pub kind: Kind,
    /// How many.
    pub repeats: usize,
    /// Side of the depthwise (or plain) kernel.
    pub kernel: usize,
    /// Stride of the first block.
    pub stride: usize,
    /// Output channels.
    pub width: usize,
    /// Hidden channels per input channel of an inverted residual.
    pub expansion: f64,
    /// Whether squeeze and excitation follows the depthwise convolution.
    pub gated: bool,
    /// The activation of all its layers.
    pub activation: Activation,
}

impl Blocks {
    /// Blocks with 3×3 kernels, no expansion and no gate, after their kind, count, stride, width and activation.
    pub const fn new(kind: Kind, [repeats, stride, width]: [usize; 3], activation: Activation) -> Self {
        Self { kind, repeats, kernel: 3, stride, width, expansion: 1.0, gated: false, activation }
    }

    /// Sets the side of the kernel.
    pub const fn kernel(mut self, kernel: usize) -> Self {
        self.kernel = kernel;
        self
    }

    /// Sets the expansion.
    pub const fn expansion(mut self, expansion: f64) -> Self {
        self.expansion = expansion;
        self
    }

    /// Adds squeeze and excitation.
    pub const fn gated(mut self) -> Self {
        self.gated = true;
        self
    }
}

/// How the convolutions of a network are padded and its batch normalisations stabilised.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flavour {
    /// Epsilon of every batch normalisation.
    pub eps: f64,
    /// TensorFlow's SAME padding, which depends on the input size, instead of half the kernel on each side.
    pub same_padding: bool,
}

/// Appends layers under one prefix.
pub(super) struct Layers<'a> {
    /// The graph being built.
    pub builder: &'a mut GraphBuilder,
    /// Prefix of all names, with its final dot; empty at the top level.
    pub prefix: String,
    /// Padding and epsilon.
    pub flavour: Flavour,
}

impl Layers<'_> {
    /// One block on `x`.
    pub fn block(&mut self, spec: &Blocks, stride: usize, x: NodeId) -> NodeId {
        let channels = self.builder.channels(x);
        let y = match spec.kind {
            Kind::Plain => {
                let y = self.conv_bn("conv", "bn1", conv(spec.width, spec.kernel, stride), x);
                self.activation("act1", spec.activation, y)
            }
            Kind::Separable | Kind::SeparableActivated => {
                let y = self.conv_bn("conv_dw", "bn1", conv(channels, spec.kernel, stride).groups(channels), x);
                let y = self.activation("act1", spec.activation, y);
                self.conv_bn("conv_pw", "bn2", conv(spec.width, 1, 1), y)
            }
            Kind::Inverted => {
                let hidden = round_to_8(channels as f64 * spec.expansion);
                let y = self.conv_bn("conv_pw", "bn1", conv(hidden, 1, 1), x);
                let y = self.activation("act1", spec.activation, y);
                let y = self.conv_bn("conv_dw", "bn2", conv(hidden, spec.kernel, stride).groups(hidden), y);
                let y = self.activation("act2", spec.activation, y);
                let y = if spec.gated { self.squeeze_excite(hidden, y) } else { y };
                self.conv_bn("conv_pwl", "bn3", conv(spec.width, 1, 1), y)
            }
        };
        match spec.kind {
            Kind::Plain => y,
            Kind::SeparableActivated => self.activation("act2", spec.activation, y),
            Kind::Separable | Kind::Inverted if stride == 1 && channels == spec.width => {
                self.builder.node(&format!("{}add", self.prefix), Op::Add, &[y, x])
            }
            Kind::Separable | Kind::Inverted => y,
        }
    }

    /// A convolution with the flavour's padding, and its batch normalisation.
    pub fn conv_bn(&mut self, conv_name: &str, bn_name: &str, mut conv: Conv2d, x: NodeId) -> NodeId {
        conv.padding = if self.flavour.same_padding {
            same_padding(&conv, self.builder.spatial(x))
        } else {
            Padding::same(conv.kernel[0] / 2)
        };
        let x = self.builder.conv(&format!("{}{conv_name}", self.prefix), conv, x);
        self.builder.batch_norm(&format!("{}{bn_name}", self.prefix), self.flavour.eps, x)
    }

    /// An activation.
    pub fn activation(&mut self, name: &str, function: Activation, x: NodeId) -> NodeId {
        self.builder.activation(&format!("{}{name}", self.prefix), function, x)
    }

    /// `x` times a gate per channel that is computed from the channel means.
    fn squeeze_excite(&mut self, channels: usize, x: NodeId) -> NodeId {
        let prefix = format!("{}se", self.prefix);
        let b = &mut *self.builder;
        let gate = b.node(&format!("{prefix}.pool"), Op::GlobalAvgPool, &[x]);
        let reduced = round_to_8(channels as f64 * 0.25);
        let gate = b.conv(&format!("{prefix}.conv_reduce"), Conv2d::new(reduced, 1).with_bias(), gate);
        let gate = b.activation(&format!("{prefix}.act1"), Activation::Relu, gate);
        let gate = b.conv(&format!("{prefix}.conv_expand"), Conv2d::new(channels, 1).with_bias(), gate);
        let gate = b.activation(&format!("{prefix}.gate"), Activation::HardSigmoid, gate);
        b.node(&format!("{prefix}.scale"), Op::Scale, &[x, gate])
    }
}

/// A convolution whose padding is still to be chosen.
pub(super) const fn conv(width: usize, kernel: usize, stride: usize) -> Conv2d {
    Conv2d::new(width, kernel).stride(stride)
}

/// The nearest multiple of 8 that is not more than a tenth below `width`.
fn round_to_8(width: f64) -> usize {
    let rounded = ((width + 4.0) as usize / 8 * 8).max(8);
    if (rounded as f64) < 0.9 * width { rounded + 8 } else { rounded }
}

/// Padding such that the output is the input's size over the stride, rounded up; the odd pixel goes behind.
fn same_padding(conv: &Conv2d, input: [usize; 2]) -> Padding {
    let total = |axis: usize| {
        let (kernel, stride) = (conv.kernel[axis], conv.stride[axis]);
        let covered = input[axis].div_ceil(stride).saturating_sub(1) * stride + kernel;
        covered.saturating_sub(input[axis])
    };
    let (rows, columns) = (total(0), total(1));
    Padding { top: rows / 2, bottom: rows - rows / 2, left: columns / 2, right: columns - columns / 2 }
}
