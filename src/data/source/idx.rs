//! IDX files, the format of MNIST: images of unsigned bytes, plain or gzipped.

use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use sha2::Sha256;

use super::{SourceConfig, digest_field, digest_labels, file_name};
use crate::data::decode::ImageLimits;
use crate::data::file::open_regular;
use crate::data::image::Image;
use crate::error::{Error, Result};

const GZIP_MAGIC: [u8; 2] = [0x1F, 0x8B];
/// The type code of unsigned bytes.
const UNSIGNED_BYTE: u8 = 8;

/// An IDX file of images, held in memory.
#[derive(Debug)]
pub(super) struct IdxSource {
    path: PathBuf,
    /// Height, width, channels of every image.
    size: [usize; 3],
    count: usize,
    pixels: Vec<u8>,
    labels: Option<Vec<usize>>,
}

impl IdxSource {
    pub(super) fn open(path: &Path, config: &SourceConfig) -> Result<Self> {
        let images = read_file(path, config.max_archive_bytes)?;
        let labels = match labels_path(path) {
            Some(beside) => Some((read_file(&beside, config.max_archive_bytes)?, beside)),
            None => None,
        };
        Self::new(path, images, labels, &config.limits)
    }

    pub(super) fn from_bytes(name: &Path, images: &[u8], labels: Option<&[u8]>) -> Result<Self> {
        let images = read(name, images, u64::MAX)?;
        let labels = match labels {
            Some(bytes) => {
                let labels_name = name.join("labels");
                Some((read(&labels_name, bytes, u64::MAX)?, labels_name))
            }
            None => None,
        };
        Self::new(name, images, labels, &ImageLimits::default())
    }

    fn new(path: &Path, images: Array, labels: Option<(Array, PathBuf)>, limits: &ImageLimits) -> Result<Self> {
        let (count, size) = match images.dims[..] {
            [n, height, width] => (n, [height, width, 1]),
            [n, height, width, channels @ (1 | 3)] => (n, [height, width, channels]),
            _ => {
                let reason = format!("expected images of N x H x W or N x H x W x (1 or 3), got {:?}", images.dims);
                return Err(Error::data(path, reason));
            }
        };
        if images.data.is_empty() {
            return Err(Error::data(path, format!("expected at least one pixel, got shape {:?}", images.dims)));
        }
        limits.check_pixels(path, size[1] as u64, size[0] as u64)?;
        let labels = match labels {
            Some((array, labels_path)) if array.dims != [count] => {
                let reason =
                    format!("expected {count} labels, one per image of {}, got {:?}", file_name(path), array.dims);
                return Err(Error::data(labels_path, reason));
            }
            Some((array, _)) => Some(array.data.into_iter().map(usize::from).collect()),
            None => None,
        };
        Ok(Self { path: path.to_path_buf(), size, count, pixels: images.data, labels })
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn label(&self, index: usize) -> Option<usize> {
        self.labels.as_ref()?.get(index).copied()
    }

    pub(super) fn decode(&self, name: &str, index: usize) -> Result<Image> {
        let each: usize = self.size.iter().product();
        Image::new(name, self.size, self.pixels[index * each..(index + 1) * each].to_vec())
    }

    pub(super) fn update_digest(&self, hash: &mut Sha256) {
        digest_field(hash, file_name(&self.path).as_bytes());
        digest_field(hash, format!("{}x{:?}", self.count, self.size).as_bytes());
        digest_labels(hash, self.labels.as_deref());
    }
}

/// Whether `path` is meant as an IDX file: by its name, or by its first bytes.
pub(super) fn looks_like_idx(path: &Path) -> Result<bool> {
    if file_name(path).to_ascii_lowercase().contains("idx") {
        return Ok(true);
    }
    let mut start = Vec::new();
    open_regular(path)?.take(4).read_to_end(&mut start).map_err(|e| Error::io("read", path, e))?;
    Ok(start.starts_with(&GZIP_MAGIC) || start.starts_with(&[0, 0, UNSIGNED_BYTE]))
}

/// The labels beside an images file: the same name with `labels` for `images` and `idx1` for `idx3` or `idx4`,
/// with or without `.gz`.
fn labels_path(images: &Path) -> Option<PathBuf> {
    let name = images.file_name()?.to_str()?;
    let swapped = name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1");
    if swapped == name {
        return None;
    }
    let other = swapped.strip_suffix(".gz").map_or_else(|| format!("{swapped}.gz"), str::to_owned);
    [swapped, other].into_iter().map(|name| images.with_file_name(name)).find(|path| path.is_file())
}

/// An IDX array of unsigned bytes.
struct Array {
    dims: Vec<usize>,
    data: Vec<u8>,
}

fn read_file(path: &Path, max_bytes: u64) -> Result<Array> {
    let mut bytes = Vec::new();
    open_regular(path)?.read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
    read(path, &bytes, max_bytes)
}

/// Parses an IDX array and checks that it is exactly as long as its header declares.
///
/// # Source
/// <http://yann.lecun.com/exdb/mnist/>: two zero bytes, a type code, the number of dimensions, the dimensions as
/// big-endian 32-bit numbers, the data.
fn read(path: &Path, bytes: &[u8], max_bytes: u64) -> Result<Array> {
    if bytes.starts_with(&GZIP_MAGIC) {
        parse(path, MultiGzDecoder::new(bytes), max_bytes)
    } else {
        parse(path, bytes, max_bytes)
    }
}

fn parse(path: &Path, mut reader: impl Read, max_bytes: u64) -> Result<Array> {
    let mut fill = |buffer: &mut [u8]| {
        reader.read_exact(buffer).map_err(|e| Error::data(path, format!("cannot read the IDX header: {e}")))
    };
    let mut magic = [0; 4];
    fill(&mut magic)?;
    let [0, 0, UNSIGNED_BYTE, rank @ 1..=4] = magic else {
        let reason = format!("expected an IDX magic of 00 00 08 and 1 to 4 dimensions, got {magic:02x?}");
        return Err(Error::data(path, reason));
    };
    let mut dims = Vec::new();
    for _ in 0..rank {
        let mut dim = [0; 4];
        fill(&mut dim)?;
        dims.push(u32::from_be_bytes(dim) as usize);
    }
    let declared = dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim as u64));
    let Some(declared) = declared.filter(|&n| n <= max_bytes) else {
        return Err(Error::data(path, format!("shape {dims:?} is more than the limit of {max_bytes} bytes")));
    };
    // One byte more than declared makes the decompressor check its checksum and shows what does not belong.
    let mut data = Vec::new();
    reader.take(declared + 1).read_to_end(&mut data).map_err(|e| {
        Error::data(path, format!("cannot read the IDX data: expected {declared} bytes, got {}: {e}", data.len()))
    })?;
    if data.len() as u64 != declared {
        let found = if data.len() as u64 > declared { "more".to_owned() } else { data.len().to_string() };
        return Err(Error::data(path, format!("expected {declared} bytes of data for shape {dims:?}, got {found}")));
    }
    Ok(Array { dims, data })
}

