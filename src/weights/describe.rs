//! What is known about a model beside its tensors: architecture, classes, preprocessing.
//!
//! Every source (a `config.json`, a file's metadata, flags) is brought to the same fields and checked in the same
//! way; a value that cannot be right is refused with its file, its field, what was expected and what was found.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// Names of resampling filters, as timm and Pillow spell them.
const FILTERS: [&str; 6] = ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"];
/// Larger images are a mistake in the file.
const MAX_IMAGE_SIDE: usize = 16_384;

/// Metadata key of what a compact model was made from, as JSON.
pub const PROVENANCE_KEY: &str = "secateur.provenance";
/// Metadata key of what 8-bit inference needs, as JSON.
pub const INT8_KEY: &str = "secateur.int8";

/// What a model's files and flags say about it; `None` where nobody said anything.
///
/// Numbers are on the scale of pixel values divided by 255.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ModelDescription {
    /// The architecture's name.
    pub arch: Option<String>,
    /// The architecture itself, as [`crate::graph::Graph::to_json`] gives it.
    pub graph: Option<Value>,
    /// Length of the logits.
    pub num_classes: Option<usize>,
    /// The classes' names in the order of the logits.
    pub class_names: Option<Vec<String>>,
    /// Mean of each channel, subtracted from the image.
    pub mean: Option<Vec<f64>>,
    /// Standard deviation of each channel, by which the image is divided.
    pub std: Option<Vec<f64>>,
    /// Channels, height and width of the input.
    pub input_size: Option<[usize; 3]>,
    /// The fraction of the resized image that the central crop keeps.
    pub crop_pct: Option<f64>,
    /// The filter for resizing: nearest, bilinear, bicubic, lanczos, box or hamming.
    pub interpolation: Option<String>,
}

impl ModelDescription {
    /// This description with the fields that `other` has put in place of its own.
    pub fn overridden_by(self, other: Self) -> Self {
        Self {
            arch: other.arch.or(self.arch),
            graph: other.graph.or(self.graph),
            num_classes: other.num_classes.or(self.num_classes),
            class_names: other.class_names.or(self.class_names),
            mean: other.mean.or(self.mean),
            std: other.std.or(self.std),
            input_size: other.input_size.or(self.input_size),
            crop_pct: other.crop_pct.or(self.crop_pct),
            interpolation: other.interpolation.or(self.interpolation),
        }
    }

    /// The class count: given, or counted from the names.
    pub fn classes(&self) -> Option<usize> {
        self.num_classes.or(self.class_names.as_ref().map(Vec::len))
    }

    /// Checks every value and that the fields agree with each other; `file` is named in errors.
    ///
    /// # Errors
    /// [`Error::Weights`] with the field, what was expected and what was found.
    pub fn check(&self, file: &Path) -> Result<()> {
        let fail = |field: &str, expected: &str, got: &dyn std::fmt::Display| Err(mismatch(file, field, expected, got));
        if self.num_classes == Some(0) {
            return fail("num_classes", "at least 1", &0);
        }
        if let Some(names) = &self.class_names {
            let wanted = self.num_classes.unwrap_or(names.len().max(1));
            if names.len() != wanted {
                return fail("class_names", &format!("{wanted} names (num_classes)"), &names.len());
            }
            if let Some(at) = names.iter().position(|name| name.trim().is_empty()) {
                return fail("class_names", "a name for every class", &format!("an empty one at index {at}"));
            }
        }
        if let Some(size) = self.input_size
            && size.iter().any(|side| !(1..=MAX_IMAGE_SIDE).contains(side))
        {
            return fail("input_size", &format!("three sides of 1 to {MAX_IMAGE_SIDE}"), &json!(size));
        }
        self.check_normalisation(file)?;
        if let Some(pct) = self.crop_pct
            && !(pct > 0.0 && pct <= 1.0)
        {
            return fail("crop_pct", "above 0 and at most 1", &pct);
        }
        if let Some(filter) = &self.interpolation
            && !FILTERS.contains(&filter.as_str())
        {
            return fail("interpolation", &format!("one of {}", FILTERS.join(", ")), filter);
        }
        Ok(())
    }

