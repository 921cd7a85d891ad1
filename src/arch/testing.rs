//! Weights and inputs by formula, so that parity fixtures need no weights: the mirror of
//! `tests/fixtures/arch/generate.py`.

use std::collections::BTreeMap;

use crate::graph::{Graph, ParamKind, ParamSpec};
use crate::rng::mix;

/// `count` numbers in [-1, 1): 24 bits of SplitMix64 of (FNV-1a of `name` + index).
pub(crate) fn formula_values(name: &str, count: usize) -> impl Iterator<Item = f64> + use<> {
    let start =
        name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
    (0..count as u64).map(move |i| (mix(start.wrapping_add(i)) >> 40) as f64 / f64::from(1 << 24) * 2.0 - 1.0)
}

/// The values of every parameter of `graph`, by name: He-scaled weights, statistics near 0 and 1.
pub(crate) fn formula_tensors(graph: &Graph) -> BTreeMap<String, Vec<f32>> {
    graph.params().map(|spec| (spec.name.clone(), formula_tensor(&spec))).collect()
}

/// An image batch with `count` values.
pub(crate) fn formula_input(count: usize) -> Vec<f32> {
    formula_values("input", count).map(|u| u as f32).collect()
}

fn formula_tensor(spec: &ParamSpec) -> Vec<f32> {
    let count = spec.shape.iter().product();
    let fan_in = spec.shape.iter().skip(1).product::<usize>() as f64;
    let transform = |u: f64| match spec.kind {
        ParamKind::Weight => u * (3.0 / fan_in).sqrt() * 2f64.sqrt(),
        ParamKind::NormWeight | ParamKind::RunningVar => 1.0 + 0.2 * u,
        ParamKind::Bias | ParamKind::NormBias | ParamKind::RunningMean => 0.1 * u,
    };
    formula_values(&spec.name, count).map(|u| transform(u) as f32).collect()
}
