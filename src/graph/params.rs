//! The tensors each operation owns, by torchvision / timm name.

use super::{Graph, NodeId, Op};

/// What a parameter tensor is, which decides how it is trained and how it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamKind {
    /// Weight of a convolution or linear layer: `[O, I/groups, kh, kw]` or `[O, I]`.
    Weight,
    /// Bias of a convolution or linear layer: `[O]`.
    Bias,
    /// Scale of a batch normalisation: `[C]`.
    NormWeight,
    /// Shift of a batch normalisation: `[C]`.
    NormBias,
    /// Running mean of a batch normalisation: `[C]`; a buffer, not trained.
    RunningMean,
    /// Running variance of a batch normalisation: `[C]`; a buffer, not trained.
    RunningVar,
}

impl ParamKind {
    /// Whether the optimiser updates it.
    pub const fn is_trained(self) -> bool {
        match self {
            Self::Weight | Self::Bias | Self::NormWeight | Self::NormBias => true,
            Self::RunningMean | Self::RunningVar => false,
        }
    }
}

/// Name, shape and kind of one parameter tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    /// `NODE.weight` and so on.
    pub name: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Its role.
    pub kind: ParamKind,
    /// The node it belongs to.
    pub node: NodeId,
}

impl Graph {
    /// The parameter tensors of node `id`, in a fixed order.
    pub fn node_params(&self, id: NodeId) -> Vec<ParamSpec> {
        let node = &self.nodes()[id];
        let channels_in = node.inputs.first().map_or(0, |&i| self.shape(i).channels());
        let channels = self.shape(id).channels();
        let spec = |suffix: &str, shape: Vec<usize>, kind| ParamSpec {
            name: format!("{}.{suffix}", node.name),
            shape,
            kind,
            node: id,
        };
        let mut specs = Vec::new();
        match &node.op {
            Op::Conv2d(conv) => {
                let shape = vec![conv.out_channels, channels_in / conv.groups, conv.kernel[0], conv.kernel[1]];
                specs.push(spec("weight", shape, ParamKind::Weight));
                if conv.bias {
                    specs.push(spec("bias", vec![conv.out_channels], ParamKind::Bias));
                }
            }
            Op::Linear { out_features, bias } => {
                specs.push(spec("weight", vec![*out_features, channels_in], ParamKind::Weight));
                if *bias {
                    specs.push(spec("bias", vec![*out_features], ParamKind::Bias));
                }
            }
            Op::BatchNorm { .. } => {
                specs.push(spec("weight", vec![channels], ParamKind::NormWeight));
                specs.push(spec("bias", vec![channels], ParamKind::NormBias));
                specs.push(spec("running_mean", vec![channels], ParamKind::RunningMean));
                specs.push(spec("running_var", vec![channels], ParamKind::RunningVar));
            }
            Op::Input { .. }
            | Op::Activation { .. }
            | Op::MaxPool(_)
            | Op::AvgPool(_)
            | Op::GlobalAvgPool
            | Op::Subsample { .. }
            | Op::PadChannels { .. }
            | Op::Add
            | Op::Scale
            | Op::Concat
            | Op::Flatten
            | Op::Dropout { .. } => {}
        }
        specs
    }

    /// The parameter tensors of the whole graph, in node order.
    pub fn params(&self) -> impl Iterator<Item = ParamSpec> + '_ {
        (0..self.nodes().len()).flat_map(|id| self.node_params(id))
    }
}