#[cfg(test)]
mod tests {
    use super::super::Source;
    use super::*;
    use crate::data::testing::{gzip, idx_bytes};

    fn write(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn reason(name: &str, bytes: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let error = Source::open(write(dir.path(), name, bytes), &SourceConfig::default()).unwrap_err();
        assert!(matches!(error, Error::Data { .. }), "{error}");
        error.to_string()
    }

    #[test]
    fn plain_and_gzipped_files_find_their_labels() {
        let images = idx_bytes(&[2, 2, 3], &(0..12).collect::<Vec<u8>>());
        let labels = idx_bytes(&[2], &[7, 9]);
        for (name, beside, zip) in
            [("t-images-idx3-ubyte", "t-labels-idx1-ubyte.gz", false), ("u-images.idx3.gz", "u-labels.idx1.gz", true)]
        {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), beside, &gzip(&labels));
            let path = write(dir.path(), name, &if zip { gzip(&images) } else { images.clone() });
            let source = Source::open(&path, &SourceConfig::default()).unwrap();
            assert_eq!((source.len(), source.label(0), source.label(1), source.label(2)), (2, Some(7), Some(9), None));
            let image = source.decode(1).unwrap();
            assert_eq!((image.height(), image.width(), image.pixels()), (2, 3, &[6, 7, 8, 9, 10, 11][..]));
            assert_eq!(source.name(1), format!("{}#1", path.display()));
        }
    }

    #[test]
    fn rgb_images_and_bytes_in_memory_are_read() {
        let images = idx_bytes(&[1, 1, 2, 3], &[1, 2, 3, 4, 5, 6]);
        let source = Source::idx_from_bytes("demo", &gzip(&images), None).unwrap();
        assert_eq!((source.len(), source.label(0), source.name(0)), (1, None, "demo#0".to_owned()));
        assert_eq!(source.decode(0).unwrap().channels(), 3);
        assert_eq!(source.digest(), Source::idx_from_bytes("demo", &images, None).unwrap().digest());
    }

    #[test]
    fn wrong_headers_and_lengths_are_refused() {
        let good = idx_bytes(&[2, 2, 2], &[0; 8]);
        assert!(reason("a-idx3", b"\0\0\x0d\x03").contains("expected an IDX magic of 00 00 08"));
        assert!(reason("a-idx3", b"\0\0").contains("cannot read the IDX header"));
        assert!(reason("a-idx3", b"").contains("cannot read the IDX header"));
        assert!(
            reason("a-idx3", &good[..good.len() - 1]).contains("expected 8 bytes of data for shape [2, 2, 2], got 7")
        );
        assert!(reason("a-idx3", &[&good[..], &[0]].concat()).contains("got more"));
        assert!(reason("a-idx1", &idx_bytes(&[3], &[0; 3])).contains("expected images of N x H x W"));
        assert!(reason("a-idx3", &idx_bytes(&[0, 2, 2], &[])).contains("expected at least one pixel"));
        let huge = idx_bytes(&[0xFFFF_FFFF, 0xFFFF_FFFF, 0xFFFF_FFFF], &[]);
        assert!(reason("a-idx3", &huge).contains("more than the limit"));
    }

    #[test]
    fn broken_gzip_is_refused_at_every_length() {
        let zipped = gzip(&idx_bytes(&[2, 4, 4], &(0..32).collect::<Vec<u8>>()));
        for len in 2..zipped.len() {
            assert!(Source::idx_from_bytes("cut", &zipped[..len], None).is_err(), "{len} of {}", zipped.len());
        }
        let mut flipped = zipped.clone();
        let checksum = flipped.len() - 6;
        flipped[checksum] ^= 1;
        assert!(Source::idx_from_bytes("flipped", &flipped, None).is_err());
    }

    #[test]
    fn a_count_mismatch_names_the_labels_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "a-images-idx3-ubyte", &idx_bytes(&[2, 1, 1], &[0; 2]));
        write(dir.path(), "a-labels-idx1-ubyte", &idx_bytes(&[3], &[0; 3]));
        let error = Source::open(path, &SourceConfig::default()).unwrap_err().to_string();
        assert!(error.contains("a-labels-idx1-ubyte: expected 2 labels") && error.contains("got [3]"), "{error}");
    }
}
