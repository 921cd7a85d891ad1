//! What the server says of itself and its models.

use serde::{Deserialize, Serialize};

use super::{INPUT, OUTPUT, Signature};

/// `GET /v2`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerMetadata {
    /// The program.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it understands beyond the protocol's core.
    pub extensions: Vec<String>,
}

impl ServerMetadata {
    /// This program.
    pub fn this() -> Self {
        let extensions = ["binary_tensor_data", "classification", "model_repository"];
        Self {
            name: env!("CARGO_PKG_NAME").to_string(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            extensions: extensions.map(str::to_string).to_vec(),
        }
    }
}

/// `GET /v2/models/{model}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelMetadata {
    /// Name.
    pub name: String,
    /// The version that answers.
    pub versions: Vec<String>,
    /// What computes it.
    pub platform: String,
    /// `input`.
    pub inputs: Vec<TensorMetadata>,
    /// `logits`.
    pub outputs: Vec<TensorMetadata>,
    /// One name per logit, in their order.
    pub class_names: Vec<String>,
}

/// A tensor's name, type and shape; -1 stands for any number of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorMetadata {
    /// Name.
    pub name: String,
    /// `FP32` here; the input may come as `UINT8` `[-1, H, W, C]` too.
    pub datatype: String,
    /// Sides.
    pub shape: Vec<i64>,
}

impl ModelMetadata {
    /// Of a served model.
    pub fn new(name: &str, version: &str, signature: &Signature) -> Self {
        let side = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let tensor = |name: &str, shape: Vec<i64>| TensorMetadata { name: name.into(), datatype: "FP32".into(), shape };
        let [c, h, w] = signature.input.map(side);
        Self {
            name: name.to_string(),
            versions: vec![version.to_string()],
            platform: env!("CARGO_PKG_NAME").to_string(),
            inputs: vec![tensor(INPUT, vec![-1, c, h, w])],
            outputs: vec![tensor(OUTPUT, vec![-1, side(signature.class_names.len())])],
            class_names: signature.class_names.clone(),
        }
    }
}

/// A line of `POST /v2/repository/index`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexEntry {
    /// The model.
    pub name: String,
    /// The version that is served, or would be.
    pub version: String,
    /// `READY` or `UNAVAILABLE`.
    pub state: String,
    /// Why it is not ready.
    pub reason: String,
}
