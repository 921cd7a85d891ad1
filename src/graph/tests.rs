//! Shapes, groups, compaction and JSON on hand-made and random graphs.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::testing::{random_graph, random_keep};
use super::*;
use crate::rng::Rng;

fn tiny() -> Value {
    json!({"name": "tiny", "nodes": [
        {"name": "input", "op": "input", "shape": [3, 8, 8]},
        {"name": "conv1", "op": "conv2d", "out_channels": 8, "kernel": [3, 3],
         "padding": {"top": 1, "bottom": 1, "left": 1, "right": 1}},
        {"name": "bn1", "op": "batch_norm"},
        {"name": "relu1", "op": "activation", "function": "relu"},
        {"name": "max", "op": "max_pool", "kernel": [2, 2], "stride": [2, 2]},
        {"name": "avg", "op": "avg_pool", "kernel": [1, 1], "stride": [1, 1]},
        {"name": "sub", "op": "subsample", "stride": [1, 1]},
        {"name": "pad", "op": "pad_channels", "before": 0, "after": 0},
        {"name": "add", "op": "add", "inputs": ["max", "pad"]},
        {"name": "gate", "op": "global_avg_pool"},
        {"name": "scale", "op": "scale", "inputs": ["add", "gate"]},
        {"name": "concat", "op": "concat", "inputs": ["scale", "add"]},
        {"name": "pool", "op": "global_avg_pool"},
        {"name": "flatten", "op": "flatten"},
        {"name": "dropout", "op": "dropout", "p": 0.5},
        {"name": "fc", "op": "linear", "out_features": 10}]})
}

/// `tiny` with one change, and the error it must give.
fn rejected(change: impl FnOnce(&mut Value)) -> String {
    let mut value = tiny();
    change(&mut value);
    Graph::from_json(&value).expect_err("the change must be refused").to_string()
}

#[test]
fn json_uses_every_operation_and_survives_text() {
    let graph = Graph::from_json(&tiny()).unwrap();
    let text = graph.to_json().to_string();
    assert_eq!(Graph::from_json(&serde_json::from_str(&text).unwrap()).unwrap(), graph);
    assert_eq!(graph.shape(graph.output()).dims(), [10]);
}

#[test]
fn json_refuses_unknown_fields_in_every_operation() {
    let count = tiny()["nodes"].as_array().unwrap().len();
    for index in 0..count {
        let error = rejected(|v| v["nodes"][index]["surprise"] = json!(1));
        assert!(error.contains("surprise"), "node {index}: {error}");
    }
    let error = rejected(|v| v["nodes"][1]["padding"]["front"] = json!(1));
    assert!(error.contains("front"), "{error}");
    let error = rejected(|v| v["version"] = json!(1));
    assert!(error.contains("version"), "{error}");
}

#[test]
fn json_refuses_missing_fields() {
    let nodes = tiny()["nodes"].as_array().unwrap().clone();
    for (index, node) in nodes.iter().enumerate() {
        for key in ["name", "op", "shape", "out_channels", "kernel", "function", "before", "after", "out_features", "p"]
        {
            if node.get(key).is_some() {
                let error = rejected(|v| {
                    v["nodes"][index].as_object_mut().unwrap().remove(key);
                });
                assert!(error.contains(key), "{node} without {key}: {error}");
            }
        }
    }
    assert!(rejected(|v| drop(v.as_object_mut().unwrap().remove("nodes"))).contains("nodes"));
}

#[test]
fn json_refuses_broken_structure() {
    assert!(rejected(|v| v["nodes"][2]["op"] = json!("layer_norm")).contains("layer_norm"));
    assert!(rejected(|v| v["nodes"][3]["function"] = json!("gelu")).contains("gelu"));
    assert!(rejected(|v| v["nodes"][8]["inputs"] = json!(["max", "nowhere"])).contains("nowhere"));
    assert!(rejected(|v| v["nodes"][8]["inputs"] = json!(["max", "fc"])).contains("not an earlier node"));
    assert!(rejected(|v| v["nodes"][8]["inputs"] = json!(["max", "add"])).contains("not an earlier node"));
    assert!(rejected(|v| v["nodes"][8]["inputs"] = json!(["max"])).contains("at least 2 inputs"));
    assert!(rejected(|v| v["nodes"][8]["inputs"] = json!("max")).contains("list of node names"));
    assert!(rejected(|v| v["nodes"][2]["name"] = json!("conv1")).contains("already used"));
    assert!(rejected(|v| v["nodes"][2]["name"] = json!("")).contains("empty"));
    assert!(rejected(|v| v["nodes"][2]["name"] = json!("input")).contains("already used"));
    assert!(rejected(|v| v["nodes"][0]["name"] = json!("image")).contains("image"));
    assert!(rejected(|v| v["nodes"][0]["inputs"] = json!(["max"])).contains("without inputs"));
    assert!(
        rejected(|v| v["nodes"][2] = json!({"name": "i", "op": "input", "shape": [3, 8, 8]})).contains("first node")
    );
    assert!(rejected(|v| drop(v["nodes"].as_array_mut().unwrap().pop())).contains("linear classifier"));
    assert!(rejected(|v| v["nodes"] = json!([])).contains("node 0"));
    assert!(rejected(|v| v["nodes"][8]["inputs"] = json!(["max", "max"])).contains("never used"));
    assert!(rejected(|v| *v = json!([1])).contains("object"));
}

