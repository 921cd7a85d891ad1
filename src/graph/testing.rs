//! Tiny random graphs for property tests: residual additions (after and before activation), concatenation, depthwise
//! and grouped convolutions, gates, padded shortcuts, convolutions without batch norm, flattening of maps larger than
//! 1×1.

use super::{Activation, Conv2d, Graph, GraphBuilder, NodeId, Op, Padding, Pool2d};
use crate::rng::Rng;

/// A random valid graph; the same `seed` gives the same graph.
pub(crate) fn random_graph(seed: u64) -> Graph {
    let mut rng = Rng::new(seed);
    let input = [1 + 2 * rng.below(2), 6 + rng.below(4), 6 + rng.below(4)];
    let mut b = GraphBuilder::new(&format!("random{seed}"), input);
    let width = 4 + 2 * rng.below(3);
    let mut x = conv_bn_act(&mut b, "stem", Conv2d::new(width, 3).padding(1), 0, &mut rng);
    for index in 0..1 + rng.below(4) {
        x = block(&mut b, &format!("block{index}"), x, &mut rng);
    }
    if rng.below(2) == 0 {
        b.classifier("fc", 3, x);
    } else {
        x = b.node("flatten", Op::Flatten, &[x]);
        x = b.node("hidden", Op::Linear { out_features: 5, bias: true }, &[x]);
        x = b.activation("hidden.relu", Activation::Relu, x);
        x = b.node("dropout", Op::Dropout { p: 0.5 }, &[x]);
        b.node("fc", Op::Linear { out_features: 3, bias: rng.below(2) == 0 }, &[x]);
    }
    b.finish().expect("random graphs are valid by construction")
}

