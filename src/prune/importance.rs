//! What is worth keeping: a score for every entry of the channel mask.

use serde::{Deserialize, Serialize};

use crate::graph::{ChannelGroups, Graph};
use crate::model::Params;
use crate::{Error, Result};

/// How channels are ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Criterion {
    /// Empirical Fisher information of the mask, from labels sampled from the teacher.
    #[default]
    Fisher,
    /// Norm of the producing weights, relative to their layer's mean.
    Magnitude,
    /// First-order Taylor term of the transfer loss, relative to the layer's norm: TCP's.
    Transfer,
}

/// Running mean of squared mask gradients: I_c = E[(∂L/∂m_c)²].
///
/// # Source
/// Theis et al. 2018, arXiv:1801.05787 (Fisher pruning); Molchanov et al. 2019, arXiv:1906.10771 (the same quantity
/// as a first-order Taylor score at m = 1).
#[derive(Debug, Clone, PartialEq)]
pub struct Fisher {
    sums: Vec<f64>,
}

impl Fisher {
    /// No observations yet for `entries` mask entries.
    pub fn new(entries: usize) -> Self {
        Self { sums: vec![0.0; entries] }
    }

    /// Adds the mask gradient of one batch.
    pub fn add(&mut self, gradient: &[f32]) {
        for (sum, g) in self.sums.iter_mut().zip(gradient) {
            *sum += f64::from(*g).powi(2);
        }
    }

    /// The accumulated scores (a common factor does not matter to a ranking).
    pub fn scores(&self) -> Vec<f64> {
        self.sums.clone()
    }
}

/// Running mean of absolute mask gradients within a layer: I_c = E|∂L/∂m_c| / ‖E|∂L/∂m|‖₂ over the group's channels.
/// At m = 1, ∂L/∂m_c = Σ a_c·∂L/∂a_c is the first-order Taylor term of taking channel c away.
///
/// # Source
/// Yu et al. 2019, arXiv:1904.02654 (Transfer Channel Pruning: L is the task's loss and the one of transfer); the division by
/// the layer's norm is that of Molchanov et al. 2017, arXiv:1611.06440, whose criterion it extends. Deviation: the absolute
/// value is of a batch's sum, not of each image's.
#[derive(Debug, Clone, PartialEq)]
pub struct Taylor {
    sums: Vec<f64>,
}

impl Taylor {
    /// No observations yet for `entries` mask entries.
    pub fn new(entries: usize) -> Self {
        Self { sums: vec![0.0; entries] }
    }

    /// Adds the mask gradient of one batch.
    pub fn add(&mut self, gradient: &[f32]) {
        for (sum, g) in self.sums.iter_mut().zip(gradient) {
            *sum += f64::from(g.abs());
        }
    }

    /// The accumulated scores, of every group in `layers` relative to its norm.
    pub fn scores(&self, layers: impl Iterator<Item = std::ops::Range<usize>>) -> Vec<f64> {
        let mut scores = self.sums.clone();
        for layer in layers {
            let channels = &mut scores[layer];
            let norm = channels.iter().map(|sum| sum * sum).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
            channels.iter_mut().for_each(|score| *score /= norm);
        }
        scores
    }
}

/// Mean absolute weight of each entry's producers, divided by the layer's mean so that layers compare.
///
/// # Source
/// Li et al. 2017, arXiv:1608.08710 (L1 norm of filters); the division by the layer mean is ours, for a global ranking.
///
/// # Errors
/// [`Error::Shape`] if a producer's weight is missing; [`Error::Tensor`] from the tensor library.
pub fn magnitude(graph: &Graph, groups: &ChannelGroups, params: &Params) -> Result<Vec<f64>> {
    let mut scores = vec![0.0; groups.len()];
    for group in groups.prunable() {
        for &producer in &group.producers {
            let name = format!("{}.weight", graph.nodes()[producer].name);
            let weight = params.get(&name).ok_or_else(|| Error::Shape(format!("parameter {name} is missing")))?;
            let norms: Vec<f32> = weight.abs()?.flatten_from(1)?.mean(1)?.to_vec1()?;
            let mean = norms.iter().sum::<f32>() / norms.len() as f32;
            for (norm, &entry) in norms.iter().zip(groups.node_entries(producer)) {
                if let Some(score) = scores.get_mut(entry as usize) {
                    *score += f64::from(norm / mean.max(f32::MIN_POSITIVE));
                }
            }
        }
    }
    Ok(scores)
}

