//! The store on a real disk, in every state that a crash, damage or somebody else can leave it in.

mod crash;
mod damage;
mod locking;
mod publish;
mod remove;
mod serving;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use tempfile::TempDir;

use super::*;
use crate::weights::test_support::tiny_graph;
use crate::weights::{ModelDescription, ParamTensors, write_atomic};

/// A store in a fresh folder with a place for model files beside it.
struct Place {
    folder: TempDir,
    store: Store,
    name: ModelName,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        Self { folder, store, name: "door".parse().unwrap() }
    }

    /// With versions 1 to `count`, the last one active and all activated in turn.
    fn with_versions(count: u64) -> Self {
        let place = Self::new();
        for _ in 0..count {
            let version = place.publish();
            place.store.activate(&place.name, version).unwrap();
        }
        place
    }

    /// Publishes one more version, different from all others.
    fn publish(&self) -> Version {
        self.try_publish().unwrap()
    }

    fn try_publish(&self) -> Result<Version> {
        let value = self.store.numbers(&self.name)?.last().map_or(0.0, |v| v.0 as f32);
        self.store.publish(&self.name, &self.model(value))
    }

    /// A model file whose parameters all are `value`.
    fn model(&self, value: f32) -> PathBuf {
        let path = self.folder.path().join("door.safetensors");
        write_atomic(&path, &params(value), &description().to_metadata()).unwrap();
        path
    }

    /// A file or folder of the model in the store.
    fn path(&self, inside: &str) -> PathBuf {
        self.store.folder(&self.name).join(inside)
    }

    fn reopened(&self) -> Store {
        Store::open(self.store.root()).unwrap()
    }

    fn versions(&self) -> Vec<u64> {
        self.store.versions(&self.name).unwrap().into_iter().map(|v| v.0).collect()
    }

    fn active(&self) -> Option<u64> {
        self.store.active(&self.name).unwrap().map(|v| v.0)
    }

    fn last_good(&self) -> Option<u64> {
        self.store.last_good(&self.name).unwrap().map(|v| v.0)
    }

    /// Fails unless every version and the pointer are right.
    #[track_caller]
    fn check_sound(&self) {
        for version in self.store.numbers(&self.name).unwrap() {
            self.store.verify(&self.name, version).unwrap();
        }
        self.store.verify_active(&self.name).unwrap();
    }
}

fn params(value: f32) -> ParamTensors {
    let full = |shape: Vec<usize>| Tensor::full(value, shape, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    tiny_graph(3).params().map(|spec| (spec.name, full(spec.shape))).collect()
}

fn description() -> ModelDescription {
    ModelDescription {
        arch: Some("tiny".into()),
        graph: Some(tiny_graph(3).to_json()),
        num_classes: Some(3),
        class_names: Some(vec!["a".into(), "b".into(), "c".into()]),
        mean: Some(vec![0.5]),
        std: Some(vec![0.5]),
        input_size: Some([1, 8, 8]),
        ..ModelDescription::default()
    }
}

/// The names in a folder, sorted.
fn listing(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Writes a file that is read-only.
fn overwrite(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}
