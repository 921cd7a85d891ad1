//! The teacher: a frozen network from a weights file, with everything needed to run it.

use std::path::Path;

use candle_core::Device;

use super::compact::metadata;
use super::{ModelInfo, Params, Provenance};
use crate::arch::{self, ArchOptions};
use crate::data::{Interpolation, Preprocess};
use crate::engine::Calibration;
use crate::graph::Graph;
use crate::weights::{self, INT8_KEY, ModelDescription, PROVENANCE_KEY, TensorFile};
use crate::{Error, Result};

/// A validated, frozen network. A student file loads as a teacher too, so adaptation can be repeated.
#[derive(Debug, Clone)]
pub struct Teacher {
    /// Architecture.
    pub graph: Graph,
    /// Tensors, f32.
    pub params: Params,
    /// Classes and preprocessing.
    pub info: ModelInfo,
    /// SHA-256 of the weights file.
    pub sha256: String,
    /// Where it comes from, if this program made it.
    pub provenance: Option<Provenance>,
    /// What 8-bit inference needs, if the model was calibrated.
    pub int8: Option<Calibration>,
}

impl Teacher {
    /// Loads `path`, a safetensors file or a model folder; `flags` go before what the files say.
    ///
    /// # Errors
    /// [`Error::Weights`] or [`Error::Config`] naming file and field: no architecture known, tensors that are missing,
    /// extra, misshapen or not finite, preprocessing that does not fit.
    pub fn load(path: &Path, flags: ModelDescription, device: &Device) -> Result<Self> {
        let (file_path, found) = weights::resolve(path)?;
        let description = found.overridden_by(flags);
        description.check(&file_path)?;
        let file = TensorFile::open(&file_path)?;
        let graph = graph(&file_path, &description, &file)?;
        let params = weights::load_params(&file, &graph, device)?;
        let provenance = own_entry(&file_path, &file, PROVENANCE_KEY)?;
        let int8 = own_entry(&file_path, &file, INT8_KEY)?;
        // The mapping would hold the tensors a second time on unified memory.
        drop(file);
        let info = info(&file_path, &description, &graph)?;
        Ok(Self { graph, params, info, sha256: weights::sha256_file(&file_path)?, provenance, int8 })
    }

    /// Writes one safetensors file that carries its own graph and everything else. Atomic and durable.
    ///
    /// # Errors
    /// [`Error::Io`] naming the path; an older file stays as it was.
    pub fn save(&self, path: &Path) -> Result<()> {
        let own = metadata((&self.graph, &self.info), self.provenance.as_ref(), self.int8.as_ref());
        weights::write_atomic(path, &self.params, &own)
    }
}

/// A metadata entry that only this program writes.
fn own_entry<T: serde::de::DeserializeOwned>(path: &Path, file: &TensorFile, key: &str) -> Result<Option<T>> {
    let Some(json) = file.metadata().get(key) else { return Ok(None) };
    let entry = serde_json::from_str(json);
    entry.map(Some).map_err(|e| Error::weights(path, format!("metadata {key}: not what this program writes: {e}")))
}

fn graph(path: &Path, description: &ModelDescription, file: &TensorFile) -> Result<Graph> {
    let named = |error: Error| match error {
        Error::Shape(reason) | Error::Config(reason) => Error::weights(path, reason),
        other => other,
    };
    let graph = match (&description.graph, &description.arch) {
        (Some(json), _) => Graph::from_json(json).map_err(named)?,
        (None, Some(name)) => {
            let input = description.input_size.map_or_else(|| arch::default_input(name), Ok).map_err(named)?;
            let num_classes = match description.classes() {
                Some(classes) => classes,
                None => classes_in_file(path, name, input, file).map_err(named)?,
            };
            arch::build(name, &ArchOptions { num_classes, input }).map_err(named)?
        }
        (None, None) => {
            return Err(Error::weights(
                path,
                format!(
                    "expected an architecture in the file's metadata (arch), in config.json (architecture) or as \
                     --arch, got none; known: {}",
                    arch::names().join(", ")
                ),
            ));
        }
    };
    match description.input_size {
        Some([channels, h, w]) if graph.input_shape() != [channels, h, w] => {
            if channels != graph.input_shape()[0] {
                let reason = format!("input_size: expected {} channels, got {channels}", graph.input_shape()[0]);
                return Err(Error::weights(path, reason));
            }
            graph.resized(h, w).map_err(named)
        }
        _ => Ok(graph),
    }
}

/// What may stand in front of every name in a file.
const WRAPPERS: [&str; 5] = ["", "module.", "model.", "module.model.", "model.module."];

/// The class count a file without metadata shows by its classifier's shape.
fn classes_in_file(path: &Path, name: &str, input: [usize; 3], file: &TensorFile) -> Result<usize> {
    let probe = arch::build(name, &ArchOptions { num_classes: 2, input })?;
    let classifier = format!("{}.weight", probe.nodes()[probe.output()].name);
    // Behind the prefixes that training wrappers put in front of every name, which loading leaves out too.
    let wrapped = |name: &&str| name.strip_suffix(&classifier).is_some_and(|p| WRAPPERS.contains(&p));
    match file.info(file.names().find(wrapped).unwrap_or(&classifier)) {
        Ok((_, [classes, _])) => Ok(*classes),
        _ => {
            Err(Error::weights(path, format!("num_classes: not given, and there is no tensor {classifier} to tell it")))
        }
    }
}

pub(super) fn info(path: &Path, description: &ModelDescription, graph: &Graph) -> Result<ModelInfo> {
    let [channels, height, width] = graph.input_shape();
    let defaults = Preprocess::default();
    let narrow = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<f32>>();
    // A grey model without statistics of its own gets the mean of ImageNet's channels.
    let fitted = |values: Vec<f32>| match channels {
        3 => values,
        _ => vec![values.iter().sum::<f32>() / values.len() as f32; channels],
    };
    let preprocess = Preprocess {
        channels,
        height,
        width,
        mean: description.mean.as_deref().map_or_else(|| fitted(defaults.mean), narrow),
        std: description.std.as_deref().map_or_else(|| fitted(defaults.std), narrow),
        crop_pct: description.crop_pct.unwrap_or(1.0) as f32,
        interpolation: match description.interpolation.as_deref() {
            None | Some("bilinear") => Interpolation::Bilinear,
            Some("bicubic") => Interpolation::Bicubic,
            Some(other) => {
                log::warn!(
                    "interpolation is not supported, bicubic is used instead path={} interpolation={other}",
                    path.display()
                );
                Interpolation::Bicubic
            }
        },
    };
    preprocess.validate().map_err(|e| Error::weights(path, e.to_string()))?;
    let classes = graph.num_classes();
    let class_names = match &description.class_names {
        Some(names) if names.len() == classes => names.clone(),
        Some(names) => {
            return Err(Error::weights(path, format!("class_names: expected {classes} names, got {}", names.len())));
        }
        None => (0..classes).map(|c| c.to_string()).collect(),
    };
    if let Some(wanted) = description.num_classes.filter(|n| *n != classes) {
        return Err(Error::weights(path, format!("num_classes: expected {classes} as the graph has, got {wanted}")));
    }
    Ok(ModelInfo { class_names, preprocess })
}

/// The filter's name in timm's files.
pub(super) const fn filter_name(interpolation: Interpolation) -> &'static str {
    match interpolation {
        Interpolation::Bilinear => "bilinear",
        Interpolation::Bicubic => "bicubic",
    }
}

#[cfg(test)]
mod tests;