/// Each score's percentile rank over all entries, in [0, 1]; ties go to the earlier entry.
pub fn percentile_rank(scores: &[f64]) -> Vec<f32> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(b.cmp(&a)));
    let mut rank = vec![0.0; scores.len()];
    for (place, index) in order.into_iter().enumerate() {
        rank[index] = place as f32 / scores.len().saturating_sub(1).max(1) as f32;
    }
    rank
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::graph::{Conv2d, GraphBuilder, Scope};

    #[test]
    fn ranks_are_spread_and_ties_go_to_the_earlier() {
        assert_eq!(percentile_rank(&[3.0, 1.0, 2.0, 5.0, 4.0]), [0.5, 0.0, 0.25, 1.0, 0.75]);
        assert_eq!(percentile_rank(&[1.0, 1.0, 1.0]), [1.0, 0.5, 0.0]);
        assert_eq!(percentile_rank(&[7.0]), [0.0]);
        assert!(percentile_rank(&[]).is_empty());
    }

    #[test]
    fn fisher_sums_squared_gradients() {
        let mut fisher = Fisher::new(3);
        fisher.add(&[1.0, -2.0, 0.0]);
        fisher.add(&[3.0, 1.0, 0.0]);
        assert_eq!(fisher.scores(), [10.0, 5.0, 0.0]);
    }

    #[test]
    fn taylor_sums_absolute_gradients_relative_to_their_layer() {
        let mut taylor = Taylor::new(5);
        taylor.add(&[1.0, -2.0, 50.0, 0.0, 7.0]);
        taylor.add(&[-2.0, 2.0, -250.0, 400.0, 0.0]);
        assert_eq!(taylor.scores([0..2, 2..4].into_iter()), [0.6, 0.8, 0.6, 0.8, 7.0]);
        assert_eq!(Taylor::new(2).scores(std::iter::once(0..2)), [0.0, 0.0], "no gradient, no division by zero");
    }

    #[test]
    fn magnitude_is_relative_to_each_layer() {
        // The second layer's weights are a hundred times larger; its channels rank no higher for it.
        let mut b = GraphBuilder::new("two", [1, 2, 2]);
        let x = b.conv("a", Conv2d::new(2, 1), 0);
        let x = b.conv("b", Conv2d::new(2, 1), x);
        b.classifier("fc", 2, x);
        let graph = b.finish().unwrap();
        let groups = ChannelGroups::new(&graph, Scope::Inner);
        let tensor = |values: &[f32], shape: &[usize]| Tensor::from_vec(values.to_vec(), shape, &Device::Cpu).unwrap();
        let mut params = Params::from([
            ("a.weight".to_string(), tensor(&[-1.0, 3.0], &[2, 1, 1, 1])),
            ("b.weight".to_string(), tensor(&[100.0, -100.0, 200.0, 400.0], &[2, 2, 1, 1])),
        ]);
        assert_eq!(magnitude(&graph, &groups, &params).unwrap(), [0.5, 1.5, 0.5, 1.5]);
        params.insert("a.weight".into(), tensor(&[0.0, 0.0], &[2, 1, 1, 1]));
        assert_eq!(magnitude(&graph, &groups, &params).unwrap()[..2], [0.0, 0.0]);
        params.remove("b.weight");
        assert!(magnitude(&graph, &groups, &params).unwrap_err().to_string().contains("b.weight is missing"));
    }

    #[test]
    fn channels_tied_by_an_addition_add_up() {
        let mut b = GraphBuilder::new("tied", [1, 2, 2]);
        let x = b.conv("a", Conv2d::new(2, 1), 0);
        let y = b.conv("b", Conv2d::new(2, 1), x);
        let x = b.node("add", crate::graph::Op::Add, &[x, y]);
        b.classifier("fc", 2, x);
        let graph = b.finish().unwrap();
        let groups = ChannelGroups::new(&graph, Scope::All);
        let tensor = |values: &[f32], shape: &[usize]| Tensor::from_vec(values.to_vec(), shape, &Device::Cpu).unwrap();
        let params = Params::from([
            ("a.weight".to_string(), tensor(&[1.0, 3.0], &[2, 1, 1, 1])),
            ("b.weight".to_string(), tensor(&[1.0, 1.0, 1.0, 1.0], &[2, 2, 1, 1])),
        ]);
        assert_eq!(magnitude(&graph, &groups, &params).unwrap(), [1.5, 2.5]);
    }
}
