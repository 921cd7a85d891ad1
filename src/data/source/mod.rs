//! Where images come from: one interface over folders, IDX files and safetensors files.

mod folder;
mod idx;
mod tensors;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::folder::FolderSource;
pub use self::folder::images_below;
use self::idx::IdxSource;
use self::tensors::TensorSource;
use super::decode::ImageLimits;
use super::image::Image;
use crate::error::{Error, Result};

/// What a source may cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceConfig {
    /// Limits of each image.
    pub limits: ImageLimits,
    /// Most bytes of an IDX file after decompression: it is held in memory.
    pub max_archive_bytes: u64,
}

impl Default for SourceConfig {
    /// The default image limits and 1 GiB.
    fn default() -> Self {
        Self { limits: ImageLimits::default(), max_archive_bytes: 1 << 30 }
    }
}

impl SourceConfig {
    /// Checks the limits.
    ///
    /// # Errors
    /// [`Error::Config`] if a limit is zero.
    pub fn validate(&self) -> Result<()> {
        if self.max_archive_bytes == 0 {
            return Err(Error::Config("max_archive_bytes must be at least 1, got 0".into()));
        }
        self.limits.validate()
    }
}

/// A list of images, in a fixed order, that are decoded one at a time.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Folder(FolderSource),
    Idx(IdxSource),
    Tensors(TensorSource),
}

impl Source {
    /// Opens an image folder, an IDX file or a safetensors file.
    ///
    /// * A folder whose sub-folders hold images: each sub-folder is a class, sorted names give the label order,
    ///   deeper folders belong to their class. Otherwise the images directly in the folder, without labels.
    ///   Hidden files are left out, paths are sorted, nothing is decoded yet.
    /// * An IDX file of unsigned bytes, N×H×W or N×H×W×C, plain or gzipped; its labels are found beside it
    ///   (`images` → `labels`, `idx3` → `idx1` in the name).
    /// * A file named `.safetensors` with a tensor `images`: u8 NHWC, NCHW or NHW, or f32 NCHW within 0..1;
    ///   optional tensor `labels` (u8, i32, i64) and metadata `class_names` (JSON list or comma separated).
    ///
    /// # Errors
    /// [`Error::Io`] if the path cannot be read, [`Error::Data`] if it holds no images or is inconsistent,
    /// [`Error::Config`] if `config` is out of range.
    pub fn open(path: impl AsRef<Path>, config: &SourceConfig) -> Result<Self> {
        config.validate()?;
        let path = path.as_ref();
        let found = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
        let kind = if found.is_dir() {
            Kind::Folder(FolderSource::open(path, config)?)
        } else if has_extension(path, &["safetensors"]) {
            Kind::Tensors(TensorSource::open(path, config)?)
        } else if idx::looks_like_idx(path)? {
            Kind::Idx(IdxSource::open(path, config)?)
        } else {
            return Err(Error::data(path, "expected a folder of images, an IDX file or a .safetensors file"));
        };
        Ok(Self { path: path.to_path_buf(), kind })
    }

    /// A source of IDX bytes in memory, plain or gzipped; `name` stands in for the path.
    ///
    /// # Errors
    /// [`Error::Data`] as for a file.
    pub fn idx_from_bytes(name: &str, images: &[u8], labels: Option<&[u8]>) -> Result<Self> {
        let kind = Kind::Idx(IdxSource::from_bytes(Path::new(name), images, labels)?);
        Ok(Self { path: PathBuf::from(name), kind })
    }

    /// What the source was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of images; at least one.
    pub fn len(&self) -> usize {
        match &self.kind {
            Kind::Folder(folder) => folder.len(),
            Kind::Idx(idx) => idx.len(),
            Kind::Tensors(tensors) => tensors.len(),
        }
    }

    /// Whether there are no images; a source that opened has some.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What to call image `index`: its path, or `FILE#INDEX`.
    pub fn name(&self, index: usize) -> String {
        match &self.kind {
            Kind::Folder(folder) if index < folder.len() => folder.path_of(index).display().to_string(),
            _ => format!("{}#{index}", self.path.display()),
        }
    }

    /// The label of image `index`: its place in [`class_names`](Self::class_names), or the stored number.
    pub fn label(&self, index: usize) -> Option<usize> {
        match &self.kind {
            Kind::Folder(folder) => folder.label(index),
            Kind::Idx(idx) => idx.label(index),
            Kind::Tensors(tensors) => tensors.label(index),
        }
    }

