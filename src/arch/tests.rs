//! What must hold for every architecture, and channel groups computed by hand for some.

use super::{ArchOptions, build, default_input, names};
use crate::Error;
use crate::graph::testing::random_keep;
use crate::graph::tests::{assert_compaction, assert_groups_partition};
use crate::graph::{ChannelGroups, Graph, Op, Scope};
use crate::rng::Rng;

fn graph(name: &str) -> Graph {
    build(name, &ArchOptions { num_classes: 10, input: default_input(name).unwrap() }).unwrap()
}

/// Widths of the prunable groups in network order.
fn prunable_widths(graph: &Graph, scope: Scope) -> Vec<usize> {
    ChannelGroups::new(graph, scope).prunable().map(|g| g.width).collect()
}

/// Name, width and number of producers of each group that stays whole.
fn fixed_groups(groups: &ChannelGroups) -> Vec<(&str, usize, usize)> {
    let fixed = groups.groups().iter().filter(|g| g.fixed.is_some());
    fixed.map(|g| (g.name.as_str(), g.width, g.producers.len())).collect()
}

#[test]
fn every_architecture_partitions_compacts_and_survives_json() {
    for name in names() {
        let graph = graph(name);
        assert_eq!(graph.name(), *name);
        assert_eq!(graph.num_classes(), 10);
        assert_eq!(Graph::from_json(&graph.to_json()).unwrap(), graph, "{name}");
        for scope in [Scope::Inner, Scope::All] {
            let groups = ChannelGroups::new(&graph, scope);
            assert_groups_partition(&graph, &groups);
            let keep = random_keep(&graph, &groups, 0.4, &mut Rng::new(1));
            assert_compaction(&graph, &groups, &keep);
        }
    }
}

#[test]
fn resnet18_prunes_the_first_convolution_of_each_block() {
    let graph = graph("resnet18");
    let groups = ChannelGroups::new(&graph, Scope::Inner);
    let names: Vec<&str> = groups.prunable().map(|g| g.name.as_str()).collect();
    let expected: Vec<String> = (1..5).flat_map(|l| (0..2).map(move |b| format!("layer{l}.{b}.conv1"))).collect();
    assert_eq!(names, expected);
    assert_eq!(prunable_widths(&graph, Scope::Inner), [64, 64, 128, 128, 256, 256, 512, 512]);
    assert_eq!(groups.total_channels(), 1920);
    assert_eq!(
        fixed_groups(&groups),
        [
            ("conv1", 64, 3),
            ("layer2.0.conv2", 128, 3),
            ("layer3.0.conv2", 256, 3),
            ("layer4.0.conv2", 512, 3),
            ("fc", 10, 1)
        ]
    );
    let all = ChannelGroups::new(&graph, Scope::All);
    assert_eq!(all.prunable().count(), 12);
    assert_eq!(all.len(), 1920 + 960);
    assert_eq!(all.total_channels(), 1920 + 3 * 960, "each residual entry stands for three convolutions");
    assert_eq!(fixed_groups(&all), [("fc", 10, 1)]);
}

#[test]
fn resnet50_prunes_two_convolutions_of_each_block_and_the_stem() {
    // The stem feeds only layer1.0, whose shortcut has a convolution: no addition ties it.
    let graph = graph("resnet50");
    let mut expected = vec![64];
    for (width, depth) in [(64, 3), (128, 4), (256, 6), (512, 3)] {
        expected.extend(vec![width; 2 * depth]);
    }
    assert_eq!(prunable_widths(&graph, Scope::Inner), expected);
    let groups = ChannelGroups::new(&graph, Scope::Inner);
    let streams: Vec<(usize, usize)> = fixed_groups(&groups).iter().map(|g| (g.1, g.2)).collect();
    assert_eq!(streams, [(256, 4), (512, 5), (1024, 7), (2048, 4), (10, 1)]);
}

#[test]
fn cifar_resnet20_stages_overlap_through_padded_shortcuts() {
    let graph = graph("cifar_resnet20");
    assert_eq!(prunable_widths(&graph, Scope::Inner), [16, 16, 16, 32, 32, 32, 64, 64, 64]);
    // Stage 1's 16 channels are also stage 2's 8..24 and stage 3's 24..40, and so on.
    let groups = ChannelGroups::new(&graph, Scope::Inner);
    assert_eq!(
        fixed_groups(&groups),
        [("conv1", 16, 10), ("layer2.0.conv2", 16, 6), ("layer3.0.conv2", 32, 3), ("linear", 10, 1)]
    );
    let all = ChannelGroups::new(&graph, Scope::All);
    assert_eq!(all.len(), 336 + 64);
    let entries_of = |name: &str| {
        let id = graph.nodes().iter().position(|n| n.name == name).unwrap();
        all.node_entries(id)
    };
    assert_eq!(entries_of("conv1"), &entries_of("layer2.0.conv2")[8..24]);
    assert_eq!(entries_of("layer2.2.conv2"), &entries_of("layer3.1.conv2")[16..48]);
}

#[test]
fn mobilenetv2_prunes_all_but_the_residual_streams() {
    let graph = graph("mobilenetv2_100");
    let hidden = [96, 144, 144, 192, 192, 192, 384, 384, 384, 384, 576, 576, 576, 960, 960, 960];
    let expected = [&[32, 16][..], &hidden, &[320, 1280]].concat();
    assert_eq!(prunable_widths(&graph, Scope::Inner), expected);
    let groups = ChannelGroups::new(&graph, Scope::Inner);
    let streams: Vec<(usize, usize)> = fixed_groups(&groups).iter().map(|g| (g.1, g.2)).collect();
    assert_eq!(streams, [(24, 2), (32, 3), (64, 4), (96, 3), (160, 3), (10, 1)]);
    assert_eq!(groups.total_channels(), expected.iter().sum::<usize>(), "depthwise channels do not count");
}

