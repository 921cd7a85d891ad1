//! Finds a model's weights file and gathers what its files say about it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::describe::mismatch;
use super::{ModelDescription, TensorFile};
use crate::{Error, Result};

/// Names of weights files in a model folder, the usual one first.
const WEIGHTS_NAMES: [&str; 2] = ["model.safetensors", "pytorch_model.safetensors"];
/// The description that timm and transformers put beside the weights.
const CONFIG_NAME: &str = "config.json";
/// Even the names of 21 000 classes take less.
const MAX_CONFIG_BYTES: u64 = 32 << 20;

/// Finds the weights file at `path`, a file or a model folder, and what is known about the model.
///
/// A folder holds `model.safetensors`, `pytorch_model.safetensors` or a single other `*.safetensors`. The description
/// comes from `config.json` beside the file (timm's or transformers' layout); the file's own metadata goes before it.
/// Let flags go before both with [`ModelDescription::overridden_by`], then [`ModelDescription::check`] the whole.
///
/// # Errors
/// [`Error::Io`] if something cannot be read; [`Error::Weights`] if there is no weights file or more than one, if it
/// is no safetensors file, or if a field is malformed.
pub fn resolve(path: &Path) -> Result<(PathBuf, ModelDescription)> {
    let kind = fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
    let weights = if kind.is_dir() { weights_in(path)? } else { path.to_path_buf() };
    let own = from_metadata(&weights, TensorFile::open(&weights)?.metadata())?;
    let beside = weights.with_file_name(CONFIG_NAME);
    let shared = if beside.is_file() { from_config(&beside)? } else { ModelDescription::default() };
    Ok((weights, shared.overridden_by(own)))
}

fn weights_in(folder: &Path) -> Result<PathBuf> {
    if let Some(usual) = WEIGHTS_NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file()) {
        return Ok(usual);
    }
    let fail = |e| Error::io("list", folder, e);
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension() == Some(OsStr::new("safetensors")) && path.is_file() {
            found.insert(path);
        }
    }
    if found.len() > 1 {
        let names: Vec<_> = found.iter().filter_map(|path| path.file_name()).map(OsStr::to_string_lossy).collect();
        let reason = format!("expected one safetensors file, got several, name one: {}", names.join(", "));
        return Err(Error::weights(folder, reason));
    }
    found.pop_first().ok_or_else(|| Error::weights(folder, "expected a folder with model.safetensors, got none"))
}

/// The description in a safetensors file's metadata, where every value is a string.
fn from_metadata(file: &Path, metadata: &BTreeMap<String, String>) -> Result<ModelDescription> {
    let mut fields = Map::new();
    for (key, text) in metadata {
        let value = match key.as_str() {
            "arch" | "interpolation" => Value::String(text.clone()),
            "class_names" if !text.trim_start().starts_with('[') => {
                text.split(',').map(|name| Value::String(name.trim().to_string())).collect()
            }
            "graph" | "num_classes" | "class_names" | "mean" | "std" | "input_size" | "crop_pct" => {
                serde_json::from_str(text).map_err(|e| mismatch(file, key, &format!("JSON ({e})"), text))?
            }
            _ => continue,
        };
        fields.insert(key.clone(), value);
    }
    ModelDescription::from_fields(file, &fields)
}

/// The description in a `config.json`. A field stands at the top level, or under `pretrained_cfg` as timm writes it.
fn from_config(file: &Path) -> Result<ModelDescription> {
    let fail = |e| Error::io("read", file, e);
    let length = fs::metadata(file).map_err(fail)?.len();
    if length > MAX_CONFIG_BYTES {
        return Err(Error::weights(file, format!("expected at most {MAX_CONFIG_BYTES} bytes, got {length}")));
    }
    let bytes = fs::read(file).map_err(fail)?;
    let parsed: Value =
        serde_json::from_slice(&bytes).map_err(|e| Error::weights(file, format!("expected JSON: {e}")))?;
    let top = parsed.as_object().ok_or_else(|| mismatch(file, "the file", "a JSON object", &parsed))?;
    let find = |key: &str| {
        let nested = || parsed.get("pretrained_cfg")?.get(key);
        top.get(key).filter(|v| !v.is_null()).or_else(nested).filter(|v| !v.is_null()).cloned()
    };
    let mut fields = Map::new();
    for key in ["graph", "num_classes", "class_names", "mean", "std", "input_size", "crop_pct", "interpolation"] {
        fields.extend(find(key).map(|value| (key.to_string(), value)));
    }
    for (key, theirs) in [("arch", "arch"), ("arch", "architecture"), ("class_names", "label_names")] {
        fields.extend(find(theirs).map(|value| (key.to_string(), value)));
    }
    if let (false, Some(labels)) = (fields.contains_key("class_names"), find("id2label")) {
        fields.insert("class_names".into(), names_by_id(file, &labels)?);
    }
    ModelDescription::from_fields(file, &fields)
}

