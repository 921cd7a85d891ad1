//! What a model needs besides its tensors: class names and preprocessing.

use serde::{Deserialize, Serialize};

use crate::data::Preprocess;

/// Class names and preprocessing, carried from teacher to student.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// One name per logit.
    pub class_names: Vec<String>,
    /// How an image becomes the input tensor.
    pub preprocess: Preprocess,
}