#[test]
fn json_refuses_zero_and_negative_sizes() {
    for (index, key, value) in [
        (0, "shape", json!([3, 0, 8])),
        (0, "shape", json!([0, 8, 8])),
        (1, "out_channels", json!(0)),
        (1, "kernel", json!([0, 3])),
        (1, "stride", json!([0, 1])),
        (1, "dilation", json!([1, 0])),
        (1, "groups", json!(0)),
        (1, "groups", json!(2)),
        (1, "out_channels", json!(-1)),
        (2, "eps", json!(0.0)),
        (4, "stride", json!([0, 2])),
        (4, "kernel", json!([9, 9])),
        (4, "padding", json!({"top": 2, "bottom": 0, "left": 0, "right": 0})),
        (6, "stride", json!([0, 1])),
        (14, "p", json!(1.0)),
        (15, "out_features", json!(0)),
    ] {
        let error = rejected(|v| v["nodes"][index][key] = value.clone());
        assert!(error.contains("graph"), "{key} = {value}: {error}");
    }
}

/// Every size of every operation set to enormous numbers: an error or a valid graph, never an overflow.
#[test]
fn huge_sizes_do_not_overflow() {
    let huge = [json!(1_000_000_000_000_000_000_u64), json!(u64::MAX), json!(1_u64 << 32), json!(1_u64 << 24)];
    let nodes = tiny()["nodes"].as_array().unwrap().clone();
    for number in &huge {
        let pair = json!([number, number]);
        let padding = json!({"top": number, "bottom": number, "left": number, "right": number});
        for index in 0..nodes.len() {
            for (key, value) in [
                ("shape", json!([number, number, number])),
                ("shape", json!([number, 1, 1])),
                ("out_channels", number.clone()),
                ("groups", number.clone()),
                ("kernel", pair.clone()),
                ("stride", pair.clone()),
                ("dilation", pair.clone()),
                ("padding", padding.clone()),
                ("before", number.clone()),
                ("after", number.clone()),
                ("out_features", number.clone()),
            ] {
                let mut changed = tiny();
                changed["nodes"][index][key] = value.clone();
                if let Ok(graph) = Graph::from_json(&changed) {
                    assert!(graph.cost().params < u64::MAX, "{key} = {value}");
                }
            }
        }
        let mut changed = tiny();
        changed["nodes"][1]["kernel"] = pair.clone();
        changed["nodes"][1]["padding"] = padding.clone();
        changed["nodes"][1]["stride"] = pair.clone();
        assert!(Graph::from_json(&changed).is_err(), "a kernel of {number} squared");
    }
}

#[test]
fn builder_keeps_the_first_mistake() {
    let mut b = GraphBuilder::new("broken", [3, 8, 8]);
    let x = b.conv("bad", Conv2d::new(4, 9), b.input());
    let x = b.batch_norm("bn", 1e-5, x);
    assert_eq!((b.channels(x), b.spatial(x)), (0, [0, 0]));
    b.classifier("fc", 2, x);
    let error = b.finish().unwrap_err().to_string();
    assert!(error.contains("node bad (conv2d)") && error.contains("does not fit"), "{error}");
}

#[test]
fn shape_rules_match_pytorch() {
    // Expected sizes from torch.nn.functional on the same attributes.
    let conv = Conv2d { padding: Padding { top: 0, bottom: 1, left: 2, right: 0 }, ..Conv2d::new(1, 3).stride(2) };
    assert_eq!(conv.output_size([8, 7]), Some([4, 4]));
    assert_eq!(Conv2d { dilation: [2, 3], ..Conv2d::new(1, 3) }.output_size([5, 7]), Some([1, 1]));
    assert_eq!(Conv2d { dilation: [2, 3], ..Conv2d::new(1, 3) }.output_size([4, 7]), None);
    assert_eq!(Pool2d::new(3, 2).padding(1).output_size([112, 113]), Some([56, 57]));
    assert_eq!(Pool2d::new(2, 2).output_size([5, 1]), None);
}

