//! ADMM on a problem whose answer is known.

use super::*;
use crate::graph::{ChannelGroups, Conv2d, Graph, GraphBuilder, Scope};
use crate::prune::{Budget, Limits};
use crate::rng::Rng;

const CHANNELS: usize = 40;
const STEPS: usize = 600;

fn layer(width: usize) -> (Graph, ChannelGroups) {
    let mut b = GraphBuilder::new("layer", [1, 4, 4]);
    let x = b.conv("conv", Conv2d::new(width, 1), 0);
    b.classifier("fc", 2, x);
    let graph = b.finish().unwrap();
    let groups = ChannelGroups::new(&graph, Scope::Inner);
    (graph, groups)
}

/// min Σ wᵢ(vᵢ − tᵢ)² over v ∈ {0, 1} with k ones: switching i on changes the sum by wᵢ(1 − 2tᵢ), so the k largest
/// wᵢ(2tᵢ − 1) are the answer.
struct Quadratic {
    weight: Vec<f32>,
    target: Vec<f32>,
}

impl Quadratic {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        // A gap at one half separates what should stay from what should go.
        let target = (0..CHANNELS).map(|i| if i % 5 < 2 { rng.range(0.7, 1.0) } else { rng.range(0.0, 0.3) }).collect();
        Self { weight: (0..CHANNELS).map(|_| rng.range(0.5, 1.0)).collect(), target }
    }

    fn gradient(&self, v: &[f32]) -> Vec<f32> {
        (0..CHANNELS).map(|i| 2.0 * self.weight[i] * (v[i] - self.target[i])).collect()
    }

    fn answer(&self, k: usize) -> Vec<bool> {
        let gain = |i: usize| self.weight[i] * (2.0 * self.target[i] - 1.0);
        let mut order: Vec<usize> = (0..CHANNELS).collect();
        order.sort_by(|&a, &b| gain(b).total_cmp(&gain(a)));
        let mut keep = vec![false; CHANNELS];
        order[..k].iter().for_each(|&i| keep[i] = true);
        keep
    }
}

#[test]
fn the_best_channels_of_a_quadratic_are_found() {
    let (graph, groups) = layer(CHANNELS);
    for seed in 0..5 {
        let problem = Quadratic::new(seed);
        // The ranking says nothing, or the opposite of the truth.
        for rank in [vec![0.5; CHANNELS], problem.target.iter().map(|t| 0.5 * (1.0 - t)).collect()] {
            let selector = Selector::new(&graph, &groups, Budget::channels(0.6), &Limits::default()).unwrap();
            let mut admm = Admm::new(rank, AdmmConfig::default());
            let mut residuals = Vec::new();
            for step in 0..STEPS {
                let gradient = problem.gradient(&admm.primal);
                admm.step(&gradient, step, STEPS, &selector).unwrap();
                assert!(admm.primal.iter().all(|v| (0.0..=1.0).contains(v)));
                assert!(admm.scaled_dual.iter().all(|u| u.abs() <= 0.5));
                residuals.push(admm.primal_residual());
            }
            let largest = residuals.iter().copied().fold(0.0, f64::max);
            let last = admm.primal_residual();
            assert!(last < 0.05 && last < 0.2 * largest, "residual {last} of at most {largest}");
            let keep = admm.harden(&selector).unwrap();
            assert_eq!(keep, problem.answer(16), "seed {seed}");
            assert_eq!(selector.measure(&keep).unwrap(), 16);
            assert_eq!(admm.primal_residual(), 0.0);
        }
    }
}

#[test]
fn the_residual_vanishes_where_the_loss_is_silent() {
    let (graph, groups) = layer(CHANNELS);
    let selector = Selector::new(&graph, &groups, Budget::channels(0.5), &Limits::default()).unwrap();
    let mut admm = Admm::new((0..CHANNELS).map(|i| i as f32 / 39.0).collect(), AdmmConfig::default());
    for step in 0..STEPS {
        admm.step(&[0.0; CHANNELS], step, STEPS, &selector).unwrap();
    }
    assert!(admm.primal_residual() < 1e-6, "{}", admm.primal_residual());
    let keep = admm.harden(&selector).unwrap();
    assert!(keep.iter().enumerate().all(|(i, k)| *k == (i >= 20)), "without a loss the ranking decides: {keep:?}");
}