    /// The names of the classes in label order, where the source has them.
    pub fn class_names(&self) -> Option<&[String]> {
        match &self.kind {
            Kind::Folder(folder) => folder.class_names(),
            Kind::Idx(_) => None,
            Kind::Tensors(tensors) => tensors.class_names(),
        }
    }

    /// Reads and decodes image `index`.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Data`] if it is broken or there is no such image.
    pub fn decode(&self, index: usize) -> Result<Image> {
        if index >= self.len() {
            let reason = format!("expected an index below {}, got {index}", self.len());
            return Err(Error::data(&self.path, reason));
        }
        match &self.kind {
            Kind::Folder(folder) => folder.decode(index),
            Kind::Idx(idx) => idx.decode(&self.name(index), index),
            Kind::Tensors(tensors) => tensors.decode(&self.name(index), index),
        }
    }

    /// A hex SHA-256 over the names and sizes of the files (for IDX and tensors: file name, shape, labels),
    /// equal for equal data wherever it lies.
    ///
    /// It tells data sets apart cheaply; it does not prove that no pixel changed.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        match &self.kind {
            Kind::Folder(folder) => folder.update_digest(&mut hash),
            Kind::Idx(idx) => idx.update_digest(&mut hash),
            Kind::Tensors(tensors) => tensors.update_digest(&mut hash),
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether decoding costs something, so that keeping decoded pixels pays.
    pub(super) fn is_compressed(&self) -> bool {
        matches!(self.kind, Kind::Folder(_))
    }
}

/// Whether the extension of `path` is one of `extensions`, in any case.
fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension()
        .and_then(|e| e.to_str())
        .is_some_and(|found| extensions.iter().any(|e| found.eq_ignore_ascii_case(e)))
}

/// The file name of `path` for messages and digests.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Adds a length-prefixed field to a digest, so that no two lists of fields run together.
fn digest_field(hash: &mut Sha256, field: &[u8]) {
    hash.update((field.len() as u64).to_le_bytes());
    hash.update(field);
}

/// Adds an optional list of labels to a digest.
fn digest_labels(hash: &mut Sha256, labels: Option<&[usize]>) {
    let bytes: Vec<u8> = labels.unwrap_or_default().iter().flat_map(|&l| (l as u64).to_le_bytes()).collect();
    digest_field(hash, &bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_foreign_paths_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Source::open(dir.path().join("nothing"), &SourceConfig::default()).unwrap_err();
        assert!(matches!(missing, Error::Io { .. }) && missing.to_string().contains("nothing: cannot open"));
        let text = dir.path().join("notes.txt");
        std::fs::write(&text, "hello").unwrap();
        let foreign = Source::open(&text, &SourceConfig::default()).unwrap_err();
        assert!(foreign.to_string().contains("notes.txt: expected a folder of images"), "{foreign}");
    }

    #[test]
    fn zero_limits_are_refused() {
        let config = SourceConfig { max_archive_bytes: 0, ..SourceConfig::default() };
        assert!(matches!(Source::open(".", &config), Err(Error::Config(_))));
    }

    /// The shared research data, or `None` with a note on stderr where it is absent.
    fn shared_data(part: &str) -> Option<PathBuf> {
        let root = std::env::var_os("SECATEUR_DATA")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
        let path = root.join(part);
        if path.exists() {
            return Some(path);
        }
        eprintln!("skipped: {} is absent", path.display());
        None
    }

    #[test]
    fn office31_webcam_has_795_images_in_31_classes() {
        let Some(path) = shared_data("office31/webcam") else { return };
        let source = Source::open(path, &SourceConfig::default()).unwrap();
        assert_eq!((source.len(), source.class_names().unwrap().len()), (795, 31));
        assert_eq!((source.label(0), source.label(794)), (Some(0), Some(30)));
        let image = source.decode(400).unwrap();
        assert_eq!((image.height(), image.width(), image.channels()), (256, 256, 3));
    }

    #[test]
    fn usps_test_has_2007_labelled_digits() {
        let Some(path) = shared_data("digits/usps-test-images-idx3-ubyte.gz") else { return };
        let source = Source::open(path, &SourceConfig::default()).unwrap();
        let image = source.decode(2006).unwrap();
        assert_eq!((source.len(), image.height(), image.width(), image.channels()), (2007, 16, 16, 1));
        assert!((0..2007).all(|i| source.label(i).is_some_and(|label| label < 10)));
    }
}
