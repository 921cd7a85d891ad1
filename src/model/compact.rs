//! The compact model: a smaller graph with its own tensors, self-contained on disk.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ModelInfo, Params};
use crate::Result;
use crate::engine::Calibration;
use crate::graph::Graph;
use crate::weights::{self, INT8_KEY, PROVENANCE_KEY};

/// Where a compact model comes from. Holds nothing that differs between two runs of one seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Version of this program.
    pub version: String,
    /// SHA-256 of the teacher's weights file.
    pub teacher_sha256: String,
    /// Digest of the target images.
    pub data_sha256: String,
    /// The adaptation's configuration.
    pub config: serde_json::Value,
    /// Channels each convolution and linear layer had before pruning, by node name.
    pub widths_before: BTreeMap<String, usize>,
}

/// A physically smaller network, ready to be saved and served.
#[derive(Debug, Clone)]
pub struct CompactModel {
    /// The narrowed architecture.
    pub graph: Graph,
    /// Its tensors.
    pub params: Params,
    /// Classes and preprocessing, from the teacher.
    pub info: ModelInfo,
    /// Teacher, data and configuration it was made from.
    pub provenance: Provenance,
    /// What 8-bit inference needs, if the gate let it.
    pub int8: Option<Calibration>,
}

impl CompactModel {
    /// Writes one safetensors file that carries its own graph, classes, preprocessing and provenance. Atomic and
    /// durable; the same model gives the same bytes.
    ///
    /// # Errors
    /// [`crate::Error::Io`] naming the path; an older file stays as it was.
    pub fn save(&self, path: &Path) -> Result<()> {
        weights::write_atomic(path, &self.params, &self.metadata())
    }

    /// The file's metadata, see [`metadata`].
    pub fn metadata(&self) -> BTreeMap<String, String> {
        metadata((&self.graph, &self.info), Some(&self.provenance), self.int8.as_ref())
    }
}

/// The metadata of a model file: the timm keys any loader understands, and this program's own under `secateur.`.
pub fn metadata(
    (graph, info): (&Graph, &ModelInfo),
    provenance: Option<&Provenance>,
    int8: Option<&Calibration>,
) -> BTreeMap<String, String> {
    let mut metadata = info.describe(graph).to_metadata();
    metadata.insert("format".to_string(), "pt".to_string());
    if let Some(provenance) = provenance {
        metadata.insert(PROVENANCE_KEY.to_string(), serde_json::json!(provenance).to_string());
    }
    if let Some(int8) = int8 {
        metadata.insert(INT8_KEY.to_string(), serde_json::json!(int8).to_string());
    }
    metadata
}
