//! What a model needs besides its tensors: class names and preprocessing.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::teacher;
use crate::Result;
use crate::data::Preprocess;
use crate::graph::Graph;
use crate::weights::ModelDescription;

/// Class names and preprocessing, carried from teacher to student.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// One name per logit.
    pub class_names: Vec<String>,
    /// How an image becomes the input tensor.
    pub preprocess: Preprocess,
}

impl ModelInfo {
    /// What `description` says about `graph`, with usual values where it says nothing; `path` is named in errors.
    ///
    /// # Errors
    /// [`crate::Error::Weights`] naming the field that does not fit the graph.
    pub fn resolve(path: &Path, description: &ModelDescription, graph: &Graph) -> Result<Self> {
        teacher::info(path, description, graph)
    }

    /// The description a file carries, from which [`ModelInfo::resolve`] and the graph come back.
    pub fn describe(&self, graph: &Graph) -> ModelDescription {
        let p = &self.preprocess;
        let widen = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect();
        ModelDescription {
            arch: Some(graph.name().to_string()),
            graph: Some(graph.to_json()),
            num_classes: Some(graph.num_classes()),
            class_names: Some(self.class_names.clone()),
            mean: Some(widen(&p.mean)),
            std: Some(widen(&p.std)),
            input_size: Some(graph.input_shape()),
            crop_pct: Some(f64::from(p.crop_pct)),
            interpolation: Some(teacher::filter_name(p.interpolation).to_string()),
        }
    }
}