    fn check_normalisation(&self, file: &Path) -> Result<()> {
        let channels = self.input_size.map(|[channels, ..]| channels);
        for (field, values) in [("mean", &self.mean), ("std", &self.std)] {
            let Some(values) = values else { continue };
            let other = self.mean.as_ref().map_or(values.len(), Vec::len);
            let wanted = channels.unwrap_or(other);
            if values.len() != wanted || values.is_empty() {
                let expected = format!("{} values, one for each channel", wanted.max(1));
                return Err(mismatch(file, field, &expected, &json!(values)));
            }
            let in_range = |v: &f64| if field == "std" { *v > 0.0 && *v <= 1.0 } else { (0.0..=1.0).contains(v) };
            if !values.iter().all(in_range) {
                let low = if field == "std" { "above 0" } else { "of at least 0" };
                let expected = format!("values {low} and at most 1 (pixel values divided by 255)");
                return Err(mismatch(file, field, &expected, &json!(values)));
            }
        }
        Ok(())
    }

    /// The fields that are known, as metadata for [`super::write_atomic`]; [`super::resolve`] reads them back.
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        let text = |value: &Option<String>| value.clone();
        let fields: [(&str, Option<String>); 9] = [
            ("arch", text(&self.arch)),
            ("graph", self.graph.as_ref().map(Value::to_string)),
            ("num_classes", self.num_classes.map(|n| n.to_string())),
            ("class_names", self.class_names.as_ref().map(|names| json!(names).to_string())),
            ("mean", self.mean.as_ref().map(|values| json!(values).to_string())),
            ("std", self.std.as_ref().map(|values| json!(values).to_string())),
            ("input_size", self.input_size.map(|size| json!(size).to_string())),
            ("crop_pct", self.crop_pct.map(|pct| json!(pct).to_string())),
            ("interpolation", text(&self.interpolation)),
        ];
        fields.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?))).collect()
    }

    /// Reads the fields of a JSON object; other keys and nulls are ignored.
    pub(super) fn from_fields(file: &Path, fields: &Map<String, Value>) -> Result<Self> {
        let field = |name| Field { file, name, value: fields.get(name).filter(|v| !v.is_null()) };
        let graph = field("graph").read("an object", |v| v.is_object().then(|| v.clone()))?;
        let count = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        let word = |v: &Value| v.as_str().map(str::to_string).filter(|s| !s.trim().is_empty());
        let numbers = |v: &Value| v.as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>();
        let description = Self {
            arch: field("arch").read("a name", word)?,
            graph,
            num_classes: field("num_classes").read("a whole number", count)?,
            class_names: field("class_names").read("a list of names", |v| {
                v.as_array()?.iter().map(|name| name.as_str().map(str::to_string)).collect()
            })?,
            mean: field("mean").read("a list of numbers", numbers)?,
            std: field("std").read("a list of numbers", numbers)?,
            input_size: field("input_size").read("three whole numbers [channels, height, width]", |v| {
                v.as_array()?.iter().map(count).collect::<Option<Vec<usize>>>()?.try_into().ok()
            })?,
            crop_pct: field("crop_pct").read("a number", Value::as_f64)?,
            interpolation: field("interpolation").read("the name of a filter", word)?.map(|f| f.to_lowercase()),
        };
        description.check(file)?;
        Ok(description)
    }
}

/// One field of one file, for its errors.
struct Field<'a> {
    file: &'a Path,
    name: &'static str,
    value: Option<&'a Value>,
}

impl Field<'_> {
    fn read<T>(self, expected: &str, parse: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.value else { return Ok(None) };
        parse(value).map(Some).ok_or_else(|| mismatch(self.file, self.name, expected, value))
    }
}

