//! Which version of a model serves, and which ones did before.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Version;
use super::disk::read_small;
use crate::weights::write_bytes_atomic;
use crate::{Error, Result};

const FILE: &str = "active";

/// The content of `NAME/active`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pointer {
    /// The version that serves.
    pub version: Version,
    /// Versions that served before it, the latest first, each once.
    pub earlier: Vec<Version>,
}

impl Pointer {
    /// Where the pointer of the model in `folder` is.
    pub fn path(folder: &Path) -> PathBuf {
        folder.join(FILE)
    }

    /// The pointer of the model in `folder`; `None` if nothing was ever activated.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not what [`Pointer::write`] writes.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = Self::path(folder);
        let Some(bytes) = read_small(&path)? else { return Ok(None) };
        let pointer = serde_json::from_slice(&bytes);
        pointer.map(Some).map_err(|e| Error::damaged(path, format!("expected the number of the active version: {e}")))
    }

    /// Replaces the pointer: after a crash it is the old one or this one.
    ///
    /// # Errors
    /// [`Error::Io`]; the old one stays.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let json = serde_json::json!(self).to_string();
        write_bytes_atomic(Self::path(folder), format!("{json}\n").as_bytes())
    }

    /// The pointer to `version` after `before`, remembering only those that still are `present`.
    pub fn moved(version: Version, before: Option<Self>, present: &[Version]) -> Self {
        let known = before.into_iter().flat_map(|p| std::iter::once(p.version).chain(p.earlier));
        let mut earlier: Vec<Version> = Vec::new();
        for one in known.filter(|v| *v != version && present.contains(v)) {
            if !earlier.contains(&one) {
                earlier.push(one);
            }
        }
        Self { version, earlier }
    }
}
