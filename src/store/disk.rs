//! What the store's files have in common: small files that may be missing, folders that outlast a power cut.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;

use crate::weights::sync_folder;
use crate::{Error, Result};

/// Most bytes of a file that the store wrote about a model.
const MOST_BYTES: u64 = 1 << 20;

/// The content of a small file that the store wrote; `None` if there is none.
///
/// # Errors
/// [`Error::Damaged`] if it is no plain file or too large to be one of the store's; [`Error::Io`] if it cannot be read.
pub(super) fn read_small(path: &Path) -> Result<Option<Vec<u8>>> {
    let kind = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        found => found.map_err(|e| Error::io("read", path, e))?,
    };
    if !kind.is_file() {
        return Err(Error::damaged(path, "expected a plain file"));
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|e| Error::io("read", path, e))?;
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(Error::damaged(path, format!("expected at most {MOST_BYTES} bytes, got {}", kind.len())));
    }
    Ok(Some(bytes))
}

/// Makes `folder` and the folders above it where they are missing, durably.
///
/// # Errors
/// [`Error::Io`] naming the folder that cannot be made.
pub(super) fn create_folder(folder: &Path) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = match folder.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    create_folder(above)?;
    match fs::create_dir(folder) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
        made => made.map_err(|e| Error::io("create folder", folder, e))?,
    }
    sync_folder(above)
}