/// The error for a field with an impossible value; a long value is cut.
pub(super) fn mismatch(file: &Path, field: &str, expected: &str, got: &dyn std::fmt::Display) -> Error {
    let mut got = got.to_string();
    if let Some((cut, _)) = got.char_indices().nth(120) {
        got.truncate(cut);
        got.push('…');
    }
    Error::weights(file, format!("{field}: expected {expected}, got {got}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: Value) -> Result<ModelDescription> {
        ModelDescription::from_fields(Path::new("x/config.json"), fields.as_object().unwrap())
    }

    #[test]
    fn fields_are_read_and_other_keys_and_nulls_ignored() {
        let got =
            read(json!({"arch": "resnet18", "num_classes": 2, "class_names": ["a", "b"], "mean": [0.5], "std": [1],
            "input_size": [1, 28, 28], "crop_pct": 0.875, "interpolation": "Bicubic", "graph": null, "fixed": true}))
            .unwrap();
        let expected = ModelDescription {
            arch: Some("resnet18".into()),
            graph: None,
            num_classes: Some(2),
            class_names: Some(vec!["a".into(), "b".into()]),
            mean: Some(vec![0.5]),
            std: Some(vec![1.0]),
            input_size: Some([1, 28, 28]),
            crop_pct: Some(0.875),
            interpolation: Some("bicubic".into()),
        };
        assert_eq!(got, expected);
        assert_eq!(read(json!({})).unwrap(), ModelDescription::default());
    }

    #[test]
    fn impossible_values_name_file_field_expected_and_got() {
        let three = json!([3, 8, 8]);
        for (fields, expected) in [
            (json!({"arch": 5}), "arch: expected a name, got 5"),
            (json!({"arch": " "}), "arch: expected a name"),
            (json!({"graph": "x"}), "graph: expected an object"),
            (json!({"num_classes": -1}), "num_classes: expected a whole number, got -1"),
            (json!({"num_classes": "ten"}), "num_classes: expected a whole number, got \"ten\""),
            (json!({"num_classes": 0}), "num_classes: expected at least 1, got 0"),
            (json!({"num_classes": 3, "class_names": ["a"]}), "class_names: expected 3 names (num_classes), got 1"),
            (json!({"class_names": []}), "class_names: expected 1 names"),
            (
                json!({"class_names": ["a", ""]}),
                "class_names: expected a name for every class, got an empty one at index 1",
            ),
            (json!({"class_names": "a"}), "class_names: expected a list of names"),
            (
                json!({"mean": [0.1, 0.2], "input_size": three}),
                "mean: expected 3 values, one for each channel, got [0.1,0.2]",
            ),
            (json!({"mean": [0.1], "std": [0.1, 0.2]}), "std: expected 1 values, one for each channel, got [0.1,0.2]"),
            (json!({"mean": []}), "mean: expected 1 values, one for each channel, got []"),
            (json!({"mean": ["a"]}), "mean: expected a list of numbers"),
            (
                json!({"mean": [123.7]}),
                "mean: expected values of at least 0 and at most 1 (pixel values divided by 255)",
            ),
            (json!({"std": [0.2, 0.0, 0.2]}), "std: expected values above 0 and at most 1"),
            (
                json!({"input_size": ["3", "224", "224"]}),
                "input_size: expected three whole numbers [channels, height, width], got [\"3\"",
            ),
            (json!({"input_size": [224, 224]}), "input_size: expected three whole numbers"),
            (json!({"input_size": [3, 0, 224]}), "input_size: expected three sides of 1 to 16384, got [3,0,224]"),
            (json!({"crop_pct": 0}), "crop_pct: expected above 0 and at most 1, got 0"),
            (json!({"crop_pct": 87.5}), "crop_pct: expected above 0 and at most 1, got 87.5"),
            (json!({"interpolation": "magic"}), "interpolation: expected one of nearest, bilinear"),
        ] {
            let got = read(fields).unwrap_err().to_string();
            assert!(got.contains(&format!("x/config.json: {expected}")), "expected {expected:?} in {got:?}");
        }
        let long = read(json!({"arch": vec!["ü"; 1000]})).unwrap_err().to_string();
        assert!(long.len() < 400 && long.ends_with('…'), "{long}");
    }

    #[test]
    fn flags_replace_what_the_files_say_and_are_checked_too() {
        let found = read(json!({"arch": "a", "num_classes": 3, "class_names": ["x", "y", "z"]})).unwrap();
        assert_eq!(found.classes(), Some(3));
        let flags = ModelDescription { arch: Some("b".into()), mean: Some(vec![f64::NAN]), ..Default::default() };
        let merged = found.clone().overridden_by(flags);
        assert_eq!((merged.arch.as_deref(), merged.num_classes), (Some("b"), Some(3)));
        assert!(merged.check(Path::new("w")).unwrap_err().to_string().contains("w: mean: expected values"));
        let merged = found.overridden_by(ModelDescription { num_classes: Some(4), ..Default::default() });
        assert!(
            merged.check(Path::new("w")).unwrap_err().to_string().contains("expected 4 names (num_classes), got 3")
        );
    }
}
