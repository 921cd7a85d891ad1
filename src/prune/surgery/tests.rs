//! The central property: the masked and the compacted network are the same function.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;

use super::*;
use crate::arch::{self, ArchOptions};
use crate::graph::testing::{random_graph, random_keep};
use crate::graph::{NodeId, Scope};
use crate::model::testing::{assert_close, assert_close_beside, random_images, random_params, values};
use crate::nn::Backend;
use crate::rng::Rng;

const SCOPES: [Scope; 2] = [Scope::Inner, Scope::All];
const MODES: [Mode; 2] = [Mode::Eval, Mode::Train];

/// A network with random parameters, its groups, a random selection and images.
struct Case {
    graph: Graph,
    params: Params,
    groups: ChannelGroups,
    keep: Vec<bool>,
    images: Tensor,
}

impl Case {
    fn new(graph: Graph, scope: Scope, fraction: f32, rng: &mut Rng) -> Self {
        let groups = ChannelGroups::new(&graph, scope);
        let keep = random_keep(&graph, &groups, fraction, rng);
        Self { params: random_params(&graph, rng), images: random_images(&graph, 4, rng), graph, groups, keep }
    }

    /// Mask vectors: 0 for what goes, `soft(entry)` for what stays.
    fn masks(&self, soft: impl Fn(usize) -> f32) -> HashMap<NodeId, Tensor> {
        let mask: Vec<f32> = self.keep.iter().enumerate().map(|(e, k)| if *k { soft(e) } else { 0.0 }).collect();
        let mask = Tensor::from_vec(mask, self.groups.len(), &Device::Cpu).unwrap();
        ChannelMask::new(&self.groups, &Device::Cpu).unwrap().gather(&mask).unwrap()
    }

    fn verify(&self, compacted: (&Graph, &Params)) -> Result<f32> {
        verify((&self.graph, &self.params, &self.groups, &self.keep), compacted, &self.images)
    }

    fn compact(&self) -> (Graph, Params) {
        compact(&self.graph, &self.groups, &self.keep, &self.params).unwrap()
    }
}

/// The kept part of each mask vector, for the compacted network.
fn cut(masks: &HashMap<NodeId, Tensor>, kept: &[Vec<usize>]) -> HashMap<NodeId, Tensor> {
    masks.iter().map(|(id, mask)| (*id, take(mask, 0, &kept[*id]).unwrap())).collect()
}

/// Statistics of four images can divide by almost nothing and blow rounding up, so training mode runs in f64.
fn precision(mode: Mode) -> DType {
    match mode {
        Mode::Eval => DType::F32,
        Mode::Train => DType::F64,
    }
}

fn cast<K, T: FromIterator<(K, Tensor)>>(tensors: impl IntoIterator<Item = (K, Tensor)>, dtype: DType) -> T {
    tensors.into_iter().map(|(key, tensor)| (key, tensor.to_dtype(dtype).unwrap())).collect()
}

/// Logits and features, in f32.
fn run_on(
    backend: Backend,
    (graph, params): (&Graph, &Params),
    mode: Mode,
    masks: HashMap<NodeId, Tensor>,
    images: &Tensor,
) -> [Tensor; 2] {
    let dtype = precision(mode);
    let params: Params = cast(params.clone(), dtype);
    let forward = Forward::new(graph, &params, mode).masked(cast(masks, dtype)).with_backend(backend);
    let output = forward.run(&images.to_dtype(dtype).unwrap()).unwrap();
    [output.logits, output.features].map(|t| t.to_dtype(DType::F32).unwrap())
}

fn logits(graph: &Graph, params: &Params, mode: Mode, masks: HashMap<NodeId, Tensor>, images: &Tensor) -> Tensor {
    let [logits, _] = run_on(Backend::Kernels, (graph, params), mode, masks, images);
    logits
}

