//! What outcomes that may be compared have in common.

use serde::{Deserialize, Serialize};

/// What a run was given beside its trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// What else `adapt` was asked for.
    pub arguments: Vec<String>,
    /// Version of this program.
    pub version: String,
    /// Digests of the task's teacher and images; empty in lines of before they were kept.
    #[serde(default)]
    pub inputs: String,
}

impl Settings {
    /// This version's, with these arguments and digests.
    pub fn here(arguments: Vec<String>, inputs: String) -> Self {
        Self { arguments, version: env!("CARGO_PKG_VERSION").to_string(), inputs }
    }

    /// Whether both are the same but for teacher and images, as those of two tasks are.
    pub fn same_but_inputs(&self, other: &Self) -> bool {
        (&self.arguments, &self.version) == (&other.arguments, &other.version)
    }

    /// In one line, for people.
    pub(super) fn told(common: Option<&Self>) -> String {
        let Some(Self { arguments, version, .. }) = common else { return "No outcome yet.".to_string() };
        let arguments = if arguments.is_empty() { "the defaults".to_string() } else { arguments.join(" ") };
        format!("secateur {version}, all runs with: {arguments}")
    }
}