#[test]
fn mobilenetv3_gates_are_tied_to_the_map_they_multiply() {
    let graph = graph("mobilenetv3_large_100");
    let groups = ChannelGroups::new(&graph, Scope::Inner);
    let widths: Vec<(usize, usize)> = groups.prunable().map(|g| (g.width, g.producers.len())).collect();
    let plain = |w: usize| vec![(w, 1)];
    let gated = |w: usize, reduced: usize| vec![(w, 2), (reduced, 1)];
    let expected = [
        plain(64),
        plain(72),
        gated(72, 24),
        gated(120, 32),
        gated(120, 32),
        plain(240),
        plain(200),
        plain(184),
        plain(184),
        gated(480, 120),
        gated(672, 168),
        gated(672, 168),
        gated(960, 240),
        gated(960, 240),
        plain(960),
        plain(1280),
    ]
    .concat();
    assert_eq!(widths, expected);
    let streams: Vec<(usize, usize)> = fixed_groups(&groups).iter().map(|g| (g.1, g.2)).collect();
    assert_eq!(streams, [(16, 2), (24, 2), (40, 3), (80, 4), (112, 2), (160, 3), (10, 1)]);
}

#[test]
fn densenet121_concatenation_ties_nothing() {
    let graph = graph("densenet121");
    let groups = ChannelGroups::new(&graph, Scope::Inner);
    assert!(groups.groups().iter().all(|g| g.producers.len() == 1));
    assert_eq!(groups.prunable().count(), 120);
    assert_eq!(groups.len(), 64 + 58 * (128 + 32) + 128 + 256 + 512);
    assert_eq!(fixed_groups(&groups), [("classifier", 10, 1)]);
}

#[test]
fn vgg16_prunes_convolutions_and_hidden_linear_layers() {
    let graph = graph("vgg16_bn");
    let groups = ChannelGroups::new(&graph, Scope::Inner);
    let expected = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512, 4096, 4096];
    assert_eq!(prunable_widths(&graph, Scope::Inner), expected);
    assert_eq!(groups.total_channels(), 4224, "linear features are no convolution channels");
    // One channel of the last map is 49 inputs of the classifier.
    let mut keep = vec![true; groups.len()];
    keep[groups.prunable().nth(12).unwrap().entries.start] = false;
    let compaction = graph.compact(&groups, &keep).unwrap();
    let weight = compaction.graph.params().find(|p| p.name == "classifier.0.weight").unwrap();
    assert_eq!(weight.shape, [4096, 511 * 49]);
}

#[test]
fn vgg_accepts_sizes_where_seven_divides_the_map() {
    let vgg = |input| build("vgg11_bn", &ArchOptions { num_classes: 5, input });
    let double = vgg([3, 448, 224]).unwrap();
    assert!(double.nodes().iter().any(|n| n.name == "avgpool" && matches!(n.op, Op::AvgPool(p) if p.kernel == [2, 1])));
    assert_eq!(double.params().collect::<Vec<_>>().len(), graph("vgg11_bn").params().count());
    for side in [32, 64, 192, 256] {
        let error = vgg([3, side, side]).unwrap_err();
        assert!(matches!(&error, Error::Config(m) if m.contains("multiples of 224")), "{error}");
    }
}

#[test]
fn class_counts_channels_and_odd_sizes_are_free() {
    for name in names().iter().filter(|n| !n.starts_with("vgg")) {
        let graph = build(name, &ArchOptions { num_classes: 3, input: [1, 75, 61] }).unwrap();
        assert_eq!((graph.num_classes(), graph.input_shape()), (3, [1, 75, 61]));
        let first = graph.params().next().unwrap();
        assert_eq!(first.shape[1], 1, "{name}");
    }
}

#[test]
fn tensorflow_padding_follows_the_input_size() {
    let stem = |height, width| {
        let options = ArchOptions { num_classes: 2, input: [3, height, width] };
        let graph = build("tf_efficientnet_lite0", &options).unwrap();
        let Op::Conv2d(conv) = graph.nodes()[1].op else { panic!("the stem is a convolution") };
        let p = conv.padding;
        ([p.top, p.bottom, p.left, p.right], graph.shape(1).spatial())
    };
    assert_eq!(stem(64, 75), ([0, 1, 1, 1], [32, 38]));
    assert_eq!(stem(63, 64), ([1, 1, 0, 1], [32, 32]));
}

#[test]
fn unknown_names_get_the_nearest_and_the_list() {
    let options = ArchOptions { num_classes: 2, input: [3, 64, 64] };
    for (typed, nearest) in
        [("resnet-18", "resnet18"), ("mobilenet_v2_100", "mobilenetv2_100"), ("lenet", "lenet_bn"), ("", "resnet18")]
    {
        let error = build(typed, &options).unwrap_err();
        let Error::Config(message) = &error else { panic!("{error:?}") };
        assert!(message.contains(&format!("did you mean {nearest}?")), "{message}");
        assert!(names().iter().all(|n| message.contains(n)), "{message}");
    }
    assert!(default_input("nothing").is_err());
    assert!(matches!(build("resnet18", &ArchOptions { num_classes: 0, ..options }), Err(Error::Config(_))));
}

#[test]
fn timm_weight_tags_are_ignored() {
    let options = ArchOptions { num_classes: 2, input: [3, 64, 64] };
    let tagged = build("mobilenetv2_100.ra_in1k", &options).unwrap();
    assert_eq!(tagged, build("mobilenetv2_100", &options).unwrap());
}
