//! The list of versions: a table for people, an object a line for machines.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::super::output::short;
use crate::Result;
use crate::store::{Manifest, ModelName, Store, Version};

/// One version in a list.
pub(super) struct Row {
    model: ModelName,
    version: Version,
    state: &'static str,
    manifest: Result<Manifest>,
}

/// The versions of `models`, damaged ones included.
pub(super) fn rows(store: &Store, models: &[ModelName]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for model in models {
        let active = store.active(model).unwrap_or_else(|error| {
            log::warn!("what is active cannot be told: {error}");
            None
        });
        let numbers = store.numbers(model)?;
        if let Some(gone) = active.filter(|version| !numbers.contains(version)) {
            log::warn!("the active version is gone model={model} version={gone}");
        }
        rows.extend(numbers.into_iter().map(|version| {
            let manifest = store.manifest(model, version);
            let state = match (active == Some(version), &manifest) {
                (true, Ok(_)) => "active",
                (true, Err(_)) => "active, DAMAGED",
                (false, Ok(_)) => "",
                (false, Err(_)) => "DAMAGED",
            };
            Row { model: model.clone(), version, state, manifest }
        }));
    }
    Ok(rows)
}

impl Row {
    /// The row for machines.
    pub fn json(&self) -> Value {
        let mut json = json!({
            "model": self.model, "version": self.version, "active": self.state.starts_with("active"),
            "damaged": self.manifest.as_ref().err().map(ToString::to_string),
        });
        if let Ok(m) = &self.manifest {
            json["published_unix_s"] = m.published_unix_s.into();
            json["bytes"] = m.model_bytes.into();
            json["sha256"] = m.model_sha256.clone().into();
            json["summary"] = json!(m.model);
        }
        json
    }
}

/// The rows for people.
pub(super) fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.model.as_str().len()).max().unwrap_or(0).max(5);
    let mut lines = vec![format!(
        "{:<width$} {:>7} {:>9} {:>9} {:>9} {:>7} {:>4} {:>12} {:<24} state",
        "model", "version", "age", "size", "params", "classes", "int8", "input", "architecture"
    )];
    for row in rows {
        let start = format!("{:<width$} {:>7}", row.model, row.version);
        let line = match &row.manifest {
            Err(error) => format!("{start} {}: {error}", row.state),
            Ok(m) => {
                let [c, h, w] = m.model.input;
                format!(
                    "{start} {:>9} {:>9} {:>9} {:>7} {:>4} {:>12} {:<24} {}",
                    age(m.published_unix_s),
                    format!("{}B", short(m.model_bytes)),
                    short(m.model.params),
                    m.model.classes,
                    if m.model.int8 { "yes" } else { "-" },
                    format!("{c}×{h}×{w}"),
                    m.model.arch,
                    row.state
                )
            }
        };
        lines.push(line.trim_end().to_string());
    }
    lines.join("\n")
}

/// Time since a moment, in its largest unit; unknown if this board's clock stands before it.
fn age(unix_s: u64) -> String {
    let then = UNIX_EPOCH.checked_add(Duration::from_secs(unix_s));
    let Some(seconds) = then.and_then(|then| SystemTime::now().duration_since(then).ok()).map(|d| d.as_secs()) else {
        return "-".to_string();
    };
    match seconds {
        s if s < 120 => format!("{s} s"),
        s if s < 7_200 => format!("{} min", s / 60),
        s if s < 172_800 => format!("{} h", s / 3_600),
        s => format!("{} d", s / 86_400),
    }
}
