//! How much memory a run takes, told from the graph before it starts, and in how many parts a batch has to go through the
//! network, and what is computed again, to stay within a limit.

use super::config::AdaptConfig;
use crate::data::{DEFAULT_CACHE_BYTES, ImageLimits};
use crate::graph::{Activation, Graph, NodeId, Op};
use crate::model::{ActivationMemory, LEAST_IMAGES};
use crate::nn::MOST_DEPTH;
use crate::{Error, Result};

/// The program itself, and decoded images.
const FIXED: u64 = (56 << 20) + DEFAULT_CACHE_BYTES as u64;
/// The program itself, where it does nothing but train.
const PROGRAM: u64 = 40 << 20;
/// Batches of images in a training step: the one in use, and that one in the kernels' layout.
const STEP_BATCHES: u64 = 2;
/// Copies of the parameters: teacher, variables, momentum, gradients, and those of another loss or a copy being made.
const COPIES: u64 = 5;
/// Batches of images: those being prepared, the one in use, and that one in the kernels' layout.
const BATCHES: u64 = 5;
/// Activations of a layer that are there at once besides those kept: its gradient, that of its input, and one that waits
/// for a sum.
const PASSING: u64 = 3;
/// What the allocator holds in holes, one part in this.
const HOLES: u64 = 8;
/// A training step that would hold more than this computes cheap activations again, whether a limit is set or not.
const LARGE_STEP: u64 = 1_200_000_000;

/// Memory of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// How activations are kept.
    pub memory: ActivationMemory,
    /// Most bytes the process may come to hold in any phase, all that can add to it counted in.
    pub bytes: u64,
    /// Bytes that a process which takes training steps and nothing else is expected to hold at its peak.
    pub step_bytes: u64,
}

/// How a run on `graph` stays within `config.memory_bytes` at least cost: in the fewest parts, and if there is a choice
/// without computing anything again. Without a limit, in one part.
///
/// A pure function of the two, so that a resumed run goes on as it began.
///
/// # Errors
/// [`Error::Config`] if the limit is too small even for the most parts; [`Error::Shape`] if the training size does not fit
/// the network.
pub fn memory_plan(graph: &Graph, config: &AdaptConfig) -> Result<MemoryPlan> {
    let trained = match config.augment.train_size {
        Some([height, width]) => &graph.resized(height, width)?,
        None => graph,
    };
    let batch = config.batch_size as u64;
    let image = 4 * graph.shape(0).elements().max(trained.shape(0).elements());
    let constant = FIXED + COPIES * graph.cost().bytes + BATCHES * batch * image;
    let step_constant = PROGRAM + COPIES * graph.cost().bytes + STEP_BATCHES * batch * image;
    let plan = |memory: ActivationMemory| {
        let per_image = peak(trained, memory.recomputes).max(PASSING * largest(graph));
        let images = config.batch_size.div_ceil(memory.parts) as u64;
        let bytes = constant + images * (per_image + per_image / HOLES);
        MemoryPlan { memory, bytes, step_bytes: step_constant + images * per_image }
    };
    let Some(limit) = config.memory_bytes else {
        let keeping = plan(ActivationMemory::default());
        let large = keeping.step_bytes > LARGE_STEP;
        return Ok(if large { plan(ActivationMemory { parts: 1, recomputes: true }) } else { keeping });
    };
    let most = (config.batch_size / LEAST_IMAGES).max(1);
    let ways = (1..=most).flat_map(|parts| [false, true].map(|recomputes| ActivationMemory { parts, recomputes }));
    ways.map(plan).find(|plan| plan.bytes <= limit).ok_or_else(|| {
        let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
        Error::Config(format!(
            "memory: expected at least {}MB for {} with {} images per step, got {}MB",
            megabytes(plan(ActivationMemory { parts: most, recomputes: true }).bytes),
            graph.name(),
            config.batch_size,
            megabytes(limit)
        ))
    })
}

