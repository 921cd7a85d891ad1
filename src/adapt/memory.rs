//! How much memory a run takes, told from the graph before it starts, and in how many parts a batch has to go through the
//! network to stay within a limit.

use super::config::AdaptConfig;
use crate::data::DEFAULT_CACHE_BYTES;
use crate::graph::{Activation, Graph, NodeId, Op};
use crate::model::LEAST_IMAGES;
use crate::{Error, Result};

/// The program itself, and decoded images.
const FIXED: u64 = (56 << 20) + DEFAULT_CACHE_BYTES as u64;
/// Copies of the parameters: teacher, adapted teacher, variables, momentum, gradients, and one being made.
const COPIES: u64 = 6;
/// Batches of images: those being prepared, the one in use, and that one in the kernels' layout.
const BATCHES: u64 = 5;
/// Activations of a layer that are there at once besides those kept: its gradient, that of its input, and one that waits
/// for a sum.
const PASSING: u64 = 3;
/// What the allocator holds in holes, one part in this.
const HOLES: u64 = 8;

/// Memory of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Parts that a batch goes through the network in.
    pub parts: usize,
    /// Most bytes the process is expected to hold.
    pub bytes: u64,
}

/// The fewest parts with which a run on `graph` stays within `config.memory_bytes`; one part without a limit.
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
    let per_image = peak(trained).max(PASSING * largest(graph));
    let bytes = |parts: usize| constant + config.batch_size.div_ceil(parts) as u64 * (per_image + per_image / HOLES);
    let Some(limit) = config.memory_bytes else { return Ok(MemoryPlan { parts: 1, bytes: bytes(1) }) };
    let most = (config.batch_size / LEAST_IMAGES).max(1);
    let parts = (1..=most).find(|&parts| bytes(parts) <= limit).ok_or_else(|| {
        let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
        Error::Config(format!(
            "memory: expected at least {}MB for {} with {} images per step, got {}MB",
            megabytes(bytes(most)),
            graph.name(),
            config.batch_size,
            megabytes(limit)
        ))
    })?;
    Ok(MemoryPlan { parts, bytes: bytes(parts) })
}

/// Bytes of one image's largest activation.
fn largest(graph: &Graph) -> u64 {
    (0..graph.nodes().len()).map(|id| graph.node_cost(id).activation_bytes).max().unwrap_or(0)
}

/// Most bytes of one image's activations at one time: the backward pass frees on its way what lies behind it, so at each
/// node there is what was kept up to there, and what passes.
fn peak(graph: &Graph) -> u64 {
    let mut kept_so_far = 0;
    let at = kept(graph).into_iter().enumerate().map(|(id, bytes)| {
        kept_so_far += bytes;
        kept_so_far + PASSING * graph.node_cost(id).activation_bytes
    });
    at.max().unwrap_or(0)
}

/// For each node, bytes of one image's output that a forward pass keeps for the backward pass: what kernels say they read
/// again.
fn kept(graph: &Graph) -> Vec<u64> {
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
    let is_kept = |id: NodeId| {
        let reads_output = match nodes[id].op {
            Op::MaxPool(_) => true,
            Op::Add => fused(id).is_some(),
            _ => false,
        };
        let readers = fused(id).map_or(&consumers[id], |activation| &consumers[activation]);
        let is_alias = matches!(nodes[id].op, Op::Activation { .. }) && fused(nodes[id].inputs[0]).is_some();
        !is_alias && (reads_output || readers.iter().any(reads_input))
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
        assert_eq!(kept(&graph).iter().sum::<u64>(), 4 * (2 * 16 + 3 * 3 * 16 + 3));
    }

    #[test]
    fn a_limit_is_kept_by_parts_or_refused() {
        let graph = build("efficientnet_lite0", &ArchOptions { num_classes: 31, input: [3, 224, 224] }).unwrap();
        let free = memory_plan(&graph, &config(&graph, None)).unwrap();
        assert_eq!(free.parts, 1);
        let mut last = free;
        for limit in [free.bytes, free.bytes * 3 / 4, free.bytes / 2] {
            let plan = memory_plan(&graph, &config(&graph, Some(limit))).unwrap();
            assert!(plan.bytes <= limit && plan.parts >= last.parts, "{plan:?} for {limit}");
            last = plan;
        }
        assert!(last.parts > 1);
        let message = memory_plan(&graph, &config(&graph, Some(1_000_000))).unwrap_err().to_string();
        assert!(message.contains("memory: expected at least") && message.contains("got 1MB"), "{message}");
    }
}
