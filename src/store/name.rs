//! What models and their versions are called.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Longer names make paths and addresses unwieldy.
const MOST_BYTES: usize = 64;

/// The name of a model: 1 to 64 ASCII letters, digits, `-`, `_` and `.`, a letter or digit first.
///
/// So it is a file name on every file system and a segment of an address as it stands, and never leads out of the
/// store or to one of its own files, which begin with a dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

impl ModelName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let first = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if first && text.len() <= MOST_BYTES && text.chars().all(allowed) {
            return Ok(Self(text.to_string()));
        }
        let shown: String = text.chars().take(MOST_BYTES).collect();
        Err(Error::Usage(format!(
            "model name: expected 1 to {MOST_BYTES} letters, digits, '-', '_' and '.', a letter or digit first, got \
             {shown:?}"
        )))
    }
}

impl TryFrom<String> for ModelName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> Self {
        name.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a version, 1 and up, given once and never again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u64);

impl FromStr for Version {
    type Err = Error;

    /// Reads the number in its one spelling: no sign, no leading zero.
    fn from_str(text: &str) -> Result<Self> {
        let number = text.parse().ok().filter(|n: &u64| *n > 0 && n.to_string() == text);
        number.map(Self).ok_or_else(|| {
            let shown: String = text.chars().take(MOST_BYTES).collect();
            Error::Usage(format!("version: expected a whole number from 1, got {shown:?}"))
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_names_are_taken() {
        for name in ["a", "7", "resnet18", "Front-Door_cam.v2", &"x".repeat(64)] {
            assert_eq!(name.parse::<ModelName>().unwrap().to_string(), *name);
        }
    }

    #[test]
    fn names_that_lead_elsewhere_or_cannot_be_addressed_are_refused() {
        let long = "x".repeat(65);
        for name in
            ["", ".", "..", ".lock", "-a", "_a", "a/b", "../a", "/a", "a\\b", "a b", "a\0", "a\n", "ü", "a%2f", &long]
        {
            let got = name.parse::<ModelName>().unwrap_err();
            assert!(matches!(got, Error::Usage(_)) && got.to_string().contains("model name"), "{name:?}: {got}");
        }
        let got = serde_json::from_str::<ModelName>("\"../a\"").unwrap_err().to_string();
        assert!(got.contains("model name"), "{got}");
    }

    #[test]
    fn a_version_has_one_spelling() {
        assert_eq!("12".parse::<Version>().unwrap(), Version(12));
        for text in ["", "0", "01", "+1", "-1", "1.0", " 1", "v1", "18446744073709551616"] {
            let got = text.parse::<Version>().unwrap_err().to_string();
            assert!(got.contains("expected a whole number from 1"), "{text:?}: {got}");
        }
    }
}
