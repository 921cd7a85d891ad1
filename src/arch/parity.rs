//! Parity with torchvision and timm: parameter names and shapes, logits.

use super::{ArchOptions, build, default_input, names};
use crate::graph::Graph;

fn options(name: &str) -> ArchOptions {
    ArchOptions { num_classes: 10, input: default_input(name).unwrap() }
}

/// `(name, [(parameter, shape)])` as `generate.py` wrote them.
fn reference_parameters() -> Vec<(String, Vec<(String, Vec<usize>)>)> {
    let mut networks: Vec<(String, Vec<(String, Vec<usize>)>)> = Vec::new();
    for line in include_str!("../../tests/fixtures/arch/parameters.txt").lines() {
        let (left, right) = line.split_once(' ').unwrap();
        match left {
            "#" => networks.push((right.to_string(), Vec::new())),
            name => {
                let shape = right.split('x').map(|d| d.parse().unwrap()).collect();
                networks.last_mut().unwrap().1.push((name.to_string(), shape));
            }
        }
    }
    networks
}

#[test]
fn parameters_have_the_original_names_shapes_and_order() {
    let reference = reference_parameters();
    let mut covered: Vec<&str> = reference.iter().map(|(name, _)| name.as_str()).collect();
    let mut known = names().to_vec();
    covered.sort_unstable();
    known.sort_unstable();
    assert_eq!(covered, known);
    for (name, expected) in reference {
        let graph = build(&name, &options(&name)).unwrap();
        let got: Vec<(String, Vec<usize>)> = graph.params().map(|p| (p.name, p.shape)).collect();
        for (got, expected) in got.iter().zip(&expected) {
            assert_eq!(got, expected, "{name}");
        }
        assert_eq!(got.len(), expected.len(), "{name}");
    }
}

/// Multiply-accumulates and parameters at 224×224 with 1000 classes.
fn cost(name: &str) -> (u64, u64) {
    let graph: Graph = build(name, &ArchOptions { num_classes: 1000, input: [3, 224, 224] }).unwrap();
    (graph.cost().macs, graph.cost().params)
}

#[test]
fn costs_match_the_published_ones() {
    // Parameters as torchvision and timm print them; MACs as in torchvision's GFLOPS column.
    for (name, params, gigamacs) in [
        ("resnet18", 11_689_512, 1.81),
        ("resnet34", 21_797_672, 3.66),
        ("resnet50", 25_557_032, 4.09),
        ("resnet101", 44_549_160, 7.80),
        ("vgg11_bn", 132_868_840, 7.61),
        ("vgg16_bn", 138_365_992, 15.47),
        ("densenet121", 7_978_856, 2.83),
        ("mobilenetv2_100", 3_504_872, 0.30),
        ("mobilenetv3_large_100", 5_483_032, 0.22),
        ("efficientnet_lite0", 4_652_008, 0.39),
    ] {
        let (macs, got) = cost(name);
        assert_eq!(got, params, "{name}");
        assert_eq!(format!("{:.2}", macs as f64 / 1e9), format!("{gigamacs:.2}"), "{name}: {macs}");
    }
}
