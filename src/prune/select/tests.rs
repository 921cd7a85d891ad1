//! The projection: within the budget and the limits, idempotent, nearest.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::arch::{self, ArchOptions};
use crate::graph::testing::random_graph;
use crate::graph::{Conv2d, GraphBuilder, Scope};
use crate::prune::latency::{TimedLayer, TimedNetwork};
use crate::rng::Rng;

fn network(name: &str) -> Graph {
    arch::build(name, &ArchOptions { num_classes: 10, input: arch::default_input(name).unwrap() }).unwrap()
}

/// Convolutions of the given widths in a row; each channel is one entry.
fn chain(widths: &[usize]) -> Graph {
    let mut b = GraphBuilder::new("chain", [1, 4, 4]);
    let mut x = 0;
    for (index, width) in widths.iter().enumerate() {
        x = b.conv(&format!("conv{index}"), Conv2d::new(*width, 1), x);
    }
    b.classifier("fc", 2, x);
    b.finish().unwrap()
}

fn random_scores(n: usize, rng: &mut Rng) -> Vec<f32> {
    (0..n).map(|_| rng.range(-1.0, 1.0)).collect()
}

fn free(min_keep: f64) -> Limits {
    Limits { min_keep, ..Limits::default() }
}

fn as_scores(keep: &[bool]) -> Vec<f32> {
    keep.iter().map(|k| f32::from(u8::from(*k))).collect()
}

/// What must hold of every selection.
fn assert_within(selector: &Selector, keep: &[bool], limits: &Limits, progress: f64) {
    assert!(selector.measure(keep).unwrap() <= selector.budget.limit(selector.full(), progress));
    for group in selector.groups.prunable() {
        let kept = keep[group.entries.clone()].iter().filter(|k| **k).count();
        let cap = 1.0 - limits.caps.get(&group.name).copied().unwrap_or(1.0);
        let least = (group.width as f64 * limits.min_keep.max(cap)).max(1.0);
        assert!(kept as f64 >= least - 1e-6, "{}: {kept} of {}", group.name, group.width);
        assert!(kept == group.width || kept % limits.round_to == 0, "{}: {kept}", group.name);
    }
}

