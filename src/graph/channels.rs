//! The channel rule of each operation.

use super::{ChannelRule, Graph, NodeId, Op};

impl Graph {
    /// How the output channels of node `id` relate to its inputs' channels.
    pub fn channel_rule(&self, id: NodeId) -> ChannelRule {
        let node = &self.nodes()[id];
        let channels_in = node.inputs.first().map_or(0, |&i| self.shape(i).channels());
        match &node.op {
            Op::Input { .. } => ChannelRule::Fixed,
            Op::Conv2d(conv) if conv.groups == 1 => ChannelRule::Produces,
            Op::Conv2d(conv) if conv.groups == channels_in && conv.out_channels == channels_in => ChannelRule::Same,
            Op::Conv2d(conv) => ChannelRule::ProducesGrouped { groups: conv.groups },
            Op::Linear { .. } => ChannelRule::Produces,
            Op::BatchNorm { .. }
            | Op::Activation { .. }
            | Op::MaxPool(_)
            | Op::AvgPool(_)
            | Op::GlobalAvgPool
            | Op::Subsample { .. }
            | Op::Dropout { .. } => ChannelRule::Same,
            Op::PadChannels { before, .. } => ChannelRule::Shifted { before: *before },
            Op::Add | Op::Scale => ChannelRule::Tied,
            Op::Concat => ChannelRule::Offset,
            Op::Flatten => {
                let spatial = node.inputs.first().map_or([1, 1], |&i| self.shape(i).spatial());
                ChannelRule::Repeat { n: spatial[0] * spatial[1] }
            }
        }
    }

    /// Whether node `id` makes new channels (a convolution that is not depthwise, or a linear layer).
    pub fn produces(&self, id: NodeId) -> bool {
        match self.channel_rule(id) {
            ChannelRule::Produces | ChannelRule::ProducesGrouped { .. } => true,
            ChannelRule::Same
            | ChannelRule::Tied
            | ChannelRule::Offset
            | ChannelRule::Shifted { .. }
            | ChannelRule::Repeat { .. }
            | ChannelRule::Fixed => false,
        }
    }
}