/// The same plan where images have the size they are evaluated at: in more parts, if there is a limit, for images in training
/// are smaller.
pub(super) fn at_evaluation_size(memory: ActivationMemory, graph: &Graph, config: &AdaptConfig) -> ActivationMemory {
    let [_, height, width] = graph.input_shape();
    match (config.memory_bytes, config.augment.train_size) {
        (Some(_), Some([h, w])) => {
            ActivationMemory { parts: memory.parts * (height * width).div_ceil(h * w), ..memory }
        }
        _ => memory,
    }
}

/// Most pixels of an image that a run within `memory_bytes` decodes: beyond, decoding alone would take a quarter of them.
pub fn most_pixels(memory_bytes: Option<u64>) -> u64 {
    /// Bytes that decoding and scaling take per pixel.
    const DECODING: u64 = 8;
    let default = ImageLimits::default().max_pixels;
    memory_bytes.map_or(default, |bytes| default.min((bytes / (4 * DECODING)).max(1)))
}

/// Bytes of one image's largest activation.
fn largest(graph: &Graph) -> u64 {
    (0..graph.nodes().len()).map(|id| graph.node_cost(id).activation_bytes).max().unwrap_or(0)
}

/// Most bytes of one image's activations at one time: the backward pass frees on its way what lies behind it, so at each
/// node there is what was kept up to there, and what passes.
fn peak(graph: &Graph, recomputes: bool) -> u64 {
    let mut kept_so_far = 0;
    // What is computed again passes too.
    let passing = PASSING + u64::from(recomputes);
    let at = kept(graph, recomputes).into_iter().enumerate().map(|(id, bytes)| {
        kept_so_far += bytes;
        kept_so_far + passing * graph.node_cost(id).activation_bytes
    });
    at.max().unwrap_or(0)
}

