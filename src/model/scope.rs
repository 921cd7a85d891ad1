//! Which parameters are trained: all of them, or few, for boards whose memory or time is short.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::graph::{Graph, Op};
use crate::{Error, Result};

/// The layers whose parameters may change. What lies in front of the first of them costs its forward pass only.
///
/// # Source
/// Sparse update: Lin, Zhu, Chen, Wang, Gan, Han 2022, "On-Device Training Under 256KB Memory", arXiv:2206.15472; batch
/// normalisation alone: Wang, Shelhamer, Liu, Olshausen, Darrell 2021 (Tent), arXiv:2006.10726.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum TrainScope {
    /// Everything.
    #[default]
    All,
    /// The classifier.
    Head,
    /// Scales and shifts of batch normalisations.
    BatchNorm,
    /// The last so many convolutions and linear layers, with the batch normalisations behind the first of them.
    Last(usize),
}

impl TrainScope {
    /// Checks that `graph` has the layers.
    ///
    /// # Errors
    /// [`Error::Config`] naming how many there are.
    pub fn check(self, graph: &Graph) -> Result<()> {
        let mixing = graph.nodes().iter().filter(|node| mixes(&node.op)).count();
        match self {
            Self::Last(count) if count > mixing => {
                let name = graph.name();
                Err(Error::Config(format!("train: {self}: expected at most last:{mixing}, the layers of {name}")))
            }
            _ => Ok(()),
        }
    }

    /// Whether nothing below the classifier is trained.
    pub const fn is_classifier_alone(self) -> bool {
        matches!(self, Self::Head | Self::Last(0 | 1))
    }

    /// Names of the nodes of `graph` whose parameters may change.
    pub(super) fn layers(self, graph: &Graph) -> BTreeSet<String> {
        let nodes = graph.nodes();
        let mixing = |id: &usize| mixes(&nodes[*id].op);
        let first = match self {
            Self::All | Self::BatchNorm => 0,
            Self::Head => graph.output(),
            Self::Last(count) => (0..nodes.len()).rev().filter(mixing).take(count).last().unwrap_or(nodes.len()),
        };
        let wanted = |op: &Op| self != Self::BatchNorm || matches!(op, Op::BatchNorm { .. });
        nodes[first..].iter().filter(|node| wanted(&node.op)).map(|node| node.name.clone()).collect()
    }
}

/// Whether an operation has weights between its input and output channels.
fn mixes(op: &Op) -> bool {
    matches!(op, Op::Conv2d(_) | Op::Linear { .. })
}

impl fmt::Display for TrainScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Head => f.write_str("head"),
            Self::BatchNorm => f.write_str("bn"),
            Self::Last(count) => write!(f, "last:{count}"),
        }
    }
}

impl FromStr for TrainScope {
    type Err = Error;

    /// # Errors
    /// [`Error::Usage`] for anything but `all`, `head`, `bn` and `last:N` with N of at least 1.
    fn from_str(text: &str) -> Result<Self> {
        let count = |n: &str| n.parse().ok().filter(|n| *n > 0);
        match (text, text.strip_prefix("last:").and_then(count)) {
            ("all", _) => Ok(Self::All),
            ("head", _) => Ok(Self::Head),
            ("bn", _) => Ok(Self::BatchNorm),
            (_, Some(count)) => Ok(Self::Last(count)),
            _ => Err(Error::Usage(format!("expected all, head, bn or last:N, got {text:?}"))),
        }
    }
}

impl From<TrainScope> for String {
    fn from(scope: TrainScope) -> Self {
        scope.to_string()
    }
}

impl TryFrom<String> for TrainScope {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{ArchOptions, build};

    #[test]
    fn scopes_name_their_layers() {
        let graph = build("lenet_bn", &ArchOptions { num_classes: 4, input: [1, 28, 28] }).unwrap();
        let all: Vec<String> = graph.params().map(|p| p.name).collect();
        let trained = |scope: TrainScope| -> Vec<&String> {
            let layers = scope.layers(&graph);
            all.iter().filter(|p| layers.contains(p.rsplit_once('.').unwrap().0)).collect()
        };
        assert_eq!(trained(TrainScope::All).len(), all.len());
        let classifier = &graph.nodes()[graph.output()].name;
        assert!(trained(TrainScope::Head).iter().all(|p| p.starts_with(classifier.as_str())));
        assert_eq!(trained(TrainScope::Last(1)), trained(TrainScope::Head));
        assert!(trained(TrainScope::Last(2)).len() > trained(TrainScope::Head).len());
        let mixing = graph.nodes().iter().filter(|node| mixes(&node.op)).count();
        assert_eq!(trained(TrainScope::Last(mixing)).len(), all.len());
        TrainScope::Last(mixing).check(&graph).unwrap();
        let said = TrainScope::Last(100).check(&graph).unwrap_err().to_string();
        assert_eq!(said, format!("train: last:100: expected at most last:{mixing}, the layers of lenet_bn"));
        let norms = trained(TrainScope::BatchNorm);
        assert!(!norms.is_empty() && norms.len() < all.len());
    }

    #[test]
    fn texts_go_there_and_back() {
        for text in ["all", "head", "bn", "last:3"] {
            assert_eq!(text.parse::<TrainScope>().unwrap().to_string(), text);
        }
        for wrong in ["", "last", "last:", "last:0", "last:x", "heads"] {
            assert!(matches!(wrong.parse::<TrainScope>(), Err(Error::Usage(_))), "{wrong}");
        }
    }
}