#[test]
fn resized_keeps_parameters_or_refuses() {
    let graph = Graph::from_json(&tiny()).unwrap();
    let large = graph.resized(20, 30).unwrap();
    assert_eq!(large.input_shape(), [3, 20, 30]);
    assert_eq!(large.params().collect::<Vec<_>>(), graph.params().collect::<Vec<_>>());
    assert_eq!(large.resized(8, 8).unwrap(), graph);
    assert!(graph.resized(1, 8).is_err(), "max pooling does not fit one row");

    let mut b = GraphBuilder::new("flat", [1, 4, 4]);
    let flat = b.node("flatten", Op::Flatten, &[0]);
    b.node("fc", Op::Linear { out_features: 2, bias: true }, &[flat]);
    let error = b.finish().unwrap().resized(5, 4).unwrap_err().to_string();
    assert!(error.contains("depend on the input size"), "{error}");
}

#[test]
fn depthwise_input_position_is_always_zero() {
    let mut b = GraphBuilder::new("dw", [3, 4, 4]);
    let x = b.conv("pw", Conv2d::new(4, 1), 0);
    let x = b.conv("dw", Conv2d::new(4, 3).groups(4), x);
    b.classifier("fc", 2, x);
    let graph = b.finish().unwrap();
    let groups = ChannelGroups::new(&graph, Scope::Inner);
    let compaction = graph.compact(&groups, &[false, true, false, true]).unwrap();
    assert_eq!(compaction.kept[2], [1, 3]);
    assert_eq!(compaction.kept_inputs(&graph, 2), [0]);
    assert_eq!(compaction.kept_inputs(&graph, 5), [1, 3]);
    assert_eq!(compaction.graph.nodes()[2].op, Op::Conv2d(Conv2d::new(2, 3).groups(2)));
}

#[test]
fn a_gate_that_does_not_keep_zero_fixes_its_channels_only_where_it_is_mixed() {
    let mut b = GraphBuilder::new("sigmoid", [1, 4, 4]);
    let x = b.conv("a", Conv2d::new(4, 1), 0);
    let x = b.activation("sigmoid", Activation::Sigmoid, x);
    let x = b.conv("b", Conv2d::new(4, 1), x);
    let x = b.activation("sigmoid2", Activation::Sigmoid, x);
    let x = b.batch_norm("bn", 1e-5, x);
    b.classifier("fc", 2, x);
    let groups = ChannelGroups::new(&b.finish().unwrap(), Scope::All);
    let fixed: Vec<(&str, bool)> = groups.groups().iter().map(|g| (g.name.as_str(), g.fixed.is_some())).collect();
    assert_eq!(fixed, [("a", true), ("b", false), ("fc", true)]);
}

/// Each producer channel in one group, each channel of each node in at most one entry, numbering without gaps.
pub(crate) fn assert_groups_partition(graph: &Graph, groups: &ChannelGroups) {
    let mut width_of = vec![0; graph.nodes().len()];
    let mut next = 0;
    for group in groups.groups() {
        assert!(group.width > 0 && !group.producers.is_empty());
        for &producer in &group.producers {
            assert!(graph.produces(producer), "{}", graph.nodes()[producer].name);
            assert!(group.nodes.contains(&producer));
        }
        if group.fixed.is_none() {
            assert_eq!(group.entries, next..next + group.width, "{}", group.name);
            next += group.width;
        } else {
            assert!(group.entries.is_empty());
        }
        // What a node carries of a prunable group, it carries in this group only.
        for &id in &group.nodes {
            let inside = |e: &&u32| group.entries.contains(&(**e as usize));
            let carried = groups.node_entries(id).iter().filter(inside).count();
            assert!(group.fixed.is_some() || carried > 0);
            width_of[id] += carried;
        }
    }
    assert_eq!(next, groups.len());
    let one = groups.len() as u32;
    for (id, width) in width_of.into_iter().enumerate() {
        let entries = groups.node_entries(id);
        assert_eq!(entries.len(), graph.shape(id).channels());
        assert_eq!(entries.iter().filter(|&&e| e != one).count(), width, "{}", graph.nodes()[id].name);
        assert!(entries.iter().all(|&e| e <= one));
    }
    for id in [0, graph.output()] {
        assert!(groups.node_entries(id).iter().all(|&e| e == one), "image and logits stay");
    }
}

