//! Checkpoints: everything a run needs to go on bit for bit, in one safetensors file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::latency::LatencyTable;
use super::observer::Phase;
use super::report::{AdaptedBy, CandidateFigures, PhaseReport};
use super::survey::Survey;
use crate::data::LoaderState;
use crate::model::Params;
use crate::weights::{self, TensorFile};
use crate::{Error, Result};

const META_KEY: &str = "secateur.checkpoint";

/// What identifies a run: a checkpoint of another run is refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// SHA-256 of the teacher's file.
    pub teacher_sha256: String,
    /// Digest of the target images.
    pub data_sha256: String,
    /// The configuration.
    pub config: Value,
}

/// The scalars of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The run.
    pub identity: RunIdentity,
    /// The phase to go on with.
    pub phase: Phase,
    /// Steps of it that are done.
    pub step: usize,
    /// Where the loader stands, and the source replay's, if any.
    pub loader: LoaderState,
    /// The labelled source's loader, if there is one.
    pub source_loader: Option<LoaderState>,
    /// Seconds of work before this checkpoint.
    pub wall_s: f64,
    /// What is reported so far.
    pub reports: Vec<PhaseReport>,
    /// What phase 1 ended with, once it has.
    pub adapted_by: Option<AdaptedBy>,
    /// What phase 1 chose among.
    #[serde(default)]
    pub candidates: Vec<CandidateFigures>,
    /// What phase 1 found out before training, once it has.
    #[serde(default)]
    pub survey: Option<Survey>,
    /// What was measured for a budget of latency.
    #[serde(default)]
    pub latency: Option<LatencyTable>,
}

/// A saved moment of a run: scalars, and named tensors in sections (`SECTION/NAME`).
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The scalars.
    pub progress: Progress,
    /// The tensors.
    pub tensors: Sections,
}

/// Tensors by section and name.
#[derive(Debug, Clone, Default)]
pub struct Sections(BTreeMap<String, Tensor>);

impl Sections {
    /// Adds all of `tensors` under `section`.
    pub fn put(&mut self, section: &str, tensors: impl IntoIterator<Item = (String, Tensor)>) {
        self.0.extend(tensors.into_iter().map(|(name, tensor)| (format!("{section}/{name}"), tensor)));
    }

    /// Adds a list of numbers.
    pub fn put_list(&mut self, section: &str, name: &str, values: &[f32]) -> Result<()> {
        // An empty tensor cannot be stored; an absent one reads back as an empty list.
        if !values.is_empty() {
            self.put(section, [(name.to_string(), Tensor::from_slice(values, values.len(), &Device::Cpu)?)]);
        }
        Ok(())
    }

    /// All tensors of `section`, on `device`.
    pub fn get(&self, section: &str, device: &Device) -> Result<Params> {
        let prefix = format!("{section}/");
        let own = self.0.iter().filter_map(|(key, t)| Some((key.strip_prefix(&prefix)?.to_string(), t)));
        own.map(|(name, tensor)| Ok((name, tensor.to_device(device)?))).collect()
    }

    /// A list of numbers.
    pub fn get_list(&self, section: &str, name: &str) -> Result<Vec<f32>> {
        Ok(self.0.get(&format!("{section}/{name}")).map(Tensor::to_vec1).transpose()?.unwrap_or_default())
    }
}

impl Checkpoint {
    /// Writes the checkpoint: atomic and durable.
    ///
    /// # Errors
    /// [`Error::Io`] naming the path; the checkpoint before stays.
    pub fn save(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_string(&self.progress)
            .map_err(|e| Error::weights(path, format!("checkpoint cannot be written as JSON: {e}")))?;
        weights::write_atomic(path, &self.tensors.0, &BTreeMap::from([(META_KEY.to_string(), json)]))
    }

    /// Reads a checkpoint.
    ///
    /// # Errors
    /// [`Error::Weights`] if the file is damaged or no checkpoint.
    pub fn load(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let json = file
            .metadata()
            .get(META_KEY)
            .ok_or_else(|| Error::weights(path, format!("not a checkpoint: metadata {META_KEY} is missing")))?;
        let progress = serde_json::from_str(json)
            .map_err(|e| Error::weights(path, format!("checkpoint metadata {META_KEY} is damaged: {e}")))?;
        let names: Vec<String> = file.names().map(str::to_string).collect();
        let tensors = names
            .into_iter()
            .map(|name| Ok((name.clone(), file.read_tensor(&name, &Device::Cpu)?)))
            .collect::<Result<_>>()?;
        Ok(Self { progress, tensors: Sections(tensors) })
    }

    /// Makes sure the checkpoint belongs to `run`.
    ///
    /// # Errors
    /// [`Error::Config`] naming what differs.
    pub fn check(&self, path: &Path, run: &RunIdentity) -> Result<()> {
        let saved = &self.progress.identity;
        let differs = if saved.teacher_sha256 != run.teacher_sha256 {
            "the teacher differs".to_string()
        } else if saved.data_sha256 != run.data_sha256 {
            "the target images differ".to_string()
        } else if let Some((setting, was, is)) = first_difference(&saved.config, &run.config) {
            format!("the configuration differs, {setting} was {was} and is {is},")
        } else {
            return Ok(());
        };
        Err(Error::Config(format!(
            "{}: {differs} from the run that wrote this checkpoint; repeat that run's command to resume it, or throw it \
             away with --restart",
            path.display()
        )))
    }
}

/// The first setting in which two configurations differ, as `section.key`, and its values.
fn first_difference(was: &Value, is: &Value) -> Option<(String, Value, Value)> {
    let (Value::Object(old), Value::Object(new)) = (was, is) else {
        return (was != is).then(|| (String::new(), was.clone(), is.clone()));
    };
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    keys.into_iter().find_map(|key| {
        let of = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
        let (inner, was, is) = first_difference(&of(old), &of(new))?;
        Some((if inner.is_empty() { key.clone() } else { format!("{key}.{inner}") }, was, is))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_setting_that_differs_is_named() {
        let config = json!({"seed": 1, "mask": {"steps": 5, "rates": [1.0, 2.0]}});
        assert_eq!(first_difference(&config, &config), None);
        let mut other = config.clone();
        other["mask"]["rates"] = json!([1.0, 3.0]);
        let expected = ("mask.rates".to_string(), json!([1.0, 2.0]), json!([1.0, 3.0]));
        assert_eq!(first_difference(&config, &other), Some(expected));
        let shorter = json!({"seed": 1});
        let (setting, was, is) = first_difference(&config, &shorter).unwrap();
        assert_eq!((setting.as_str(), was, is), ("mask", config["mask"].clone(), Value::Null));
    }
}
