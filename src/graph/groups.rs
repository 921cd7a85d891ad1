//! Channel groups: which channels must live or die together, found by union-find over the channel rules.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{ChannelRule, Graph, NodeId, Op};

/// Which groups may lose channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Only groups no residual addition ties together: the insides of blocks.
    #[default]
    Inner,
    /// Every group, residual streams included.
    All,
}

/// Layers coupled with all their channels; entry e of the group is one set of (node, channel) pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelGroup {
    /// Name of the first producing layer.
    pub name: String,
    /// The layers whose output channels these are (convolutions that are not depthwise, linear layers).
    pub producers: Vec<NodeId>,
    /// Every node that carries a channel of the group.
    pub nodes: Vec<NodeId>,
    /// Number of entries, whether prunable or not.
    pub width: usize,
    /// Where the group's entries stand in the network's flat mask; empty if it may not be pruned.
    pub entries: Range<usize>,
    /// Why it may not be pruned, if so.
    pub fixed: Option<&'static str>,
}

/// A node where the mask multiplies the output's channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaskPoint {
    /// A batch normalisation, or a producer whose output reaches another layer without one.
    pub node: NodeId,
    /// For each channel its entry in the flat mask; [`ChannelGroups::len`] stands for a constant one.
    pub entries: Vec<u32>,
}

/// The channel groups of a graph, and one flat numbering of all prunable entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelGroups {
    groups: Vec<ChannelGroup>,
    conv_channels: Vec<usize>,
    node_entries: Vec<Vec<u32>>,
    mask_points: Vec<MaskPoint>,
    scope: Scope,
}