fn loses_an_entry(groups: &ChannelGroups, keep: &Keep, id: usize) -> bool {
    groups.node_entries(id).iter().any(|&e| keep.get(e as usize) == Some(&false))
}

/// Widths after compaction are the kept entries; cost falls when something was removed.
pub(crate) fn assert_compaction(graph: &Graph, groups: &ChannelGroups, keep: &Keep) {
    let compaction = graph.compact(groups, keep).unwrap();
    for id in 0..graph.nodes().len() {
        let entries = groups.node_entries(id);
        let expected = entries.iter().filter(|&&e| keep.get(e as usize) != Some(&false)).count();
        assert_eq!(compaction.graph.shape(id).channels(), expected, "{}", graph.nodes()[id].name);
        assert_eq!(compaction.graph.shape(id).spatial(), graph.shape(id).spatial());
        assert!(compaction.kept[id].is_sorted() && compaction.kept[id].len() == expected);
        if let Some(&input) = graph.nodes()[id].inputs.first()
            && matches!(graph.nodes()[id].op, Op::Conv2d(_) | Op::Linear { .. })
        {
            let weight = &compaction.graph.node_params(id)[0];
            assert_eq!(weight.shape[0], expected);
            assert_eq!(weight.shape[1], compaction.kept_inputs(graph, id).len(), "input {input} of {}", weight.name);
        }
    }
    assert_eq!(compaction.graph.num_classes(), graph.num_classes());
    let (before, after) = (graph.cost(), compaction.graph.cost());
    // Every node that becomes narrower belongs to a group that lost an entry.
    let shrunk = groups.prunable().filter(|g| g.entries.clone().any(|e| !keep[e])).flat_map(|g| &g.nodes);
    let shrunk: std::collections::BTreeSet<usize> = shrunk.copied().collect();
    for id in 0..graph.nodes().len() {
        let narrower = compaction.graph.shape(id).channels() < graph.shape(id).channels();
        assert_eq!(narrower, loses_an_entry(groups, keep, id), "{}", graph.nodes()[id].name);
        assert!(!narrower || shrunk.contains(&id), "{} is in no group that shrinks", graph.nodes()[id].name);
    }
    if keep.contains(&false) {
        assert!(after.params < before.params && after.macs < before.macs && after.bytes < before.bytes);
    } else {
        assert_eq!(&compaction.graph, graph);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_graphs_survive_json(seed in any::<u64>()) {
        let graph = random_graph(seed);
        let text = graph.to_json().to_string();
        prop_assert_eq!(&Graph::from_json(&serde_json::from_str(&text).unwrap()).unwrap(), &graph);
        prop_assert_eq!(Graph::from_json(&graph.to_json()).unwrap().to_json().to_string(), text);
    }

    #[test]
    fn random_graphs_partition_and_compact(seed in any::<u64>(), fraction in 0.0f32..1.0, all in any::<bool>()) {
        let graph = random_graph(seed);
        let groups = ChannelGroups::new(&graph, if all { Scope::All } else { Scope::Inner });
        assert_groups_partition(&graph, &groups);
        let keep = random_keep(&graph, &groups, fraction, &mut Rng::new(seed));
        assert_compaction(&graph, &groups, &keep);
        assert_compaction(&graph, &groups, &vec![true; groups.len()]);
    }

    #[test]
    fn compacting_twice_is_compacting_once(seed in any::<u64>(), fraction in 0.2f32..1.0) {
        let graph = random_graph(seed);
        let groups = ChannelGroups::new(&graph, Scope::All);
        let keep = random_keep(&graph, &groups, fraction, &mut Rng::new(seed));
        let once = graph.compact(&groups, &keep).unwrap().graph;
        let again = ChannelGroups::new(&once, Scope::All);
        let twice = once.compact(&again, &vec![true; again.len()]).unwrap().graph;
        prop_assert_eq!(twice, once);
    }

    #[test]
    fn a_layer_without_channels_is_an_error(seed in any::<u64>()) {
        let graph = random_graph(seed);
        let groups = ChannelGroups::new(&graph, Scope::Inner);
        for group in groups.prunable() {
            let mut keep = vec![true; groups.len()];
            keep[group.entries.clone()].fill(false);
            let emptied = (0..graph.nodes().len())
                .any(|id| groups.node_entries(id).iter().all(|&e| keep.get(e as usize) == Some(&false)));
            match graph.compact(&groups, &keep) {
                Ok(_) => prop_assert!(!emptied),
                Err(error) => prop_assert!(emptied && error.to_string().contains("last channel"), "{error}"),
            }
        }
        prop_assert!(graph.compact(&groups, &vec![true; groups.len() + 1]).is_err());
    }
}
