//! The closed set of operations a network is made of.
//!
//! Attributes hold what cannot be derived: channel counts of inputs follow from shape inference, so removing
//! channels never leaves a stale number behind. Every question about an operation (shape, channels, cost,
//! parameters) is answered by an exhaustive `match` with no default arm: a new operation does not compile until
//! each is answered.

use serde::{Deserialize, Serialize};

/// Zero padding on each side, in pixels. TensorFlow's SAME padding is asymmetric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the left.
    pub left: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// The same padding on all four sides.
    pub const fn same(p: usize) -> Self {
        Self { top: p, bottom: p, left: p, right: p }
    }
}

/// Attributes of a 2-D convolution. Input channels follow from the input's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conv2d {
    /// Output channels.
    pub out_channels: usize,
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Vertical and horizontal stride.
    #[serde(default = "ones")]
    pub stride: [usize; 2],
    /// Zero padding.
    #[serde(default)]
    pub padding: Padding,
    /// Vertical and horizontal dilation.
    #[serde(default = "ones")]
    pub dilation: [usize; 2],
    /// Groups; equal to the input channels for a depthwise convolution.
    #[serde(default = "one")]
    pub groups: usize,
    /// Whether a bias is added.
    #[serde(default)]
    pub bias: bool,
}

impl Conv2d {
    /// A dense convolution with a square kernel, stride 1, no padding and no bias.
    pub const fn new(out_channels: usize, kernel: usize) -> Self {
        Self {
            out_channels,
            kernel: [kernel, kernel],
            stride: [1, 1],
            padding: Padding::same(0),
            dilation: [1, 1],
            groups: 1,
            bias: false,
        }
    }

    /// Sets the same stride in both directions.
    pub const fn stride(mut self, stride: usize) -> Self {
        self.stride = [stride, stride];
        self
    }

    /// Sets the same padding on all sides.
    pub const fn padding(mut self, padding: usize) -> Self {
        self.padding = Padding::same(padding);
        self
    }

    /// Sets the number of groups.
    pub const fn groups(mut self, groups: usize) -> Self {
        self.groups = groups;
        self
    }

    /// Adds a bias.
    pub const fn with_bias(mut self) -> Self {
        self.bias = true;
        self
    }

    /// Height and width of the output for an input of `input` height and width; `None` if the kernel does not fit.
    pub fn output_size(&self, input: [usize; 2]) -> Option<[usize; 2]> {
        let p = self.padding;
        Some([
            window(input[0], [p.top, p.bottom], self.kernel[0], self.stride[0], self.dilation[0])?,
            window(input[1], [p.left, p.right], self.kernel[1], self.stride[1], self.dilation[1])?,
        ])
    }
}

/// Attributes of max and average pooling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool2d {
    /// Window height and width.
    pub kernel: [usize; 2],
    /// Vertical and horizontal stride.
    pub stride: [usize; 2],
    /// Padding: minus infinity for max pooling, zeros that count in the mean for average pooling.
    #[serde(default)]
    pub padding: Padding,
}

impl Pool2d {
    /// A square window with a stride and no padding.
    pub const fn new(kernel: usize, stride: usize) -> Self {
        Self { kernel: [kernel, kernel], stride: [stride, stride], padding: Padding::same(0) }
    }

    /// Sets the same padding on all sides.
    pub const fn padding(mut self, padding: usize) -> Self {
        self.padding = Padding::same(padding);
        self
    }

    /// Height and width of the output; `None` if the window does not fit.
    pub fn output_size(&self, input: [usize; 2]) -> Option<[usize; 2]> {
        let p = self.padding;
        Some([
            window(input[0], [p.top, p.bottom], self.kernel[0], self.stride[0], 1)?,
            window(input[1], [p.left, p.right], self.kernel[1], self.stride[1], 1)?,
        ])
    }
}

/// Elementwise non-linearities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// min(max(x, 0), 6).
    Relu6,
    /// x · sigmoid(x).
    Silu,
    /// x · relu6(x + 3) / 6.
    HardSwish,
    /// relu6(x + 3) / 6.
    HardSigmoid,
    /// 1 / (1 + exp(−x)).
    Sigmoid,
}

impl Activation {
    /// Whether the activation maps 0 to 0, so that a masked channel stays absent behind it.
    pub const fn keeps_zero(self) -> bool {
        match self {
            Self::Relu | Self::Relu6 | Self::Silu | Self::HardSwish => true,
            Self::HardSigmoid | Self::Sigmoid => false,
        }
    }
}