/// For each node, bytes of one image's output that a forward pass keeps for the backward pass: what kernels say they read
/// again, without what is computed again.
fn kept(graph: &Graph, recomputes: bool) -> Vec<u64> {
    let (nodes, consumers) = (graph.nodes(), graph.consumers());
    // An activation computed with what is in front of it has no memory of its own.
    let fused = |id: NodeId| match (&nodes[id].op, &consumers[id][..]) {
        (Op::BatchNorm { .. }, [only]) => matches!(nodes[*only].op, Op::Activation { .. }).then_some(*only),
        (Op::Add, [only]) => {
            let clamp = Op::Activation { function: Activation::Relu };
            let clamp6 = Op::Activation { function: Activation::Relu6 };
            (nodes[*only].op == clamp || nodes[*only].op == clamp6).then_some(*only)
        }
        _ => None,
    };
    let reads_input = |id: &NodeId| match nodes[*id].op {
        Op::Conv2d(_) | Op::Linear { .. } | Op::BatchNorm { .. } | Op::MaxPool(_) | Op::Scale => true,
        Op::Activation { .. } => fused(nodes[*id].inputs[0]).is_none(),
        Op::Input { .. }
        | Op::AvgPool(_)
        | Op::GlobalAvgPool
        | Op::Subsample { .. }
        | Op::PadChannels { .. }
        | Op::Add
        | Op::Concat
        | Op::Flatten
        | Op::Dropout { .. } => false,
    };
    // As the tape counts.
    let mut depths: Vec<Option<usize>> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let below = node.inputs.iter().filter_map(|&input| depths[input]).max().unwrap_or(0);
        depths.push(match node.op {
            Op::BatchNorm { .. } | Op::Add => Some(below + 1).filter(|depth| recomputes && *depth <= MOST_DEPTH),
            Op::Activation { .. } if fused(node.inputs[0]).is_some() => depths[node.inputs[0]],
            _ => None,
        });
    }
    let is_kept = |id: NodeId| {
        let reads_output = match nodes[id].op {
            Op::MaxPool(_) => true,
            Op::Add => fused(id).is_some(),
            _ => false,
        };
        let readers = fused(id).map_or(&consumers[id], |activation| &consumers[activation]);
        let is_alias = matches!(nodes[id].op, Op::Activation { .. }) && fused(nodes[id].inputs[0]).is_some();
        !is_alias && depths[id].is_none() && (reads_output || readers.iter().any(reads_input))
    };
    (0..nodes.len()).map(|id| if is_kept(id) { graph.node_cost(id).activation_bytes } else { 0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{ArchOptions, build};
    use crate::graph::{Conv2d, GraphBuilder};
    use crate::model::ModelInfo;
    use crate::weights::ModelDescription;

    fn config(graph: &Graph, memory_bytes: Option<u64>) -> AdaptConfig {
        let info = ModelInfo::resolve("a test".as_ref(), &ModelDescription::default(), graph).unwrap();
        AdaptConfig { memory_bytes, ..AdaptConfig::for_model(&info) }
    }

    #[test]
    fn kept_activations_are_counted_once() {
        let mut b = GraphBuilder::new("block", [2, 4, 4]);
        let x = b.conv("conv", Conv2d::new(3, 1), 0);
        let x = b.batch_norm("bn", 1e-5, x);
        let y = b.activation("act", Activation::Silu, x);
        let z = b.conv("project", Conv2d::new(3, 1), y);
        let z = b.batch_norm("project_bn", 1e-5, z);
        let x = b.node("add", Op::Add, &[y, z]);
        b.classifier("fc", 2, x);
        let graph = b.finish().unwrap();
        // The image, both convolutions' outputs and what the second reads; the classifier reads three means.
        assert_eq!(kept(&graph, false).iter().sum::<u64>(), 4 * (2 * 16 + 3 * 3 * 16 + 3));
        assert_eq!(kept(&graph, true).iter().sum::<u64>(), 4 * (2 * 16 + 2 * 3 * 16 + 3));
    }

    #[test]
    fn larger_images_go_through_in_more_parts() {
        let graph = build("cifar_resnet20", &ArchOptions { num_classes: 10, input: [3, 32, 32] }).unwrap();
        let [_, height, width] = graph.input_shape();
        let memory = ActivationMemory { parts: 3, recomputes: true };
        let mut config = config(&graph, Some(1 << 30));
        assert_eq!(at_evaluation_size(memory, &graph, &config), memory, "no smaller size in training");
        config.augment.train_size = Some([height / 2, width / 2]);
        assert_eq!(at_evaluation_size(memory, &graph, &config), ActivationMemory { parts: 12, recomputes: true });
        config.memory_bytes = None;
        assert_eq!(at_evaluation_size(memory, &graph, &config), memory, "no limit");
    }

    #[test]
    fn images_are_bounded_by_a_limit() {
        assert_eq!(most_pixels(None), ImageLimits::default().max_pixels);
        assert_eq!(most_pixels(Some(320_000_000)), 10_000_000);
        assert_eq!(most_pixels(Some(u64::MAX)), ImageLimits::default().max_pixels);
    }

    #[test]
    fn a_limit_is_kept_by_parts_or_refused() {
        let graph = build("efficientnet_lite0", &ArchOptions { num_classes: 31, input: [3, 224, 224] }).unwrap();
        let free = memory_plan(&graph, &config(&graph, None)).unwrap();
        assert_eq!(free.memory, ActivationMemory::default());
        let mut last = free;
        for limit in [free.bytes, free.bytes * 3 / 4, free.bytes / 2] {
            let plan = memory_plan(&graph, &config(&graph, Some(limit))).unwrap();
            assert!(plan.bytes <= limit && plan.memory.parts >= last.memory.parts, "{plan:?} for {limit}");
            last = plan;
        }
        assert!(last.memory.parts > 1);
        let large = build("resnet50", &ArchOptions { num_classes: 31, input: [3, 224, 224] }).unwrap();
        let config_of_large = AdaptConfig { batch_size: 32, ..config(&large, None) };
        assert!(memory_plan(&large, &config_of_large).unwrap().memory.recomputes);
        let message = memory_plan(&graph, &config(&graph, Some(1_000_000))).unwrap_err().to_string();
        assert!(message.contains("memory: expected at least") && message.contains("got 1MB"), "{message}");
    }
}
