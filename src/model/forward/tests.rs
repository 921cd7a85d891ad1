use std::collections::BTreeMap;

use candle_core::{DType, Device};
use proptest::prelude::*;

use super::*;
use crate::arch::{ArchOptions, build};
use crate::graph::testing::random_graph;
use crate::graph::{ChannelGroups, Scope};
use crate::model::ChannelMask;
use crate::model::testing::{random_images, random_params};
use crate::nn::testing::gpu;
use crate::rng::Rng;

/// For two orders of summation in f64, through deep networks, relative to the largest gradient of a tensor.
const TOLERANCE: f64 = 1e-8;

/// A network with variables in double precision and a soft mask on all its channels.
struct Case {
    graph: Graph,
    vars: BTreeMap<String, Var>,
    buffers: Params,
    mask: Var,
    layout: ChannelMask,
    images: Tensor,
    memory: ActivationMemory,
}

impl Case {
    fn new(graph: Graph, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let (mut vars, mut buffers) = (BTreeMap::new(), Params::new());
        let params = random_params(&graph, &mut rng);
        for spec in graph.params() {
            let tensor = params[&spec.name].to_dtype(DType::F64).unwrap();
            match spec.kind.is_trained() {
                true => drop(vars.insert(spec.name, Var::from_tensor(&tensor).unwrap())),
                false => drop(buffers.insert(spec.name, tensor)),
            }
        }
        let groups = ChannelGroups::new(&graph, Scope::All);
        let device = Device::Cpu;
        let values: Vec<f64> = (0..groups.len()).map(|_| f64::from(rng.range(0.2, 1.0))).collect();
        let mask = Var::from_tensor(&Tensor::from_vec(values, groups.len(), &device).unwrap()).unwrap();
        let layout = ChannelMask::new(&groups, &device).unwrap();
        let images = random_images(&graph, 3, &mut rng).to_dtype(DType::F64).unwrap();
        Self {
            graph,
            vars,
            buffers,
            mask,
            layout,
            images,
            memory: ActivationMemory { parts: 1, recomputes: seed.is_multiple_of(2) },
        }
    }

    /// The same case with its tensors on another device.
    fn on(&self, device: &Device) -> Self {
        let copy = |tensor: &Tensor| tensor.to_device(device).unwrap();
        let var = |var: &Var| Var::from_tensor(&copy(var.as_tensor())).unwrap();
        Self {
            graph: self.graph.clone(),
            vars: self.vars.iter().map(|(name, old)| (name.clone(), var(old))).collect(),
            buffers: self.buffers.iter().map(|(name, tensor)| (name.clone(), copy(tensor))).collect(),
            mask: var(&self.mask),
            layout: ChannelMask::new(&ChannelGroups::new(&self.graph, Scope::All), device).unwrap(),
            images: copy(&self.images),
            memory: self.memory,
        }
    }

    /// Gradients of a fixed function of the logits, by parameter, those that `frozen` names left out.
    fn gradients(&self, backend: Backend, mode: Mode, frozen: impl Fn(&str) -> bool) -> BTreeMap<String, Tensor> {
        let mut params = self.buffers.clone();
        for (name, var) in &self.vars {
            let tensor = var.as_tensor();
            params.insert(name.clone(), if frozen(name) { tensor.detach() } else { tensor.clone() });
        }
        let masks = self.layout.gather(self.mask.as_tensor()).unwrap();
        let forward = Forward::new(&self.graph, &params, mode).masked(masks).with_backend(backend);
        let forward = forward.sparing(self.memory);
        let output = forward.run(&self.images).unwrap();
        let loss = (output.logits.sqr().unwrap() * 0.5).unwrap().sum_all().unwrap();
        let mut store = output.backward(&loss).unwrap();
        let mut found: BTreeMap<String, Tensor> =
            self.vars.iter().filter_map(|(name, var)| Some((name.clone(), store.remove(var)?))).collect();
        found.extend(store.remove(&self.mask).map(|gradient| ("mask".to_string(), gradient)));
        found
    }

    /// Whether both backends find the same gradients for the same tensors; what differs otherwise.
    fn check(&self, mode: Mode, frozen: impl Fn(&str) -> bool + Copy) -> std::result::Result<(), String> {
        let got = self.gradients(Backend::Kernels, mode, frozen);
        let want = self.gradients(Backend::TensorOps, mode, frozen);
        self.agree(&format!("{mode:?}"), (&got, &want))
    }