impl ChannelGroups {
    /// Finds the groups of `graph`; groups outside `scope` are listed but not prunable.
    pub fn new(graph: &Graph, scope: Scope) -> Self {
        let classes = Classes::new(graph);
        let paths = MaskPaths::new(graph);
        let mut reasons: Vec<Option<&'static str>> = vec![None; classes.count];
        for (id, node) in graph.nodes().iter().enumerate() {
            let reason = match &node.op {
                Op::Input { .. } => "image channels",
                _ if id == graph.output() => "logits",
                Op::Activation { function } if !function.keeps_zero() && paths.reaches_mixer[id] => {
                    "an activation turns the masked zero into another value"
                }
                Op::Add if scope == Scope::Inner => "tied by a residual addition",
                _ => continue,
            };
            for &class in &classes.of_node[id] {
                reasons[class].get_or_insert(reason);
            }
        }

        let mut members: Vec<Vec<(NodeId, usize)>> = vec![Vec::new(); classes.count];
        for (id, channels) in classes.of_node.iter().enumerate() {
            for (channel, &class) in channels.iter().enumerate() {
                members[class].push((id, channel));
            }
        }
        // Classes with the same producers and the same fate form one group; BTreeMap keeps network order.
        let mut by_producers: BTreeMap<(Vec<NodeId>, Option<&'static str>), Vec<usize>> = BTreeMap::new();
        for (class, pairs) in members.iter().enumerate() {
            let mut producers: Vec<NodeId> = pairs.iter().map(|p| p.0).filter(|&id| graph.produces(id)).collect();
            producers.dedup();
            if !producers.is_empty() {
                by_producers.entry((producers, reasons[class])).or_default().push(class);
            }
        }

        let mut entry_of_class: Vec<Option<u32>> = vec![None; classes.count];
        let mut conv_channels = Vec::new();
        let mut groups = Vec::new();
        for ((producers, fixed), group_classes) in by_producers {
            let start = conv_channels.len();
            let mut nodes: Vec<NodeId> = Vec::new();
            for &class in &group_classes {
                nodes.extend(members[class].iter().map(|p| p.0));
                if fixed.is_none() {
                    entry_of_class[class] = Some(conv_channels.len() as u32);
                    let is_conv = |id: NodeId| matches!(graph.nodes()[id].op, Op::Conv2d(_)) && graph.produces(id);
                    conv_channels.push(members[class].iter().filter(|p| is_conv(p.0)).count());
                }
            }
            nodes.sort_unstable();
            nodes.dedup();
            groups.push(ChannelGroup {
                name: graph.nodes()[producers[0]].name.clone(),
                producers,
                nodes,
                width: group_classes.len(),
                entries: start..conv_channels.len(),
                fixed,
            });
        }

        let one = conv_channels.len() as u32;
        let node_entries: Vec<Vec<u32>> = classes
            .of_node
            .iter()
            .map(|channels| channels.iter().map(|&class| entry_of_class[class].unwrap_or(one)).collect())
            .collect();
        let mask_points = (0..graph.nodes().len())
            .filter(|&id| paths.masked[id] && node_entries[id].iter().any(|&e| e != one))
            .map(|node| MaskPoint { node, entries: node_entries[node].clone() })
            .collect();
        Self { groups, conv_channels, node_entries, mask_points, scope }
    }

    /// All groups in network order, prunable or not.
    pub fn groups(&self) -> &[ChannelGroup] {
        &self.groups
    }

    /// The groups that may lose channels.
    pub fn prunable(&self) -> impl Iterator<Item = &ChannelGroup> {
        self.groups.iter().filter(|g| g.fixed.is_none())
    }

    /// Number of entries of the flat mask.
    pub fn len(&self) -> usize {
        self.conv_channels.len()
    }

    /// Whether nothing can be pruned.
    pub fn is_empty(&self) -> bool {
        self.conv_channels.is_empty()
    }

    /// The scope the groups were found for.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// For each entry, how many convolution output channels it stands for: the paper's measure.
    pub fn conv_channels(&self) -> &[usize] {
        &self.conv_channels
    }

    /// Prunable convolution output channels of the whole network.
    pub fn total_channels(&self) -> usize {
        self.conv_channels.iter().sum()
    }

    /// For each channel of node `id`, its entry in the flat mask, or [`ChannelGroups::len`] if it always stays.
    pub fn node_entries(&self, id: NodeId) -> &[u32] {
        &self.node_entries[id]
    }

    /// Where masks are applied.
    pub fn mask_points(&self) -> &[MaskPoint] {
        &self.mask_points
    }
}

/// Union-find classes of (node, channel) pairs, numbered in network order.
struct Classes {
    of_node: Vec<Vec<usize>>,
    count: usize,
}

impl Classes {
    fn new(graph: &Graph) -> Self {
        let mut offsets = vec![0usize];
        for id in 0..graph.nodes().len() {
            offsets.push(offsets[id] + graph.shape(id).channels());
        }
        let mut parents: Vec<usize> = (0..offsets[graph.nodes().len()]).collect();
        for (id, node) in graph.nodes().iter().enumerate() {
            let channels = graph.shape(id).channels();
            match graph.channel_rule(id) {
                ChannelRule::Produces | ChannelRule::Fixed => {}
                ChannelRule::ProducesGrouped { groups } => {
                    let (per_out, per_in) = (channels / groups, graph.shape(node.inputs[0]).channels() / groups);
                    for c in 0..channels {
                        union(&mut parents, offsets[id] + c, offsets[id] + c % per_out);
                    }
                    let input = offsets[node.inputs[0]];
                    for c in 0..per_in * groups {
                        union(&mut parents, input + c, input + c % per_in);
                    }
                }
                ChannelRule::Same | ChannelRule::Tied => {
                    for &input in &node.inputs {
                        for c in 0..channels {
                            union(&mut parents, offsets[id] + c, offsets[input] + c);
                        }
                    }
                }
                ChannelRule::Offset => {
                    let mut start = offsets[id];
                    for &input in &node.inputs {
                        for c in 0..graph.shape(input).channels() {
                            union(&mut parents, start + c, offsets[input] + c);
                        }
                        start += graph.shape(input).channels();
                    }
                }
                ChannelRule::Shifted { before } => {
                    for c in 0..graph.shape(node.inputs[0]).channels() {
                        union(&mut parents, offsets[id] + before + c, offsets[node.inputs[0]] + c);
                    }
                }
                ChannelRule::Repeat { n } => {
                    for c in 0..channels {
                        union(&mut parents, offsets[id] + c, offsets[node.inputs[0]] + c / n);
                    }
                }
            }
        }
        let mut numbers = vec![usize::MAX; parents.len()];
        let mut count = 0;
        let of_node = (0..graph.nodes().len())
            .map(|id| {
                (offsets[id]..offsets[id + 1])
                    .map(|pair| {
                        let root = find(&mut parents, pair);
                        if numbers[root] == usize::MAX {
                            numbers[root] = count;
                            count += 1;
                        }
                        numbers[root]
                    })
                    .collect()
            })
            .collect();
        Self { of_node, count }
    }
}

fn find(parents: &mut [usize], mut x: usize) -> usize {
    while parents[x] != x {
        parents[x] = parents[parents[x]];
        x = parents[x];
    }
    x
}

fn union(parents: &mut [usize], a: usize, b: usize) {
    let (a, b) = (find(parents, a), find(parents, b));
    parents[a.max(b)] = a.min(b);
}

/// Where a mask has to act so that a masked channel is exactly zero wherever another layer mixes it in.
struct MaskPaths {
    /// The node's output reaches a mixing layer without passing a further mask point.
    reaches_mixer: Vec<bool>,
    /// The node is a mask point.
    masked: Vec<bool>,
}

impl MaskPaths {
    fn new(graph: &Graph) -> Self {
        let nodes = graph.nodes();
        let consumers = graph.consumers();
        let mut reaches_mixer = vec![false; nodes.len()];
        let mut masked = vec![false; nodes.len()];
        for id in (0..nodes.len()).rev() {
            reaches_mixer[id] = id == graph.output()
                || consumers[id].iter().any(|&c| match &nodes[c].op {
                    Op::BatchNorm { .. } => false,
                    // A gate may be anything where the map it multiplies is zero.
                    Op::Scale => nodes[c].inputs[0] == id && reaches_mixer[c],
                    _ if graph.produces(c) => true,
                    Op::Conv2d(depthwise) => !depthwise.bias && reaches_mixer[c],
                    _ => reaches_mixer[c],
                });
            masked[id] = match &nodes[id].op {
                Op::BatchNorm { .. } => true,
                Op::Conv2d(conv) => (graph.produces(id) || conv.bias) && reaches_mixer[id],
                Op::Linear { .. } => reaches_mixer[id] && id != graph.output(),
                _ => false,
            };
        }
        Self { reaches_mixer, masked }
    }
}