fn block(b: &mut GraphBuilder, name: &str, x: NodeId, rng: &mut Rng) -> NodeId {
    let width = b.channels(x);
    match rng.below(14) {
        0 => {
            let y = conv_bn_act(b, &format!("{name}.a"), Conv2d::new(2 + rng.below(5), 3).padding(1), x, rng);
            let y = b.conv(&format!("{name}.b"), Conv2d::new(width, 1), y);
            let y = b.batch_norm(&format!("{name}.b.bn"), 1e-5, y);
            let sum = b.node(&format!("{name}.add"), Op::Add, &[x, y]);
            b.activation(&format!("{name}.relu"), Activation::Relu, sum)
        }
        1 => {
            let y = conv_bn_act(b, &format!("{name}.grow"), Conv2d::new(3, 1), x, rng);
            b.node(&format!("{name}.concat"), Op::Concat, &[x, y])
        }
        2 => conv_bn_act(b, &format!("{name}.dw"), Conv2d::new(width, 3).padding(1).groups(width), x, rng),
        3 => {
            let y = conv_bn_act(b, &format!("{name}.even"), Conv2d::new(6, 1), x, rng);
            conv_bn_act(b, &format!("{name}.grouped"), Conv2d::new(4, 3).padding(1).groups(2), y, rng)
        }
        4 => {
            let gate = b.node(&format!("{name}.pool"), Op::GlobalAvgPool, &[x]);
            let gate = b.conv(&format!("{name}.reduce"), Conv2d::new(3, 1).with_bias(), gate);
            let gate = b.activation(&format!("{name}.reduce.relu"), Activation::Relu, gate);
            let gate = b.conv(&format!("{name}.expand"), Conv2d::new(width, 1).with_bias(), gate);
            let gate = b.activation(&format!("{name}.gate"), Activation::HardSigmoid, gate);
            b.node(&format!("{name}.scale"), Op::Scale, &[x, gate])
        }
        5 => {
            let wide = width + 4;
            let y = conv_bn_act(b, &format!("{name}.a"), Conv2d::new(wide, 3).stride(2).padding(1), x, rng);
            let half = b.node(&format!("{name}.subsample"), Op::Subsample { stride: [2, 2] }, &[x]);
            let pad = b.node(&format!("{name}.pad"), Op::PadChannels { before: 1, after: 3 }, &[half]);
            b.node(&format!("{name}.add"), Op::Add, &[y, pad])
        }
        6 => {
            // No batch norm: the convolution itself carries the mask. Asymmetric padding and dilation.
            let mut conv = Conv2d::new(4, 2).with_bias();
            conv.padding = Padding { top: 2, bottom: 0, left: 1, right: 1 };
            conv.dilation = [2, 2];
            let y = b.conv(&format!("{name}.conv"), conv, x);
            b.activation(&format!("{name}.silu"), Activation::Silu, y)
        }
        7 => {
            // A biased depthwise convolution revives masked channels unless it is masked itself.
            let conv = Conv2d::new(width, 3).padding(1).groups(width).with_bias();
            let y = b.conv(&format!("{name}.dw"), conv, x);
            b.activation(&format!("{name}.relu6"), Activation::Relu6, y)
        }
        8 => {
            let y = pre_activation(b, &format!("{name}.a"), Conv2d::new(2 + rng.below(4), 3).padding(1), x);
            let y = pre_activation(b, &format!("{name}.b"), Conv2d::new(width, 1), y);
            b.node(&format!("{name}.add"), Op::Add, &[x, y])
        }
        9 => {
            let y = pre_activation(b, &format!("{name}.grow"), Conv2d::new(3, 3).padding(1), x);
            b.node(&format!("{name}.concat"), Op::Concat, &[x, y])
        }
        10 => {
            // The shortcut is tied to a convolution that has neither batch norm nor activation.
            let y = b.conv(&format!("{name}.linear"), Conv2d::new(width, 3).padding(1).with_bias(), x);
            b.node(&format!("{name}.add"), Op::Add, &[y, x])
        }
        11 => {
            // Not zero at zero, so only the batch norm behind it can mask.
            let y = b.conv(&format!("{name}.conv"), Conv2d::new(5, 1), x);
            let y = b.activation(&format!("{name}.sigmoid"), Activation::Sigmoid, y);
            b.batch_norm(&format!("{name}.bn"), 1e-5, y)
        }
        12 => {
            // Two outputs for each input: one block each, so all of them go together.
            conv_bn_act(b, &format!("{name}.twice"), Conv2d::new(2 * width, 1).groups(width), x, rng)
        }
        _ => {
            let y = b.max_pool(&format!("{name}.max"), Pool2d::new(3, 1).padding(1), x);
            b.node(&format!("{name}.avg"), Op::AvgPool(Pool2d::new(2, 1).padding(1)), &[y])
        }
    }
}

fn pre_activation(b: &mut GraphBuilder, name: &str, conv: Conv2d, x: NodeId) -> NodeId {
    let x = b.batch_norm(&format!("{name}.bn"), 1e-5, x);
    let x = b.activation(&format!("{name}.relu"), Activation::Relu, x);
    b.conv(&format!("{name}.conv"), conv, x)
}

fn conv_bn_act(b: &mut GraphBuilder, name: &str, conv: Conv2d, x: NodeId, rng: &mut Rng) -> NodeId {
    let functions = [Activation::Relu, Activation::Relu6, Activation::Silu, Activation::HardSwish];
    let x = b.conv(name, conv, x);
    let x = b.batch_norm(&format!("{name}.bn"), 1e-5, x);
    b.activation(&format!("{name}.act"), functions[rng.below(functions.len())], x)
}

/// Keeps each entry with probability `fraction`, and in every layer at least one channel.
pub(crate) fn random_keep(graph: &Graph, groups: &super::ChannelGroups, fraction: f32, rng: &mut Rng) -> Vec<bool> {
    let mut keep: Vec<bool> = (0..groups.len()).map(|_| rng.uniform() < fraction).collect();
    for id in 0..graph.nodes().len() {
        let entries = groups.node_entries(id);
        if entries.iter().all(|&e| keep.get(e as usize) == Some(&false)) {
            keep[entries[0] as usize] = true;
        }
    }
    keep
}