#[test]
fn hardening_meets_the_budget_from_any_state() {
    let (graph, groups) = layer(CHANNELS);
    let mut rng = Rng::new(4);
    for budget in ["channels=0.6", "params=0.5", "macs=0.5", "bytes=0.3"] {
        let budget: Budget = budget.parse().unwrap();
        let selector = Selector::new(&graph, &groups, budget, &Limits::default()).unwrap();
        for _ in 0..20 {
            let mut admm = Admm::new((0..CHANNELS).map(|_| rng.uniform()).collect(), AdmmConfig::default());
            admm.primal.iter_mut().for_each(|v| *v = rng.uniform());
            admm.auxiliary.iter_mut().for_each(|z| *z = rng.uniform().round());
            let keep = admm.harden(&selector).unwrap();
            assert!(selector.measure(&keep).unwrap() <= budget.limit(selector.full(), 1.0), "{budget}");
            let ones: Vec<bool> = admm.primal.iter().map(|v| *v == 1.0).collect();
            assert_eq!(ones, keep);
        }
    }
}

/// Two layers whose channels differ in cost.
fn uneven() -> (Graph, ChannelGroups) {
    let mut b = GraphBuilder::new("uneven", [3, 8, 8]);
    let x = b.conv("dear", Conv2d::new(8, 3).padding(1), 0);
    let x = b.conv("cheap", Conv2d::new(8, 3).stride(2).padding(1), x);
    b.classifier("fc", 2, x);
    let graph = b.finish().unwrap();
    let groups = ChannelGroups::new(&graph, Scope::Inner);
    (graph, groups)
}

#[test]
fn a_support_that_meets_the_budget_is_kept_as_it_is() {
    let (graph, groups) = uneven();
    let budget: Budget = "macs=0.3".parse().unwrap();
    let selector = Selector::new(&graph, &groups, budget, &Limits::default()).unwrap();
    let limit = budget.limit(selector.full(), 1.0);
    let mut rng = Rng::new(6);
    for _ in 0..200 {
        let mut admm = Admm::new((0..groups.len()).map(|_| rng.uniform()).collect(), AdmmConfig::default());
        let scores: Vec<f32> = (0..groups.len()).map(|_| rng.uniform()).collect();
        let keep = selector.select(&scores, 1.0).unwrap();
        assert!(selector.measure(&keep).unwrap() <= limit);
        admm.auxiliary = keep.iter().map(|k| f32::from(u8::from(*k))).collect();
        admm.primal.iter_mut().for_each(|v| *v = rng.uniform());
        assert_eq!(admm.harden(&selector).unwrap(), keep, "the frozen support has to survive hardening");
    }
}

#[test]
fn without_the_iteration_the_best_by_rank_stay() {
    let (graph, groups) = layer(10);
    let selector = Selector::new(&graph, &groups, Budget::channels(0.6), &Limits::default()).unwrap();
    let rank = vec![0.1, 0.9, 0.2, 0.8, 0.0, 0.7, 0.3, 1.0, 0.4, 0.5];
    let admm = Admm::at_rank(rank, AdmmConfig::default(), &selector).unwrap();
    let expected = [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0];
    assert_eq!((admm.primal.as_slice(), admm.auxiliary.as_slice()), (&expected[..], &expected[..]));
    assert_eq!(admm.primal_residual(), 0.0);
}

#[test]
fn a_gradient_that_is_no_number_is_refused_at_once() {
    let (graph, groups) = layer(10);
    let selector = Selector::new(&graph, &groups, Budget::channels(0.6), &Limits::default()).unwrap();
    // Before a projection, at one, and after the support is frozen.
    for step in [0, 9, 95] {
        let mut admm = Admm::new(vec![0.5; 10], AdmmConfig::default());
        let mut gradient = vec![0.0; 10];
        gradient[3] = f32::NAN;
        let result = admm.step(&gradient, step, 100, &selector);
        assert!(matches!(result, Err(crate::Error::Numeric(_))), "step {step}: {result:?}");
    }
}

#[test]
fn the_penalty_grows_geometrically() {
    let admm = Admm::new(vec![], AdmmConfig::default());
    assert!((admm.rho(0.0) - 0.01).abs() < 1e-12 && (admm.rho(1.0) - 0.3).abs() < 1e-12);
    assert!((admm.rho(0.5).powi(2) - 0.01 * 0.3).abs() < 1e-12);
    assert_eq!(admm.primal_residual(), 0.0);
}
