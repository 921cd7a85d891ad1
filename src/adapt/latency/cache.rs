//! Tables on disk.

use std::path::{Path, PathBuf};

use super::{LatencyTable, TableIdentity};
use crate::weights::{sha256, write_bytes_atomic};
use crate::{Error, Result};

/// Where the table of `identity` is kept if nobody names a file: `$XDG_CACHE_HOME/secateur`, else `~/.cache/secateur`.
/// `None` where there is neither.
pub fn default_path(identity: &TableIdentity) -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    let digest = sha256(serde_json::json!(identity).to_string().as_bytes());
    Some(cache.join("secateur").join(format!("latency-{}-{}.json", identity.arch, &digest[..12])))
}

impl LatencyTable {
    /// Reads the table at `path`; `None` if there is none or it is of another identity.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Config`] if the file is no latency table: it is somebody else's.
    pub fn load(path: &Path, identity: &TableIdentity) -> Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|e| Error::io("read", path, e))?,
        };
        let table: Self = serde_json::from_slice(&bytes)
            .map_err(|e| Error::Config(format!("{}: not a latency table: {e}", path.display())))?;
        if table.identity != *identity {
            log::info!(
                "the latency table is of another device, version or network, measuring anew path={}",
                path.display()
            );
            return Ok(None);
        }
        Ok(Some(table))
    }

    /// Writes the table, atomically, into a folder that is made if need be.
    ///
    /// # Errors
    /// [`Error::Io`] naming the path.
    pub fn save(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|e| Error::io("create folder", folder, e))?;
        }
        let json = serde_json::to_vec(self)
            .map_err(|e| Error::Config(format!("{}: cannot be written as JSON: {e}", path.display())))?;
        write_bytes_atomic(path, &json)
    }
}