fn assert_same_function(case: &Case) {
    let (graph, params) = case.compact();
    for mode in MODES {
        let masked = logits(&case.graph, &case.params, mode, case.masks(|_| 1.0), &case.images);
        let compacted = logits(&graph, &params, mode, HashMap::new(), &case.images);
        assert_close(&format!("{} {mode:?}", graph.name()), &compacted, &masked, LOGIT_TOLERANCE);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn masked_and_compacted_logits_agree(seed in any::<u64>(), fraction in 0.1f32..1.0, scope in 0usize..2) {
        let case = Case::new(random_graph(seed), SCOPES[scope], fraction, &mut Rng::new(seed));
        assert_same_function(&case);
        let (graph, params) = case.compact();
        prop_assert!(case.verify((&graph, &params)).is_ok());
    }

    #[test]
    fn a_soft_mask_of_zero_removes(seed in any::<u64>(), fraction in 0.2f32..1.0, scope in 0usize..2) {
        let case = Case::new(random_graph(seed), SCOPES[scope], fraction, &mut Rng::new(seed));
        let masks = case.masks(|e| 0.2 + 0.8 * Rng::stream(seed, e as u64).uniform());
        let kept = case.graph.compact(&case.groups, &case.keep).unwrap().kept;
        let (graph, params) = case.compact();
        for mode in MODES {
            let masked = logits(&case.graph, &case.params, mode, masks.clone(), &case.images);
            let compacted = logits(&graph, &params, mode, cut(&masks, &kept), &case.images);
            assert_close(&format!("{mode:?}"), &compacted, &masked, LOGIT_TOLERANCE);
        }
    }

    #[test]
    fn both_backends_mask_alike(seed in any::<u64>(), fraction in 0.2f32..1.0) {
        let case = Case::new(random_graph(seed), Scope::All, fraction, &mut Rng::new(seed));
        for mode in MODES {
            let [kernels, tensor_ops] = [Backend::Kernels, Backend::TensorOps].map(|backend| {
                run_on(backend, (&case.graph, &case.params), mode, case.masks(|_| 0.7), &case.images)
            });
            for (got, want) in tensor_ops.iter().zip(&kernels) {
                // Logits of 1e-4 come of terms near 1, which each backend adds up in its own order.
                assert_close_beside(&format!("{mode:?}"), got, want, LOGIT_TOLERANCE, 0.01);
            }
        }
    }

    #[test]
    fn shifts_of_removed_channels_do_not_matter(seed in any::<u64>()) {
        let case = Case::new(random_graph(seed), Scope::All, 0.5, &mut Rng::new(seed));
        let before = logits(&case.graph, &case.params, Mode::Eval, case.masks(|_| 1.0), &case.images);
        let mut params = case.params.clone();
        for point in case.groups.mask_points() {
            let name = format!("{}.bias", case.graph.nodes()[point.node].name);
            let Some(bias) = params.get(&name) else { continue };
            let shifted = values(bias).into_iter().zip(&point.entries).map(|(b, &e)| {
                if case.keep.get(e as usize) == Some(&false) { b + 3.0 } else { b }
            });
            let shifted = Tensor::from_vec(shifted.collect::<Vec<f32>>(), point.entries.len(), &Device::Cpu).unwrap();
            params.insert(name, shifted);
        }
        let after = logits(&case.graph, &params, Mode::Eval, case.masks(|_| 1.0), &case.images);
        prop_assert_eq!(values(&before), values(&after));
    }
}

/// The architecture at the smallest input it takes.
fn small(name: &str) -> Graph {
    let channels = arch::default_input(name).unwrap()[0];
    let fitting = [28, 32, 64, 96, 224]
        .into_iter()
        .find_map(|side| arch::build(name, &ArchOptions { num_classes: 10, input: [channels, side, side] }).ok());
    fitting.unwrap_or_else(|| panic!("{name} takes none of the sizes"))
}

#[test]
fn every_architecture_survives_surgery() {
    // vgg16_bn is vgg11_bn with more of the same layers, and too large to run here.
    for (index, name) in arch::names().iter().enumerate().filter(|(_, name)| **name != "vgg16_bn") {
        // In f64, since a hundred batch norms over maps of a pixel or two blow f32 rounding up.
        let dtype = if *name == "vgg11_bn" { DType::F32 } else { DType::F64 };
        let wide = |t: &Tensor| t.to_dtype(dtype).unwrap();
        // One scope each keeps this short; the neighbours in the list are of one family.
        let case = Case::new(small(name), SCOPES[index % 2], 0.5, &mut Rng::new(index as u64));
        let (graph, params) = case.compact();
        let wide_params = |p: &Params| p.iter().map(|(name, t)| (name.clone(), wide(t))).collect::<Params>();
        let masks: HashMap<NodeId, Tensor> = case.masks(|_| 1.0).iter().map(|(id, m)| (*id, wide(m))).collect();
        let (before, after, images) = (wide_params(&case.params), wide_params(&params), wide(&case.images));
        for mode in MODES {
            let masked = logits(&case.graph, &before, mode, masks.clone(), &images);
            let compacted = logits(&graph, &after, mode, HashMap::new(), &images);
            let [masked, compacted] = [masked, compacted].map(|t| t.to_dtype(DType::F32).unwrap());
            assert_close(&format!("{name} {mode:?}"), &compacted, &masked, LOGIT_TOLERANCE);
        }
    }
}

#[test]
fn verify_refuses_every_tampered_tensor() {
    let graph = arch::build("cifar_resnet20", &ArchOptions { num_classes: 10, input: [3, 16, 16] }).unwrap();
    let case = Case::new(graph, Scope::All, 0.6, &mut Rng::new(5));
    let (graph, params) = case.compact();
    assert!(case.verify((&graph, &params)).unwrap() <= LOGIT_TOLERANCE);
    for (name, tensor) in &params {
        for (what, change) in [("offset", 0.3), ("NaN", f32::NAN)] {
            let mut tampered = params.clone();
            tampered.insert(name.clone(), (tensor + f64::from(change)).unwrap());
            let result = case.verify((&graph, &tampered));
            assert!(matches!(result, Err(Error::Numeric(_))), "{what} in {name}: {result:?}");
        }
    }
}

#[test]
fn verify_blames_a_network_whose_own_answers_are_not_finite() {
    let mut case = Case::new(random_graph(2), Scope::All, 0.6, &mut Rng::new(2));
    let classifier = format!("{}.weight", case.graph.nodes()[case.graph.output()].name);
    let broken = (&case.params[&classifier] + f64::NAN).unwrap();
    case.params.insert(classifier, broken);
    let (graph, params) = case.compact();
    let error = case.verify((&graph, &params)).unwrap_err().to_string();
    assert!(error.contains("not finite before channels go"), "{error}");
}

#[test]
fn verify_refuses_a_nan_in_a_single_logit() {
    let case = Case::new(random_graph(2), Scope::All, 0.6, &mut Rng::new(2));
    let (graph, params) = case.compact();
    let classifier = format!("{}.weight", graph.nodes()[graph.output()].name);
    let weight = params[&classifier].clone();
    let (rows, columns) = weight.dims2().unwrap();
    for row in 0..rows {
        let mut broken = values(&weight);
        broken[row * columns..(row + 1) * columns].fill(f32::NAN);
        let mut tampered = params.clone();
        tampered.insert(classifier.clone(), Tensor::from_vec(broken, (rows, columns), &Device::Cpu).unwrap());
        assert!(case.verify((&graph, &tampered)).is_err(), "class {row}");
    }
}

#[test]
fn a_network_without_prunable_channels_stays_as_it_is() {
    let mut b = crate::graph::GraphBuilder::new("linear", [1, 3, 3]);
    b.classifier("fc", 2, 0);
    let mut case = Case::new(b.finish().unwrap(), Scope::All, 0.5, &mut Rng::new(1));
    case.keep.clear();
    assert!(case.groups.is_empty());
    let (graph, params) = case.compact();
    assert_eq!(graph, case.graph);
    assert_eq!(case.verify((&graph, &params)).unwrap(), 0.0);
}

#[test]
fn missing_and_misshapen_parameters_are_named() {
    let mut case = Case::new(random_graph(3), Scope::All, 0.5, &mut Rng::new(3));
    let tensor = case.params.remove("stem.weight").unwrap();
    let message = |case: &Case| compact(&case.graph, &case.groups, &case.keep, &case.params).unwrap_err().to_string();
    assert!(message(&case).contains("stem.weight is missing"), "{}", message(&case));
    case.params.insert("stem.weight".into(), tensor.narrow(2, 0, 2).unwrap());
    assert!(message(&case).contains("stem.weight: expected"), "{}", message(&case));
    case.keep.push(true);
    assert!(message(&case).contains("mask entries"), "{}", message(&case));
}
