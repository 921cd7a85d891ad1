//! Opening files that others put there.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::ImageLimits;
use super::image::Image;
use crate::error::{Error, Result};

/// Opens a regular file for reading. Opening a named pipe would wait for its writer, so whatever else the name stands
/// for is refused before.
///
/// # Errors
/// [`Error::Io`] if it cannot be opened; [`Error::Data`] if it is no regular file.
pub(super) fn open_regular(path: &Path) -> Result<File> {
    let kind = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
    if kind.is_dir() {
        return Err(Error::data(path, "expected a file, got a folder"));
    }
    if !kind.is_file() {
        return Err(Error::data(path, "expected a file, got a pipe, socket or device"));
    }
    File::open(path).map_err(|e| Error::io("open", path, e))
}

/// Reads and decodes one image file; nothing beyond `limits` is read or allocated.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::Data`] if it is no regular file, too large, or no image.
pub fn read_image(path: &Path, limits: &ImageLimits) -> Result<Image> {
    let file = open_regular(path)?;
    // One byte more than allowed tells a file of just the limit from a larger one.
    let mut bytes = Vec::new();
    file.take(limits.max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
    if bytes.len() as u64 > limits.max_bytes {
        return Err(Error::data(path, format!("the file is larger than the limit of {} bytes", limits.max_bytes)));
    }
    Image::decode(path, &bytes, limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_pipe_is_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe.jpg");
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: a valid C string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let message = read_image(&path, &ImageLimits::default()).unwrap_err().to_string();
        assert!(message.contains("pipe.jpg") && message.contains("got a pipe"), "{message}");
        let message = read_image(folder.path(), &ImageLimits::default()).unwrap_err().to_string();
        assert!(message.contains("got a folder"), "{message}");
    }
}
