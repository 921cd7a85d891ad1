//! What the store knows about a version: written beside the model when it is published, never changed.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::disk::read_small;
use super::{MODEL, ModelName, Version};
use crate::graph::{ChannelGroups, Graph, Scope};
use crate::weights::{self, INT8_KEY, PROVENANCE_KEY, TensorFile, check_params};
use crate::{Error, Result};

pub(super) const MANIFEST: &str = "manifest.json";
/// The layout this program writes and reads.
const FORMAT: u32 = 1;

/// What the store knows about a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Layout of this file.
    pub format: u32,
    /// The model's name.
    pub name: ModelName,
    /// The version's number.
    pub version: Version,
    /// When it was published, by this device's clock, in seconds since 1970.
    pub published_unix_s: u64,
    /// Length of the model file.
    pub model_bytes: u64,
    /// SHA-256 of the model file, 64 hexadecimal digits.
    pub model_sha256: String,
    /// What the model file says about itself.
    pub model: ModelSummary,
}

/// What a model file says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSummary {
    /// The architecture's name.
    pub arch: String,
    /// Channels, height and width of the input.
    pub input: [usize; 3],
    /// Length of the logits.
    pub classes: usize,
    /// Number of parameters.
    pub params: u64,
    /// Multiply-accumulates for one image.
    pub macs: u64,
    /// Number of prunable channels; unknown of versions that were published before this was noted.
    #[serde(default)]
    pub channels: Option<u64>,
    /// Whether it is calibrated for 8-bit inference.
    pub int8: bool,
    /// Where it comes from, if this program made it.
    pub provenance: Option<Origin>,
}

/// Where a model comes from, in short; the whole is in the model file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// Version of the program that made it.
    pub version: String,
    /// SHA-256 of the teacher's weights file.
    pub teacher_sha256: String,
    /// Digest of the images it was adapted to.
    pub data_sha256: String,
}

impl Manifest {
    /// The manifest in the version's `folder`, checked as far as that goes without reading the model.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming the file that is missing, malformed, of another version or of another length.
    pub(super) fn read(folder: &Path, name: &ModelName, version: Version) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let bytes = read_small(&path)?.ok_or_else(|| Error::damaged(&path, "missing"))?;
        let manifest: Self =
            serde_json::from_slice(&bytes).map_err(|e| Error::damaged(&path, format!("not a manifest: {e}")))?;
        let fail = |field: &str, expected: &dyn std::fmt::Display, got: &dyn std::fmt::Display| {
            Err(Error::damaged(&path, format!("{field}: expected {expected}, got {got}")))
        };
        if manifest.format != FORMAT {
            return fail("format", &FORMAT, &manifest.format);
        }
        if manifest.name != *name {
            return fail("name", name, &manifest.name);
        }
        if manifest.version != version {
            return fail("version", &version, &manifest.version);
        }
        let model = folder.join(MODEL);
        let found = match fs::symlink_metadata(&model) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(Error::damaged(model, "missing")),
            found => found.map_err(|e| Error::io("read", &model, e))?,
        };
        if !found.is_file() {
            return Err(Error::damaged(model, "expected a plain file"));
        }
        if found.len() != manifest.model_bytes {
            let reason = format!("expected {} bytes, got {}", manifest.model_bytes, found.len());
            return Err(Error::damaged(model, reason));
        }
        Ok(manifest)
    }

    /// The file's content.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        format!("{:#}\n", serde_json::json!(self)).into_bytes()
    }

    /// The manifest of the first layout, published now.
    pub(super) fn new((name, version): (&ModelName, Version), model: ModelSummary, file: (u64, String)) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            format: FORMAT,
            name: name.clone(),
            version,
            published_unix_s: now.map_or(0, |since| since.as_secs()),
            model_bytes: file.0,
            model_sha256: file.1,
            model,
        }
    }
}

impl ModelSummary {
    /// Checks that the file at `path` is a whole model that needs nothing beside itself, and sums it up.
    ///
    /// # Errors
    /// [`Error::Weights`] with what is missing or does not fit; [`Error::Io`] if the file cannot be read.
    pub(super) fn check(path: &Path) -> Result<Self> {
        let fail = |reason: String| Err(Error::weights(path, reason));
        let (path, description) = weights::resolve(path)?;
        let path = path.as_path();
        description.check(path)?;
        let absent: Vec<&str> = [
            ("graph", description.graph.is_none()),
            ("class_names", description.class_names.is_none()),
            ("input_size", description.input_size.is_none()),
            ("mean", description.mean.is_none()),
            ("std", description.std.is_none()),
        ]
        .into_iter()
        .filter_map(|(field, absent)| absent.then_some(field))
        .collect();
        let Some(json) = description.graph.as_ref().filter(|_| absent.is_empty()) else {
            return fail(format!(
                "expected a model that carries all about itself in its metadata, missing: {}; `secateur export FILE \
                 --safetensors OUT` writes one",
                absent.join(", ")
            ));
        };
        let graph = Graph::from_json(json).map_err(|e| Error::weights(path, e.to_string()))?;
        let (input, classes) = (graph.input_shape(), graph.num_classes());
        if let Some(size) = description.input_size.filter(|size| *size != input) {
            return fail(format!("input_size: expected {input:?} as the graph has, got {size:?}"));
        }
        if let Some(got) = description.classes().filter(|n| *n != classes) {
            return fail(format!("num_classes: expected {classes} as the graph has, got {got}"));
        }
        let file = TensorFile::open(path)?;
        check_params(&file, &graph)?;
        let provenance = file.metadata().get(PROVENANCE_KEY).map(|json| serde_json::from_str(json)).transpose();
        let provenance = provenance.map_err(|e| Error::weights(path, format!("metadata {PROVENANCE_KEY}: {e}")))?;
        let cost = graph.cost();
        Ok(Self {
            arch: graph.name().to_string(),
            input,
            classes,
            params: cost.params,
            macs: cost.macs,
            channels: Some(ChannelGroups::new(&graph, Scope::default()).total_channels() as u64),
            int8: file.metadata().contains_key(INT8_KEY),
            provenance,
        })
    }
}
