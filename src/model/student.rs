//! The student: trainable variables for every parameter of a graph.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Tensor, Var};

use super::{Params, TrainScope};
use crate::graph::Graph;
use crate::nn::BatchStatistics;
use crate::{Error, Result};

/// A network in training: variables for what is trained, plain tensors for running statistics.
#[derive(Debug)]
pub struct Student {
    graph: Graph,
    vars: BTreeMap<String, Var>,
    buffers: Params,
    frozen_classifier: bool,
    /// Names of the layers that may be trained.
    layers: BTreeSet<String>,
}

impl Student {
    /// A trainable copy of `params`.
    ///
    /// # Errors
    /// [`Error::Shape`] if a parameter of `graph` is missing or misshapen.
    pub fn new(graph: &Graph, params: &Params) -> Result<Self> {
        let mut vars = BTreeMap::new();
        let mut buffers = Params::new();
        for spec in graph.params() {
            let tensor = params
                .get(&spec.name)
                .filter(|t| t.dims() == spec.shape)
                .ok_or_else(|| Error::Shape(format!("parameter {}: expected shape {:?}", spec.name, spec.shape)))?;
            if spec.kind.is_trained() {
                vars.insert(spec.name, Var::from_tensor(tensor)?);
            } else {
                buffers.insert(spec.name, tensor.copy()?);
            }
        }
        let layers = TrainScope::All.layers(graph);
        Ok(Self { graph: graph.clone(), vars, buffers, frozen_classifier: false, layers })
    }

    /// Keeps the classifier (the output layer) as it is: its weights receive neither gradient nor update.
    pub fn freeze_classifier(mut self) -> Self {
        self.frozen_classifier = true;
        self
    }

    /// Trains what `scope` names and keeps the rest as it is.
    pub fn train_only(mut self, scope: TrainScope) -> Self {
        self.layers = scope.layers(&self.graph);
        self
    }

    /// The architecture.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    fn is_frozen(&self, name: &str) -> bool {
        let classifier = &self.graph.nodes()[self.graph.output()].name;
        let layer = name.rsplit_once('.').map_or(name, |(layer, _)| layer);
        !self.layers.contains(layer) || (self.frozen_classifier && layer == classifier)
    }

    /// The variables the optimiser may change, by name.
    pub fn trainable(&self) -> BTreeMap<String, Var> {
        let free = self.vars.iter().filter(|(name, _)| !self.is_frozen(name));
        free.map(|(name, var)| (name.clone(), var.clone())).collect()
    }

    /// Parameters for a forward pass that records gradients.
    pub fn params(&self) -> Params {
        self.view(|name, var| if self.is_frozen(name) { var.as_tensor().detach() } else { var.as_tensor().clone() })
    }

    /// Parameters for a forward pass without gradients. They share storage with the variables: use them before the
    /// next update, or take [`Student::snapshot`].
    pub fn frozen_params(&self) -> Params {
        self.view(|_, var| var.as_tensor().detach())
    }

    /// An independent copy of all parameters.
    pub fn snapshot(&self) -> Result<Params> {
        self.frozen_params().into_iter().map(|(name, tensor)| Ok((name, tensor.copy()?))).collect()
    }

    fn view(&self, tensor: impl Fn(&str, &Var) -> Tensor) -> Params {
        let mut params = self.buffers.clone();
        params.extend(self.vars.iter().map(|(name, var)| (name.clone(), tensor(name, var))));
        params
    }

    /// Overwrites variables and running statistics from `params` (a checkpoint).
    ///
    /// # Errors
    /// [`Error::Shape`] if one is missing or misshapen.
    pub fn restore(&mut self, params: &Params) -> Result<()> {
        let restored = Self::new(&self.graph, params)?;
        self.vars = restored.vars;
        self.buffers = restored.buffers;
        Ok(())
    }

    /// Replaces running statistics.
    pub fn set_statistics(&mut self, statistics: &[(usize, BatchStatistics)]) {
        for (node, batch) in statistics {
            let name = &self.graph.nodes()[*node].name;
            self.buffers.insert(format!("{name}.running_mean"), batch.mean.clone());
            self.buffers.insert(format!("{name}.running_var"), batch.var.clone());
        }
    }
}

#[cfg(test)]
mod tests;