#[test]
fn budgets_are_met_on_known_networks() {
    let cap = |name: &str| BTreeMap::from([(name.to_string(), 0.25)]);
    for (name, scope, capped) in [
        ("cifar_resnet20", Scope::Inner, "layer2.1.conv1"),
        ("cifar_resnet20", Scope::All, "layer2.1.conv1"),
        ("lenet_bn", Scope::Inner, ""),
        ("mobilenetv2_100", Scope::Inner, "blocks.1.0.conv_pw"),
    ] {
        let graph = network(name);
        let groups = ChannelGroups::new(&graph, scope);
        let scores = random_scores(groups.len(), &mut Rng::new(1));
        let caps = if groups.prunable().any(|g| g.name == capped) { cap(capped) } else { BTreeMap::new() };
        for limits in [free(0.1), Limits { min_keep: 0.05, round_to: 4, caps }] {
            for budget in ["channels=0.5", "params=0.3", "macs=0.3", "bytes=0.25", "channels=0"] {
                let budget: Budget = budget.parse().unwrap();
                let selector = Selector::new(&graph, &groups, budget, &limits).unwrap();
                let mut last = selector.full();
                for progress in [0.0, 0.3, 0.7, 1.0] {
                    let keep = selector.select(&scores, progress).unwrap();
                    assert_within(&selector, &keep, &limits, progress);
                    let measured = selector.measure(&keep).unwrap();
                    assert!(measured <= last, "{name} {budget} at {progress}");
                    last = measured;
                    if progress == 0.0 {
                        assert!(keep.iter().all(|k| *k), "{name} {budget}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_measure_is_what_the_compacted_graph_costs() {
    for name in ["cifar_resnet20", "mobilenetv2_100", "densenet121"] {
        let graph = network(name);
        let groups = ChannelGroups::new(&graph, Scope::All);
        let keep = crate::graph::testing::random_keep(&graph, &groups, 0.6, &mut Rng::new(3));
        let cost = graph.compact(&groups, &keep).unwrap().graph.cost();
        let of = |measure: Measure| measure.of(&graph, &groups, &keep).unwrap();
        assert_eq!((of(Measure::Params), of(Measure::Macs), of(Measure::Bytes)), (cost.params, cost.macs, cost.bytes));
        let channels = |g: &Graph| -> usize {
            (0..g.nodes().len()).filter(|&id| g.produces(id) && id != g.output()).map(|id| g.shape(id).channels()).sum()
        };
        let removed = channels(&graph) - channels(&graph.compact(&groups, &keep).unwrap().graph);
        assert_eq!(groups.total_channels() - of(Measure::Channels) as usize, removed, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// With channels of one cost the greedy choice is the best one: among all selections of as many channels as the
    /// budget allows that respect the floors, it has the largest sum of scores.
    #[test]
    fn the_nearest_selection_is_found(
        seed in any::<u64>(), split in 1usize..7, fraction in 0.0f64..0.7, min_keep in 0.0f64..0.6,
    ) {
        let graph = chain(&[split, 8 - split]);
        let groups = ChannelGroups::new(&graph, Scope::Inner);
        let scores = random_scores(8, &mut Rng::new(seed));
        let Ok(selector) = Selector::new(&graph, &groups, Budget::channels(fraction), &free(min_keep)) else {
            return Ok(());
        };
        let keep = selector.select(&scores, 1.0).unwrap();
        let limit = selector.budget.limit(8, 1.0) as u32;
        prop_assert_eq!(keep.iter().filter(|k| **k).count() as u32, limit);
        let sum = |keep: &[bool]| keep.iter().zip(&scores).filter(|p| *p.0).map(|p| f64::from(*p.1)).sum::<f64>();
        let floor = |width: usize| ((width as f64 * min_keep - 1e-9).ceil() as u32).max(1);
        let best = (0u32..256)
            .filter(|bits| bits.count_ones() == limit)
            .filter(|bits| (bits & ((1 << split) - 1)).count_ones() >= floor(split))
            .filter(|bits| (bits >> split).count_ones() >= floor(8 - split))
            .map(|bits| sum(&(0..8).map(|i| bits >> i & 1 == 1).collect::<Vec<_>>()))
            .fold(f64::NEG_INFINITY, f64::max);
        prop_assert!((sum(&keep) - best).abs() < 1e-6, "sum {} instead of {best}", sum(&keep));
    }

    #[test]
    fn projecting_twice_is_projecting_once(seed in any::<u64>(), fraction in 0.0f64..0.7, all in any::<bool>()) {
        let graph = random_graph(seed);
        let groups = ChannelGroups::new(&graph, if all { Scope::All } else { Scope::Inner });
        let scores = random_scores(groups.len(), &mut Rng::new(seed));
        let Ok(selector) = Selector::new(&graph, &groups, Budget::channels(fraction), &free(0.1)) else {
            return Ok(());
        };
        // Entries that stand for one channel each: nothing is left of the budget that another choice could use.
        prop_assume!(groups.conv_channels().iter().all(|n| *n == 1));
        let keep = selector.select(&scores, 1.0).unwrap();
        prop_assert_eq!(selector.select(&as_scores(&keep), 1.0).unwrap(), keep);
    }

    #[test]
    fn random_networks_stay_within_every_budget(
        seed in any::<u64>(), fraction in 0.0f64..0.6, measure in 0usize..4, round_to in 1usize..4,
    ) {
        let graph = random_graph(seed);
        let groups = ChannelGroups::new(&graph, Scope::All);
        let mut rng = Rng::new(seed);
        let limits = Limits { min_keep: 0.1, round_to, caps: BTreeMap::new() };
        let measure = [Measure::Channels, Measure::Params, Measure::Macs, Measure::Bytes][measure];
        let budget = Budget { measure, amount: crate::prune::budget::Amount::Removed(fraction) };
        let Ok(selector) = Selector::new(&graph, &groups, budget, &limits) else { return Ok(()) };
        let scores = random_scores(groups.len(), &mut rng);
        let mut wider = vec![true; groups.len()];
        for progress in [0.0, 0.4, 0.8, 1.0] {
            let keep = selector.select(&scores, progress).unwrap();
            assert_within(&selector, &keep, &limits, progress);
            prop_assert!(keep.iter().zip(&wider).all(|(k, w)| *w || !*k), "what went comes back at {progress}");
            wider = keep;
        }
    }
}

/// Times like those of a device, for the widths of `graph` and narrower ones.
fn latency_model(graph: &Graph, groups: &ChannelGroups) -> LatencyModel {
    let mut rng = Rng::new(8);
    let mut timed = |fraction: f32| {
        let mut keep = vec![true; groups.len()];
        for group in groups.prunable() {
            let kept = (fraction * rng.range(0.5, 1.0) * group.width as f32).ceil() as usize;
            keep[group.entries.clone()].iter_mut().skip(kept.max(1)).for_each(|keep| *keep = false);
        }
        let graph = graph.compact(groups, &keep).unwrap().graph;
        let layer = |id: usize| {
            let inputs = graph.nodes()[id].inputs.first().map_or(0, |&i| graph.shape(i).channels());
            let ns = 100 + graph.node_cost(id).macs / 10;
            TimedLayer { layer: graph.nodes()[id].name.clone(), inputs, outputs: graph.shape(id).channels(), ns }
        };
        let layers: Vec<TimedLayer> = (0..graph.nodes().len()).map(layer).collect();
        TimedNetwork { ns: layers.iter().map(|l| l.ns).sum(), layers }
    };
    let networks: Vec<TimedNetwork> = [2.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2].map(&mut timed).into();
    LatencyModel::fit(graph, &networks, [8, 16]).unwrap()
}

proptest! {
    #[test]
    fn predictions_stay_within_every_budget_of_latency(
        seed in any::<u64>(), fraction in 0.0f64..0.6, round_to in 1usize..4,
    ) {
        let graph = random_graph(seed);
        let groups = ChannelGroups::new(&graph, Scope::All);
        let model = latency_model(&graph, &groups);
        let limits = Limits { min_keep: 0.1, round_to, caps: BTreeMap::new() };
        let budget = Budget { measure: Measure::Latency, amount: crate::prune::Amount::Removed(fraction) };
        let Ok(selector) = Selector::with_latency(&graph, &groups, budget, &limits, Some(model.clone())) else {
            return Ok(());
        };
        for progress in [0.0, 0.4, 0.8, 1.0] {
            let keep = selector.select(&random_scores(groups.len(), &mut Rng::new(seed)), progress).unwrap();
            assert_within(&selector, &keep, &limits, progress);
            let compacted = graph.compact(&groups, &keep).unwrap().graph;
            prop_assert_eq!(selector.measure(&keep).unwrap(), model.nanoseconds(&compacted));
        }
    }
}

#[test]
fn a_corrected_latency_removes_more_or_less() {
    let graph = network("efficientnet_lite0");
    let groups = ChannelGroups::new(&graph, Scope::Inner);
    let model = latency_model(&graph, &groups);
    let budget: Budget = "latency=0.5".parse().unwrap();
    let limits = Limits::default();
    let mut selector = Selector::with_latency(&graph, &groups, budget, &limits, Some(model)).unwrap();
    let scores = random_scores(groups.len(), &mut Rng::new(5));
    let count = |selector: &Selector| selector.select(&scores, 1.0).unwrap().iter().filter(|k| **k).count();
    let (goal, as_predicted) = (selector.limit(1.0), count(&selector));
    selector.correct_latency(1.2);
    let slower = count(&selector);
    selector.correct_latency(0.8 / 1.2);
    let faster = count(&selector);
    assert!(slower < as_predicted && as_predicted < faster, "{slower} {as_predicted} {faster}");
    assert_eq!(selector.limit(1.0), goal, "the goal stays");
}

#[test]
fn a_budget_of_latency_needs_times_and_tells_what_is_in_reach() {
    let graph = network("cifar_resnet20");
    let groups = ChannelGroups::new(&graph, Scope::Inner);
    let budget: Budget = "latency=1us".parse().unwrap();
    let message = Selector::new(&graph, &groups, budget, &free(0.1)).unwrap_err().to_string();
    assert!(message.contains("expected times of this device"), "{message}");
    let model = Some(latency_model(&graph, &groups));
    let message = Selector::with_latency(&graph, &groups, budget, &free(0.1), model).unwrap_err().to_string();
    assert!(message.contains("at most 1.0 us of") && message.contains("leave at least"), "{message}");
}

#[test]
fn close_scores_do_not_break_floors_or_rounding() {
    // Differences that vanish beside the lowest score: the two rankings must still agree.
    let graph = chain(&[16, 16]);
    let groups = ChannelGroups::new(&graph, Scope::Inner);
    let mut scores: Vec<f32> = (0..32).map(|i| 1e-9 * i as f32).collect();
    scores[31] = -1.0;
    let limits = Limits { min_keep: 0.25, round_to: 4, caps: BTreeMap::new() };
    for fraction in [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7] {
        let selector = Selector::new(&graph, &groups, Budget::channels(fraction), &limits).unwrap();
        assert_within(&selector, &selector.select(&scores, 1.0).unwrap(), &limits, 1.0);
    }
}

#[test]
fn ties_go_to_the_earlier_entry() {
    let graph = chain(&[4, 4]);
    let groups = ChannelGroups::new(&graph, Scope::Inner);
    let selector = Selector::new(&graph, &groups, Budget::channels(0.5), &free(0.25)).unwrap();
    let keep = selector.select(&[0.5; 8], 1.0).unwrap();
    assert_eq!(keep, [true, true, true, false, true, false, false, false]);
}

#[test]
fn a_budget_out_of_reach_says_how_far_it_can_go() {
    let graph = network("cifar_resnet20");
    let groups = ChannelGroups::new(&graph, Scope::Inner);
    let refused = |budget: &str, limits: &Limits| match Selector::new(&graph, &groups, budget.parse().unwrap(), limits)
    {
        Err(Error::Config(message)) => message,
        other => panic!("{budget}: {other:?}"),
    };
    let message = refused("channels=0.95", &free(0.1));
    let total = groups.total_channels();
    assert!(message.contains(&format!("of {total} channels")) && message.contains("leave at least"), "{message}");
    assert!(refused("params=1k", &free(0.1)).contains("params"));
    assert!(refused("channels=0.6", &free(0.5)).contains("min_keep"));
    let capped = Limits { caps: BTreeMap::from([("conv9".to_string(), 0.5)]), ..free(0.1) };
    let message = refused("channels=0.5", &capped);
    assert!(message.contains("conv9") && message.contains("layer1.0.conv1"), "{message}");
}

#[test]
fn limits_out_of_range_are_refused() {
    let graph = chain(&[4]);
    let groups = ChannelGroups::new(&graph, Scope::Inner);
    let caps = |cap| BTreeMap::from([("conv0".to_string(), cap)]);
    for (limits, name) in [
        (free(-0.1), "min_keep"),
        (free(1.1), "min_keep"),
        (free(f64::NAN), "min_keep"),
        (Limits { round_to: 0, ..free(0.1) }, "round_to"),
        (Limits { caps: caps(1.5), ..free(0.1) }, "conv0"),
        (Limits { caps: caps(f64::NAN), ..free(0.1) }, "conv0"),
    ] {
        let error = Selector::new(&graph, &groups, Budget::channels(0.1), &limits).unwrap_err();
        assert!(matches!(&error, Error::Config(m) if m.contains(name)), "{error}");
    }
}

#[test]
fn scores_that_are_no_numbers_are_refused() {
    let graph = chain(&[4, 4]);
    let groups = ChannelGroups::new(&graph, Scope::Inner);
    let selector = Selector::new(&graph, &groups, Budget::channels(0.5), &free(0.1)).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut scores = vec![0.5; 8];
        scores[3] = bad;
        assert!(matches!(selector.select(&scores, 1.0), Err(Error::Numeric(_))));
    }
    assert!(matches!(selector.select(&[0.5; 7], 1.0), Err(Error::Shape(_))));
}

#[test]
fn selecting_in_a_large_network_is_fast() {
    for name in ["resnet50", "efficientnet_lite0"] {
        let graph = network(name);
        for scope in [Scope::Inner, Scope::All] {
            let groups = ChannelGroups::new(&graph, scope);
            let selector = Selector::new(&graph, &groups, "macs=0.4".parse().unwrap(), &free(0.1)).unwrap();
            let scores = random_scores(groups.len(), &mut Rng::new(2));
            let quickest = (0..3).map(|_| {
                let start = Instant::now();
                selector.select(&scores, 1.0).unwrap();
                start.elapsed()
            });
            let quickest = quickest.min().unwrap();
            println!("{name} {scope:?}: {} entries, {quickest:?}", groups.len());
            // Generous, since tests share the machine: a search that is not logarithmic takes seconds.
            assert!(quickest < Duration::from_millis(500), "{name} {scope:?}: {quickest:?}");
        }
    }
}

/// Removes in three rounds by random scores: what is left, built round by round, is what the whole network's mask says. False
/// if groups became others on the way.
fn assert_rounds(graph: &Graph, scope: Scope, budget: &str, limits: &Limits, rng: &mut Rng) -> bool {
    let groups = ChannelGroups::new(graph, scope);
    let Ok(selector) = Selector::new(graph, &groups, budget.parse().unwrap(), limits) else { return true };
    let (mut left, mut here, mut whole) = (graph.clone(), groups.clone(), vec![true; groups.len()]);
    for progress in [0.4, 0.8, 1.0] {
        let round = selector.within(&left, &here).unwrap();
        let keep = round.select(&random_scores(here.len(), rng), progress).unwrap();
        let mut kept = keep.iter();
        for entry in whole.iter_mut().filter(|entry| **entry) {
            *entry = *kept.next().unwrap();
        }
        assert!(selector.measure(&whole).unwrap() <= selector.limit(progress), "{budget}");
        assert_eq!(round.measure(&keep).unwrap(), selector.measure(&whole).unwrap(), "{budget}");
        left = left.compact(&here, &keep).unwrap().graph;
        assert_eq!(left, graph.compact(&groups, &whole).unwrap().graph, "{budget}");
        here = ChannelGroups::new(&left, scope);
        if !selector.covers(&here, here.len()) {
            return false;
        }
        assert_eq!(here.len(), whole.iter().filter(|kept| **kept).count(), "{budget}");
    }
    assert_within(&selector, &whole, limits, 1.0);
    true
}

#[test]
fn rounds_meet_the_same_budget_within_the_same_limits() {
    let mut rng = Rng::new(2);
    for name in ["cifar_resnet20", "lenet_bn", "mobilenetv2_100", "mobilenetv3_large_100", "densenet121"] {
        let graph = network(name);
        for scope in [Scope::Inner, Scope::All] {
            for (budget, round_to) in [("channels=0.6", 1), ("channels=0.6", 4), ("params=0.3", 1), ("macs=0.4", 1)] {
                let limits = Limits { round_to, ..free(0.1) };
                assert!(assert_rounds(&graph, scope, budget, &limits, &mut rng), "{name} {budget}");
            }
        }
    }
    let mut whole = 0;
    for seed in 0..60 {
        for scope in [Scope::Inner, Scope::All] {
            whole += usize::from(assert_rounds(&random_graph(seed), scope, "channels=0.5", &free(0.1), &mut rng));
        }
    }
    assert!(whole > 90, "groups became others in {} of 120", 120 - whole);
}

#[test]
fn a_round_is_for_what_is_left_of_the_same_network() {
    let [graph, other] = ["cifar_resnet20", "cifar_resnet56"].map(network);
    let [groups, others] = [&graph, &other].map(|graph| ChannelGroups::new(graph, Scope::All));
    let selector = Selector::new(&graph, &groups, Budget::channels(0.5), &free(0.1)).unwrap();
    let error = selector.within(&other, &others).unwrap_err().to_string();
    assert!(error.contains("select: expected groups") && error.contains("layer3.8"), "{error}");
}
