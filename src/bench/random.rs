//! Networks with random weights and widths, for measuring and comparing runtimes where no trained file is at hand.

use candle_core::{Device, Tensor};

use crate::graph::{ChannelGroups, Graph, NodeId, Op, ParamKind, Scope};
use crate::model::{Forward, Mode, Params};
use crate::prune::{Budget, Limits, Selector};
use crate::rng::Rng;
use crate::{Error, Result};

/// Streams of the seed.
const WIDTHS: u64 = 1;
const WEIGHTS: u64 = 2;
const IMAGES: u64 = 3;
/// How far layers differ in the fraction they keep, around the mean.
const UNEVEN: f32 = 0.25;
/// Pixels of the images that running statistics are taken from: enough for stable activations, few enough for a board.
const PIXELS: usize = 1 << 17;
/// Most of these images.
const MOST_IMAGES: usize = 32;
/// Running variances are at least this: a channel that hardly moves on noise must not be amplified without bound.
const LEAST_VARIANCE: f64 = 0.05;
/// Mean scale of the batch normalisation that ends a residual branch.
const BRANCH_SCALE: f32 = 0.3;

/// `graph` with `fraction` of its prunable channels left, as pruning in scope `inner` leaves them: every layer with
/// another width, seldom a round one.
///
/// # Errors
/// [`Error::Usage`] if `fraction` is not in (0, 1]; [`Error::Config`] if it is less than can be left.
pub fn narrowed(graph: &Graph, fraction: f64, seed: u64) -> Result<Graph> {
    if !(fraction > 0.0 && fraction <= 1.0) {
        return Err(Error::Usage(format!("--channels: expected a fraction in (0, 1], got {fraction}")));
    }
    let groups = ChannelGroups::new(graph, Scope::Inner);
    let mut rng = Rng::stream(seed, WIDTHS);
    let mut scores = vec![0.0; groups.len()];
    for group in groups.prunable() {
        let layer = rng.range(-UNEVEN, UNEVEN);
        scores[group.entries.clone()].fill_with(|| layer + rng.uniform());
    }
    let selector = Selector::new(graph, &groups, Budget::channels(1.0 - fraction), &Limits::default())?;
    Ok(graph.compact(&groups, &selector.select(&scores, 1.0)?)?.graph)
}

/// Random parameters under which neither activations nor rounding errors explode: weights after He, running
/// statistics those of a batch of noise, residual branches that change their shortcut but little. One seed gives the
/// same parameters for one number of threads.
///
/// # Source
/// He, Zhang, Ren, Sun 2015, arXiv:1502.01852, equation 10, uniform instead of normal. Small residual branches as in
/// Goyal et al. 2017, arXiv:1706.02677, section 5.1, who let them start at zero; here they must show in the answers.
pub fn random_params(graph: &Graph, seed: u64, device: &Device) -> Result<Params> {
    let mut rng = Rng::stream(seed, WEIGHTS);
    let consumers = graph.consumers();
    let mut params = Params::new();
    for spec in graph.params() {
        let scale = if ends_branch(graph, &consumers, spec.node) { BRANCH_SCALE } else { 1.0 };
        let bound = (6.0 / spec.shape.iter().skip(1).product::<usize>().max(1) as f32).sqrt();
        let mut draw = || match spec.kind {
            ParamKind::Weight => rng.range(-bound, bound),
            ParamKind::Bias | ParamKind::NormBias => rng.range(-0.1, 0.1),
            ParamKind::NormWeight => scale * rng.range(0.8, 1.2),
            ParamKind::RunningMean => 0.0,
            ParamKind::RunningVar => 1.0,
        };
        let values: Vec<f32> = (0..spec.shape.iter().product()).map(|_| draw()).collect();
        params.insert(spec.name, Tensor::from_vec(values, spec.shape, device)?);
    }
    let images = noise(graph, seed, device)?;
    for (id, batch) in Forward::new(graph, &params, Mode::Train).run(&images)?.statistics {
        let name = &graph.nodes()[id].name;
        params.insert(format!("{name}.running_mean"), batch.mean);
        params.insert(format!("{name}.running_var"), batch.var.maximum(LEAST_VARIANCE)?);
    }
    Ok(params)
}