/// The names in transformers' `id2label`, `{"0": "cat", "1": "dog"}`, in the order of their numbers.
fn names_by_id(file: &Path, labels: &Value) -> Result<Value> {
    let fail = || mismatch(file, "id2label", "an object that names classes \"0\", \"1\" and so on once each", labels);
    let labels = labels.as_object().ok_or_else(fail)?;
    let by_id: BTreeMap<usize, &Value> =
        labels.iter().map(|(id, name)| Some((id.parse().ok()?, name))).collect::<Option<_>>().ok_or_else(fail)?;
    if by_id.len() != labels.len() || !by_id.keys().copied().eq(0..labels.len()) {
        return Err(fail());
    }
    Ok(by_id.into_values().cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::test_support::teachers;
    use crate::weights::{load_params, test_support::tiny_graph, write_atomic};

    fn write(folder: &Path, name: &str, metadata: &[(&str, &str)]) -> PathBuf {
        let path = folder.join(name);
        let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        write_atomic(&path, &BTreeMap::new(), &metadata).unwrap();
        path
    }

    fn described(config: &str, metadata: &[(&str, &str)]) -> Result<ModelDescription> {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "model.safetensors", metadata);
        if !config.is_empty() {
            fs::write(folder.path().join(CONFIG_NAME), config).unwrap();
        }
        resolve(folder.path()).map(|(_, description)| description)
    }

    #[test]
    fn a_folder_leads_to_its_weights_file() {
        let folder = tempfile::tempdir().unwrap();
        let found = || resolve(folder.path()).map(|(path, _)| path);
        let got = found().unwrap_err().to_string();
        assert!(got.contains("expected a folder with model.safetensors"), "{got}");
        let a = write(folder.path(), "a.safetensors", &[]);
        fs::write(folder.path().join(".a.safetensors.1-0.tmp"), "left by a crash").unwrap();
        assert_eq!(found().unwrap(), a);
        write(folder.path(), "b.safetensors", &[]);
        let got = found().unwrap_err().to_string();
        assert!(got.contains("got several, name one: a.safetensors, b.safetensors"), "{got}");
        assert_eq!(resolve(&a).unwrap().0, a);
        for name in ["pytorch_model.safetensors", "model.safetensors"] {
            let usual = write(folder.path(), name, &[]);
            assert_eq!(found().unwrap(), usual);
        }
        let missing = resolve(&folder.path().join("none")).unwrap_err();
        assert!(matches!(missing, Error::Io { .. }), "{missing}");
    }

    #[test]
    fn timm_config_is_read() {
        let config = r#"{"architecture": "resnet18", "num_classes": 2, "num_features": 512, "label_names": ["cat", "dog"],
            "pretrained_cfg": {"input_size": [3, 224, 224], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
            "interpolation": "bilinear", "crop_pct": 0.875, "num_classes": 1000, "label_names": null, "first_conv": "conv1"}}"#;
        let got = described(config, &[]).unwrap();
        assert_eq!(got.arch.as_deref(), Some("resnet18"));
        assert_eq!((got.num_classes, got.input_size), (Some(2), Some([3, 224, 224])));
        assert_eq!(got.class_names.unwrap(), ["cat", "dog"]);
        assert_eq!((got.mean.unwrap()[0], got.std.unwrap()[2]), (0.485, 0.225));
        assert_eq!((got.crop_pct, got.interpolation.as_deref()), (Some(0.875), Some("bilinear")));
    }

    #[test]
    fn class_names_of_transformers_are_put_in_order() {
        let names: Map<String, Value> = (0..12).rev().map(|i| (i.to_string(), format!("c{i}").into())).collect();
        let config = Value::from(Map::from_iter([("id2label".to_string(), Value::from(names))]));
        let got = described(&config.to_string(), &[]).unwrap();
        assert_eq!(got.class_names.unwrap(), (0..12).map(|i| format!("c{i}")).collect::<Vec<_>>());
        for labels in [r#"{"1":"a"}"#, r#"{"0":"a","00":"b"}"#, r#"{"x":"a"}"#, r#"["a"]"#] {
            let got = described(&format!(r#"{{"id2label":{labels}}}"#), &[]).unwrap_err().to_string();
            assert!(got.contains("config.json: id2label: expected an object"), "{got}");
        }
    }

    #[test]
    fn metadata_goes_before_config() {
        let config = r#"{"architecture": "a", "num_classes": 2, "crop_pct": 0.9}"#;
        let metadata =
            [("arch", "b"), ("class_names", "x, y"), ("mean", "[0.5]"), ("std", "[0.5]"), ("source", "here")];
        let got = described(config, &metadata).unwrap();
        assert_eq!((got.arch.as_deref(), got.num_classes, got.crop_pct), (Some("b"), Some(2), Some(0.9)));
        assert_eq!(got.class_names.unwrap(), ["x", "y"]);
    }

    #[test]
    fn malformed_files_are_named_with_their_field() {
        for (config, metadata, expected) in [
            ("{", &[][..], "config.json: expected JSON"),
            ("[]", &[], "config.json: the file: expected a JSON object, got []"),
            (r#"{"pretrained_cfg": {"std": [0.1, 0, 0.1]}}"#, &[], "config.json: std: expected values above 0"),
            ("", &[("num_classes", "ten")], "model.safetensors: num_classes: expected JSON"),
            ("", &[("mean", "[0.5"), ("arch", "a")], "model.safetensors: mean: expected JSON"),
            ("", &[("input_size", "224")], "model.safetensors: input_size: expected three whole numbers"),
            ("", &[("num_classes", "3"), ("class_names", "a,b")], "class_names: expected 3 names"),
        ] {
            let got = described(config, metadata).unwrap_err().to_string();
            assert!(got.contains(expected), "expected {expected:?} in {got:?}");
        }
    }

    #[test]
    fn a_description_written_as_metadata_is_read_back() {
        let description = ModelDescription {
            arch: Some("tiny".into()),
            graph: Some(tiny_graph(2).to_json()),
            num_classes: Some(2),
            class_names: Some(vec!["a, b".into(), "\"c\"".into()]),
            mean: Some(vec![0.1, 1.0 / 3.0, 0.0]),
            std: Some(vec![0.1, 0.2, 1.0]),
            input_size: Some([3, 8, 8]),
            crop_pct: Some(0.1 + 0.2),
            interpolation: Some("bicubic".into()),
        };
        let metadata = description.to_metadata();
        let borrowed: Vec<(&str, &str)> = metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(described("", &borrowed).unwrap(), description);
    }

    #[test]
    fn trained_teachers_describe_themselves() {
        let Some(folder) = teachers() else { return };
        let (path, got) = resolve(&folder.join("efficientnet_lite0-office31-amazon.safetensors")).unwrap();
        assert_eq!((got.arch.as_deref(), got.num_classes), (Some("efficientnet_lite0"), Some(31)));
        assert_eq!(got.class_names.as_ref().unwrap()[30], "trash_can");
        assert_eq!(got.input_size, Some([3, 224, 224]));
        got.check(&path).unwrap();
        let file = TensorFile::open(&path).unwrap();
        let reason = load_params(&file, &tiny_graph(31), &candle_core::Device::Cpu).unwrap_err().to_string();
        assert!(reason.contains("7 of 7 tensors are missing") && reason.contains("is this a tiny?"), "{reason}");
        let several = resolve(&folder).unwrap_err().to_string();
        assert!(several.contains("got several"), "{several}");
    }
}
