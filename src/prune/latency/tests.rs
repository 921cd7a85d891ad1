//! Predictions: exact where the model is right, never less for more channels, deaf to disturbance.

use super::*;
use crate::arch::{self, ArchOptions};
use crate::graph::{ChannelGroups, Conv2d, GraphBuilder, Scope};
use crate::rng::Rng;

const BLOCKS: [usize; 2] = [8, 16];

/// Two dense layers, the first of two channels at least, followed by a depthwise one.
fn chain([first, second]: [usize; 2]) -> Graph {
    let mut b = GraphBuilder::new("chain", [3, 8, 8]);
    let x = b.conv("a", Conv2d::new(first, 3).padding(1), 0);
    let x = b.conv("dw", Conv2d::new(first, 3).padding(1).groups(first), x);
    let x = b.conv("b", Conv2d::new(second, 1), x);
    b.classifier("fc", 5, x);
    b.finish().unwrap()
}

/// What the layers of `graph` take in an imagined device, in nanoseconds.
fn imagined(graph: &Graph) -> TimedNetwork {
    let timed = |(id, node): (NodeId, &Node)| {
        let inputs = node.inputs.first().map_or(0, |&i| graph.shape(i).channels());
        let outputs = graph.shape(id).channels();
        let pixels = graph.shape(id).spatial().iter().product::<usize>() as f64;
        let (x, y) = (inputs.next_multiple_of(8) as f64, outputs.next_multiple_of(16) as f64);
        let ns = match node.op {
            Op::Conv2d(_) | Op::Linear { .. } if graph.produces(id) => {
                1e3 + pixels * (10.0 * x + 5.0 * y + 8.0 * x * y)
            }
            Op::Conv2d(_) => 500.0 + pixels * outputs.next_multiple_of(8) as f64,
            _ => return None,
        };
        Some(TimedLayer { layer: node.name.clone(), inputs, outputs, ns: ns as u64 })
    };
    let layers: Vec<TimedLayer> = graph.nodes().iter().enumerate().filter_map(timed).collect();
    // A whole request takes a little longer than its layers.
    TimedNetwork { ns: layers.iter().map(|l| l.ns).sum::<u64>() * 21 / 20, layers }
}

fn measured(count: usize) -> Vec<TimedNetwork> {
    let mut rng = Rng::new(3);
    let mut width = || 2 + rng.below(159);
    let mut networks = vec![imagined(&chain([160, 160]))];
    networks.extend((1..count).map(|_| imagined(&chain([width(), width()]))));
    networks
}

#[test]
fn what_the_model_can_express_is_predicted_exactly_at_measured_and_other_widths() {
    let model = LatencyModel::fit(&chain([160, 160]), &measured(24), BLOCKS).unwrap();
    for widths in [[160, 160], [2, 1], [8, 40], [33, 100], [57, 64], [159, 7]] {
        let graph = chain(widths);
        let (got, want) = (model.nanoseconds(&graph) as f64, imagined(&graph).ns as f64);
        assert!((got / want - 1.0).abs() < 0.01, "{widths:?}: {got} instead of {want}");
    }
}

#[test]
fn more_channels_never_take_less_time() {
    let mut networks = measured(24);
    let mut rng = Rng::new(4);
    for network in &mut networks {
        network.layers.iter_mut().for_each(|layer| layer.ns = layer.ns * (80 + rng.below(41) as u64) / 100);
    }
    let model = LatencyModel::fit(&chain([160, 160]), &networks, BLOCKS).unwrap();
    for other in [8, 70, 160] {
        let time = |width| [[width, other], [other, width]].map(|widths| model.nanoseconds(&chain(widths)));
        let times: Vec<[u64; 2]> = (2..=160).map(time).collect();
        assert!(times.windows(2).all(|t| t[0][0] <= t[1][0] && t[0][1] <= t[1][1]), "{other}: {times:?}");
    }
}

#[test]
fn a_disturbed_network_is_left_out() {
    let (graph, mut networks) = (chain([160, 160]), measured(24));
    let clean = LatencyModel::fit(&graph, &networks, BLOCKS).unwrap();
    networks[5].layers[1].ns *= 10_000;
    let model = LatencyModel::fit(&graph, &networks, BLOCKS).unwrap();
    let ratio = model.nanoseconds(&graph) as f64 / clean.nanoseconds(&graph) as f64;
    assert!((ratio - 1.0).abs() < 0.01, "{ratio}");
}

#[test]
fn layers_of_equal_shape_share_their_times() {
    let build = |name| arch::build(name, &ArchOptions { num_classes: 10, input: [3, 32, 32] }).unwrap();
    let graph = build("cifar_resnet20");
    let model = LatencyModel::fit(&graph, &[imagined(&graph)], BLOCKS).unwrap();
    // The stem, three widths with two kinds of layers each (in front of a residual or not), two of which halve the map,
    // the classifier.
    assert!(model.layers.len() >= 20 && model.times.len() < 12, "{} {}", model.layers.len(), model.times.len());
}

#[test]
fn a_correction_multiplies() {
    let graph = chain([160, 160]);
    let model = LatencyModel::fit(&graph, &measured(24), BLOCKS).unwrap();
    let ratio = model.corrected(1.5).nanoseconds(&graph) as f64 / model.nanoseconds(&graph) as f64;
    assert!((ratio - 1.5).abs() < 1e-3, "{ratio}");
}

#[test]
fn the_narrowed_graph_of_a_compaction_is_predicted_like_one_built_so() {
    let graph = chain([64, 64]);
    let model = LatencyModel::fit(&graph, &measured(24), BLOCKS).unwrap();
    let groups = ChannelGroups::new(&graph, Scope::Inner);
    let mut keep = vec![true; groups.len()];
    keep[..30].fill(false);
    let compacted = graph.compact(&groups, &keep).unwrap().graph;
    assert_eq!(model.nanoseconds(&compacted), model.nanoseconds(&chain([34, 64])));
}

#[test]
fn tables_that_say_nothing_or_speak_of_others_are_refused() {
    let graph = chain([160, 160]);
    let refused = |networks: &[TimedNetwork]| match LatencyModel::fit(&graph, networks, BLOCKS) {
        Err(Error::Config(message)) => message,
        other => panic!("{other:?}"),
    };
    assert!(refused(&[]).contains("expected times"));
    let mut broken = measured(3);
    broken[1].ns = 0;
    assert!(refused(&broken).contains("expected times"));
    let mut foreign = measured(3);
    foreign[0].layers[0].layer = "elsewhere".to_string();
    assert!(refused(&foreign).contains("elsewhere"));
    let mut foreign = measured(3);
    foreign[2].layers[0].layer = "elsewhere".to_string();
    assert!(refused(&foreign).contains("elsewhere"));
}