/// Whether node `id` is the batch normalisation at the end of a branch that a shortcut leads around: the addition that
/// alone reads it has another input with further readers.
fn ends_branch(graph: &Graph, consumers: &[Vec<NodeId>], id: NodeId) -> bool {
    let nodes = graph.nodes();
    match (&nodes[id].op, consumers[id].as_slice()) {
        (Op::BatchNorm { .. }, [only]) => {
            matches!(nodes[*only].op, Op::Add) && nodes[*only].inputs.iter().any(|&input| consumers[input].len() > 1)
        }
        _ => false,
    }
}

/// Standard normal images, fewer of them the larger they are.
fn noise(graph: &Graph, seed: u64, device: &Device) -> Result<Tensor> {
    let [channels, height, width] = graph.input_shape();
    // Two at least: one value has no variance.
    let count = (PIXELS / (height * width)).clamp(2, MOST_IMAGES);
    let mut rng = Rng::stream(seed, IMAGES);
    let values: Vec<f32> = (0..count * channels * height * width).map(|_| rng.normal()).collect();
    Ok(Tensor::from_vec(values, (count, channels, height, width), device)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{self, ArchOptions};

    fn graph(name: &str, side: usize) -> Graph {
        arch::build(name, &ArchOptions { num_classes: 10, input: [3, side, side] }).unwrap()
    }

    fn channels(graph: &Graph) -> usize {
        ChannelGroups::new(graph, Scope::Inner).total_channels()
    }

    #[test]
    fn the_fraction_is_left_and_layers_differ() {
        let whole = graph("resnet18", 64);
        let narrow = narrowed(&whole, 0.4, 1).unwrap();
        let left = channels(&narrow) as f64 / channels(&whole) as f64;
        assert!((0.395..=0.4).contains(&left), "{left}");
        let groups = ChannelGroups::new(&narrow, Scope::Inner);
        let mut widths: Vec<usize> = groups.prunable().map(|g| g.width).collect();
        assert!(widths.iter().filter(|w| **w % 2 == 1).count() >= 2, "{widths:?}");
        widths.sort_unstable();
        widths.dedup();
        assert!(widths.len() > 5, "{widths:?}");
        assert_eq!(narrow, narrowed(&whole, 0.4, 1).unwrap());
        assert_ne!(narrow, narrowed(&whole, 0.4, 2).unwrap());
        assert_eq!(narrowed(&whole, 1.0, 1).unwrap(), whole);
    }

    #[test]
    fn fractions_out_of_range_are_refused() {
        let whole = graph("cifar_resnet20", 32);
        for fraction in [0.0, -0.5, 1.5, f64::NAN] {
            assert!(matches!(narrowed(&whole, fraction, 0).unwrap_err(), Error::Usage(_)), "{fraction}");
        }
        assert!(matches!(narrowed(&whole, 0.01, 0).unwrap_err(), Error::Config(_)));
    }

    #[test]
    fn logits_of_deep_networks_neither_vanish_nor_explode_and_depend_on_the_image() {
        for name in ["cifar_resnet56", "mobilenetv3_large_100", "densenet121"] {
            let graph = narrowed(&graph(name, 32), 0.5, 0).unwrap();
            let params = random_params(&graph, 0, &Device::Cpu).unwrap();
            // Images that the statistics were not taken from.
            let images = noise(&graph, 1, &Device::Cpu).unwrap();
            let logits = Forward::new(&graph, &params, Mode::Eval).run(&images).unwrap().logits;
            let size = logits.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            let spread = logits.var(0).unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            assert!((0.1..10.0).contains(&size) && spread > 0.03, "{name}: size {size}, spread {spread}");
        }
    }

    #[test]
    fn one_seed_gives_the_same_parameters() {
        let graph = graph("cifar_resnet20", 32);
        let values = |seed| -> Vec<f32> {
            let params = random_params(&graph, seed, &Device::Cpu).unwrap();
            assert!(graph.params().all(|spec| params[&spec.name].dims() == spec.shape));
            params.values().flat_map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
        };
        assert_eq!(values(0), values(0));
        assert_ne!(values(0), values(1));
    }
}