    fn agree(
        &self,
        what: &str,
        (got, want): (&BTreeMap<String, Tensor>, &BTreeMap<String, Tensor>),
    ) -> std::result::Result<(), String> {
        if got.keys().ne(want.keys()) {
            return Err(format!("{}: gradients of {:?}, expected {:?}", self.graph.name(), got.keys(), want.keys()));
        }
        // Batch statistics cancel some gradients; what is left of those is rounding of the larger ones.
        let largest = |t: &Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f64>().unwrap();
        let overall = want.values().map(&largest).fold(1e-3, f64::max);
        for (name, want) in want {
            let got = got[name].to_device(&Device::Cpu).unwrap();
            let difference = largest(&(want - got).unwrap());
            let scale = largest(want).max(1e-4 * overall);
            if difference.is_nan() || difference > TOLERANCE * scale {
                return Err(format!("{} {what} {name}: differs by {difference} of {scale}", self.graph.name()));
            }
        }
        Ok(())
    }
}

/// A small network of every family but VGG, which takes no small images; its operations are in random graphs.
fn families() -> impl Iterator<Item = Graph> {
    let names = ["cifar_resnet20", "resnet50", "mobilenetv2_100", "mobilenetv3_large_100", "densenet121", "lenet_bn"];
    names.into_iter().map(|name| {
        let input = if name == "lenet_bn" { [1, 28, 28] } else { [3, 32, 32] };
        build(name, &ArchOptions { num_classes: 3, input }).unwrap()
    })
}

#[test]
fn every_family_has_the_gradients_of_tensor_operations() {
    for graph in families() {
        Case::new(graph, 3).check(Mode::Train, |_| false).unwrap();
    }
}

#[test]
fn every_family_has_its_gradients_on_cuda() {
    let Some(gpu) = gpu() else { return };
    for graph in families() {
        let case = Case::new(graph, 3);
        for mode in [Mode::Train, Mode::Eval] {
            let want = case.gradients(Backend::Kernels, mode, |_| false);
            let got = case.on(&gpu).gradients(Backend::for_device(&gpu), mode, |_| false);
            case.agree(&format!("{mode:?} on a GPU"), (&got, &want)).unwrap();
        }
    }
}

#[test]
fn parts_of_a_batch_have_its_gradients() {
    let graph = build("cifar_resnet20", &ArchOptions { num_classes: 3, input: [3, 32, 32] }).unwrap();
    let mut case = Case::new(graph, 5);
    case.images = random_images(&case.graph, 7, &mut Rng::new(6)).to_dtype(DType::F64).unwrap();
    // Statistics of each part would differ, so it is running ones here.
    let whole = case.gradients(Backend::TensorOps, Mode::Eval, |_| false);
    for parts in [2, 3, 100] {
        case.memory.parts = parts;
        let got = case.gradients(Backend::Kernels, Mode::Eval, |_| false);
        case.agree("parts", (&got, &whole)).unwrap();
    }
}

#[test]
fn each_part_is_normalised_by_itself() {
    let graph = build("cifar_resnet20", &ArchOptions { num_classes: 3, input: [3, 32, 32] }).unwrap();
    let case = Case::new(graph, 7);
    let images = random_images(&case.graph, 4, &mut Rng::new(6)).to_dtype(DType::F64).unwrap();
    let mut params = case.buffers.clone();
    params.extend(case.vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().detach())));
    let run = |images: &Tensor, parts| {
        let memory = ActivationMemory { parts, recomputes: false };
        Forward::new(&case.graph, &params, Mode::Train).sparing(memory).run(images).unwrap()
    };
    let both = run(&images, 2);
    for (i, first) in [0, 2].into_iter().enumerate() {
        let part = run(&images.narrow(0, first, 2).unwrap(), 1);
        let logits = both.logits.narrow(0, first, 2).unwrap();
        let difference = (logits - part.logits).unwrap().abs().unwrap().max_all().unwrap();
        assert_eq!(difference.to_scalar::<f64>().unwrap(), 0.0, "part {i}");
    }
    assert_eq!(both.statistics.len(), run(&images, 1).statistics.len());
}

#[test]
fn a_frozen_prefix_and_a_frozen_classifier_get_no_gradient() {
    let graph = build("mobilenetv1_100", &ArchOptions { num_classes: 3, input: [3, 37, 40] }).unwrap();
    let case = Case::new(graph, 4);
    let frozen = |name: &str| name.starts_with("conv_stem") || name.starts_with("classifier");
    case.check(Mode::Train, frozen).unwrap();
    case.check(Mode::Eval, |_| true).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_backends_have_the_same_gradients(seed in any::<u64>()) {
        let case = Case::new(random_graph(seed), seed);
        prop_assert_eq!(case.check(Mode::Train, |_| false), Ok(()));
        prop_assert_eq!(case.check(Mode::Eval, |_| false), Ok(()));
    }
}