/// One operation with its attributes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// The image: `[channels, height, width]`. Always node 0, and the only one.
    Input {
        /// Channels, height, width.
        shape: [usize; 3],
    },
    /// 2-D convolution. Parameters `weight` `[O, I/groups, kh, kw]` and `bias` `[O]`.
    Conv2d(Conv2d),
    /// Fully connected layer on a vector. Parameters `weight` `[O, I]` and `bias` `[O]`.
    Linear {
        /// Output features.
        out_features: usize,
        /// Whether a bias is added.
        #[serde(default = "yes")]
        bias: bool,
    },
    /// Batch normalisation over channels. Parameters `weight`, `bias`, `running_mean`, `running_var`, each `[C]`.
    BatchNorm {
        /// Added to the variance.
        #[serde(default = "default_eps")]
        eps: f64,
    },
    /// Elementwise non-linearity.
    Activation {
        /// Which one.
        function: Activation,
    },
    /// Max pooling.
    MaxPool(Pool2d),
    /// Average pooling; padding counts in the mean (PyTorch's `count_include_pad=True`).
    AvgPool(Pool2d),
    /// Mean over height and width: `[C, H, W]` to `[C, 1, 1]`.
    GlobalAvgPool,
    /// Keeps every `stride`-th row and column, from the first.
    Subsample {
        /// Vertical and horizontal step.
        stride: [usize; 2],
    },
    /// Adds channels of zeros (the option-A shortcut of CIFAR ResNets).
    PadChannels {
        /// Zero channels in front.
        before: usize,
        /// Zero channels behind.
        after: usize,
    },
    /// Elementwise sum of two or more inputs of one shape.
    Add,
    /// A map `[C, H, W]` times a gate `[C, 1, 1]` (squeeze and excitation).
    Scale,
    /// Inputs joined along channels.
    Concat,
    /// `[C, H, W]` to `[C·H·W]`, channel-major as in PyTorch.
    Flatten,
    /// Nothing when serving; random zeroing of features in training.
    Dropout {
        /// Probability of zeroing.
        p: f32,
    },
}

/// How the output channels of an operation relate to its input channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelRule {
    /// New channels, each mixing all input channels (convolution, linear).
    Produces,
    /// New channels in `groups` blocks; input and output channels can only be removed evenly from every block.
    ProducesGrouped {
        /// Number of blocks.
        groups: usize,
    },
    /// Output channel c is input channel c.
    Same,
    /// Output channel c is channel c of every input.
    Tied,
    /// Inputs one after the other.
    Offset,
    /// Input channels moved up by `before`, zeros around them.
    Shifted {
        /// Zero channels in front.
        before: usize,
    },
    /// Input channel c becomes output channels c·n .. (c+1)·n.
    Repeat {
        /// Height times width of the flattened map.
        n: usize,
    },
    /// Channels nobody may remove (the image).
    Fixed,
}

impl Op {
    /// The kind's name as written in JSON and in printed graphs.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Input { .. } => "input",
            Self::Conv2d(_) => "conv2d",
            Self::Linear { .. } => "linear",
            Self::BatchNorm { .. } => "batch_norm",
            Self::Activation { .. } => "activation",
            Self::MaxPool(_) => "max_pool",
            Self::AvgPool(_) => "avg_pool",
            Self::GlobalAvgPool => "global_avg_pool",
            Self::Subsample { .. } => "subsample",
            Self::PadChannels { .. } => "pad_channels",
            Self::Add => "add",
            Self::Scale => "scale",
            Self::Concat => "concat",
            Self::Flatten => "flatten",
            Self::Dropout { .. } => "dropout",
        }
    }
}

/// Output length of a sliding window; `None` if the window is empty or larger than the padded input.
fn window(input: usize, padding: [usize; 2], kernel: usize, stride: usize, dilation: usize) -> Option<usize> {
    if kernel == 0 || stride == 0 || dilation == 0 {
        return None;
    }
    let span = dilation.checked_mul(kernel - 1)?.checked_add(1)?;
    let room = input.checked_add(padding[0])?.checked_add(padding[1])?.checked_sub(span)?;
    Some(room / stride + 1)
}

fn ones() -> [usize; 2] {
    [1, 1]
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

fn default_eps() -> f64 {
    1e-5
}
