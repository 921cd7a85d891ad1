//! SHA-256 digests: what a student's provenance and the store know files by.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Bytes read at a time, so that the digest of a large file needs little memory.
const BLOCK_BYTES: usize = 1 << 16;

/// The SHA-256 of `bytes`, as 64 lower-case hexadecimal digits.
///
/// # Source
/// FIPS 180-4.
pub fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes).as_ref())
}

/// The SHA-256 of the file at `path`, read in blocks.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read.
pub fn sha256_file(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(hex(hasher.finalize().as_ref())),
            Ok(n) => hasher.update(&block[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", path, e)),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digests_of_the_standard() {
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_file_longer_than_a_block_has_the_digest_of_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let bytes: Vec<u8> = (0..3 * BLOCK_BYTES + 17).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(sha256_file(&path).unwrap(), sha256(&bytes));
    }

    #[test]
    fn missing_files_and_folders_are_io_errors() {
        let folder = tempfile::tempdir().unwrap();
        let missing = sha256_file(folder.path().join("none")).unwrap_err();
        assert!(matches!(missing, Error::Io { action: "open", .. }));
        let directory = sha256_file(folder.path()).unwrap_err();
        assert!(matches!(directory, Error::Io { action: "read", .. }));
    }
}
