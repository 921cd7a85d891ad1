//! Safetensors files that hold a data set: `images`, `labels`, class names.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use sha2::Sha256;

use super::{SourceConfig, digest_field, digest_labels, file_name};
use crate::data::file::open_regular;
use crate::data::image::Image;
use crate::error::{Error, Result};

/// The longest header safetensors itself accepts.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A data set in a safetensors file.
///
/// Images are read one at a time from the open file. A mapping would be shorter, but a file that someone cuts
/// while it is mapped kills the process; here it is a broken image.
#[derive(Debug)]
pub(super) struct TensorSource {
    path: PathBuf,
    file: Mutex<File>,
    /// Where the first image starts in the file.
    start: u64,
    count: usize,
    /// Height, width, channels of every image.
    size: [usize; 3],
    layout: Layout,
    labels: Option<Vec<usize>>,
    class_names: Option<Vec<String>>,
}

/// How the pixels of one image lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// u8, channels innermost.
    BytesHwc,
    /// u8, channels outermost.
    BytesChw,
    /// f32 in 0..1, channels outermost.
    FloatsChw,
}

impl Layout {
    fn bytes_per_value(self) -> usize {
        match self {
            Self::BytesHwc | Self::BytesChw => 1,
            Self::FloatsChw => 4,
        }
    }
}

impl TensorSource {
    pub(super) fn open(path: &Path, config: &SourceConfig) -> Result<Self> {
        let mut file = open_regular(path)?;
        let (metadata, data_start) = read_header(path, &mut file)?;
        let images = metadata.info("images").ok_or_else(|| {
            Error::data(path, format!("expected a tensor named images, got {:?}", metadata.offset_keys()))
        })?;
        let (count, size, layout) = layout_of(path, images)?;
        config.limits.check_pixels(path, size[1] as u64, size[0] as u64)?;
        let labels = match metadata.info("labels") {
            Some(info) if info.shape != [count] => {
                let reason = format!("expected {count} labels, one per image, got shape {:?}", info.shape);
                return Err(Error::data(path, reason));
            }
            Some(info) => Some(read_labels(path, &mut file, info, data_start)?),
            None => None,
        };
        let class_names = metadata.metadata().as_ref().and_then(|m| m.get("class_names")).map(|text| split_names(text));
        if let (Some(names), Some(labels)) = (&class_names, &labels)
            && let Some(label) = labels.iter().find(|&&label| label >= names.len())
        {
            return Err(Error::data(path, format!("expected labels below {} (class_names), got {label}", names.len())));
        }
        let start = data_start + images.data_offsets.0 as u64;
        Ok(Self { path: path.to_path_buf(), file: Mutex::new(file), start, count, size, layout, labels, class_names })
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn label(&self, index: usize) -> Option<usize> {
        self.labels.as_ref()?.get(index).copied()
    }

    pub(super) fn class_names(&self) -> Option<&[String]> {
        self.class_names.as_deref()
    }

    pub(super) fn decode(&self, name: &str, index: usize) -> Result<Image> {
        let [height, width, channels] = self.size;
        let mut bytes = vec![0; height * width * channels * self.layout.bytes_per_value()];
        let at = self.start + index as u64 * bytes.len() as u64;
        {
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start(at))
                .and_then(|_| file.read_exact(&mut bytes))
                .map_err(|e| Error::io("read", &self.path, e))?;
        }
        let pixels = match self.layout {
            Layout::BytesHwc => bytes,
            Layout::BytesChw => interleave(&bytes, channels),
            Layout::FloatsChw => interleave(&quantise(name, &bytes)?, channels),
        };
        Image::new(name, self.size, pixels)
    }

    pub(super) fn update_digest(&self, hash: &mut Sha256) {
        digest_field(hash, file_name(&self.path).as_bytes());
        digest_field(hash, format!("{}x{:?} {:?}", self.count, self.size, self.layout).as_bytes());
        digest_labels(hash, self.labels.as_deref());
        for name in self.class_names.iter().flatten() {
            digest_field(hash, name.as_bytes());
        }
    }
}

/// The checked header and where the data starts.
fn read_header(path: &Path, file: &mut File) -> Result<(Metadata, u64)> {
    let invalid = |reason: String| Error::data(path, format!("not a valid safetensors file: {reason}"));
    let present = file.metadata().map_err(|e| Error::io("inspect", path, e))?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|e| invalid(format!("no header length: {e}")))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length + 8 > present {
        return Err(invalid(format!("a header of {length} bytes in a file of {present}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(|e| Error::io("read", path, e))?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| invalid(e.to_string()))?;
    let declared = length + 8 + metadata.data_len() as u64;
    if declared != present {
        return Err(invalid(format!("expected {declared} bytes, got {present}")));
    }
    Ok((metadata, length + 8))
}

/// The number of images, their height, width and channels, and how they lie.
fn layout_of(path: &Path, images: &TensorInfo) -> Result<(usize, [usize; 3], Layout)> {
    let (count, size, layout) = match (images.dtype, &images.shape[..]) {
        // Where both ends could be channels, images are far more often stored channels last.
        (Dtype::U8, &[n, h, w, c @ (1 | 3)]) => (n, [h, w, c], Layout::BytesHwc),
        (Dtype::U8, &[n, c @ (1 | 3), h, w]) => (n, [h, w, c], Layout::BytesChw),
        (Dtype::U8, &[n, h, w]) => (n, [h, w, 1], Layout::BytesHwc),
        (Dtype::F32, &[n, c @ (1 | 3), h, w]) => (n, [h, w, c], Layout::FloatsChw),
        (dtype, shape) => {
            let reason = format!(
                "expected images as u8 [N, H, W, C], [N, C, H, W] or [N, H, W], or f32 [N, C, H, W], \
                 with C = 1 or 3, got {dtype:?} {shape:?}"
            );
            return Err(Error::data(path, reason));
        }
    };
    if count == 0 || size.contains(&0) {
        return Err(Error::data(path, format!("expected at least one pixel, got shape {:?}", images.shape)));
    }
    Ok((count, size, layout))
}

fn read_labels(path: &Path, file: &mut File, info: &TensorInfo, data_start: u64) -> Result<Vec<usize>> {
    let (start, end) = info.data_offsets;
    let mut bytes = vec![0; end - start];
    file.seek(SeekFrom::Start(data_start + start as u64))
        .and_then(|_| file.read_exact(&mut bytes))
        .map_err(|e| Error::io("read", path, e))?;
    let numbers: Vec<i64> = match info.dtype {
        Dtype::U8 => bytes.iter().map(|&b| b.into()).collect(),
        Dtype::I32 => bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b).into()).collect(),
        Dtype::I64 => bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect(),
        other => return Err(Error::data(path, format!("expected labels as u8, i32 or i64, got {other:?}"))),
    };
    let index = |n| usize::try_from(n).map_err(|_| Error::data(path, format!("expected labels from 0 up, got {n}")));
    numbers.into_iter().map(index).collect()
}

/// Class names from a JSON list or a comma-separated line.
fn split_names(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|_| text.split(',').map(|name| name.trim().to_owned()).collect())
}

/// Planes of channels to interleaved channels.
fn interleave(planes: &[u8], channels: usize) -> Vec<u8> {
    let area = planes.len() / channels;
    (0..area).flat_map(|i| (0..channels).map(move |c| planes[c * area + i])).collect()
}

/// Little-endian f32 within 0..1 to bytes, rounded to nearest.
fn quantise(name: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let byte = |&chunk: &[u8; 4]| {
        let value = f32::from_le_bytes(chunk);
        if !(0.0..=1.0).contains(&value) {
            return Err(Error::data(name, format!("expected f32 pixels within 0..1, got {value}")));
        }
        Ok((value * 255.0).round() as u8)
    };
    bytes.as_chunks().0.iter().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use safetensors::tensor::TensorView;

    use super::super::Source;
    use super::*;

    type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

    fn bytes(tensors: &[Tensor], class_names: Option<&str>) -> Vec<u8> {
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
        let metadata = class_names.map(|names| HashMap::from([("class_names".to_owned(), names.to_owned())]));
        safetensors::serialize(views, metadata).unwrap()
    }

    fn open(bytes: &[u8]) -> (tempfile::TempDir, Result<Source>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("set.safetensors");
        std::fs::write(&path, bytes).unwrap();
        let source = Source::open(&path, &SourceConfig::default());
        (dir, source)
    }

    fn reason(tensors: &[Tensor], class_names: Option<&str>) -> String {
        let error = open(&bytes(tensors, class_names)).1.unwrap_err();
        assert!(matches!(error, Error::Data { .. }), "{error}");
        error.to_string()
    }

    fn le(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn both_layouts_and_floats_give_the_same_image() {
        let hwc: Vec<u8> = (0..24).collect();
        let chw: Vec<u8> =
            (0..2).flat_map(|n| (0..3).flat_map(move |c| (0..4).map(move |i| n * 12 + i * 3 + c))).collect();
        let floats = le(&chw.iter().map(|&v| f32::from(v) / 255.0).collect::<Vec<_>>());
        let cases = [
            ("images", Dtype::U8, vec![2, 2, 2, 3], hwc.clone()),
            ("images", Dtype::U8, vec![2, 3, 2, 2], chw),
            ("images", Dtype::F32, vec![2, 3, 2, 2], floats),
        ];
        for case in cases {
            let (_dir, source) = open(&bytes(&[case], None));
            let source = source.unwrap();
            assert_eq!((source.len(), source.label(0), source.class_names()), (2, None, None));
            assert_eq!(source.decode(1).unwrap().pixels(), &hwc[12..]);
        }
    }

    #[test]
    fn labels_of_each_type_and_names_of_each_form_are_read() {
        let images: Tensor = ("images", Dtype::U8, vec![2, 1, 1], vec![5, 6]);
        let labels: [Tensor; 3] = [
            ("labels", Dtype::U8, vec![2], vec![1, 0]),
            ("labels", Dtype::I32, vec![2], [1i32, 0].iter().flat_map(|v| v.to_le_bytes()).collect()),
            ("labels", Dtype::I64, vec![2], [1i64, 0].iter().flat_map(|v| v.to_le_bytes()).collect()),
        ];
        for (labels, names) in labels.into_iter().zip(["cat, dog", "[\"cat\", \"dog\"]", "cat,dog"]) {
            let (_dir, source) = open(&bytes(&[images.clone(), labels], Some(names)));
            let source = source.unwrap();
            assert_eq!((source.label(0), source.label(1)), (Some(1), Some(0)));
            assert_eq!(source.class_names().unwrap(), ["cat", "dog"]);
            assert_eq!(source.decode(1).unwrap().pixels(), [6]);
        }
    }

    #[test]
    fn wrong_tensors_are_refused() {
        let images: Tensor = ("images", Dtype::U8, vec![2, 1, 1], vec![5, 6]);
        assert!(
            reason(&[("pictures", Dtype::U8, vec![1], vec![0])], None).contains("named images, got [\"pictures\"]")
        );
        assert!(reason(&[("images", Dtype::I32, vec![1, 1, 1], vec![0; 4])], None).contains("got I32 [1, 1, 1]"));
        assert!(reason(&[("images", Dtype::U8, vec![1, 2, 2, 2], vec![0; 8])], None).contains("got U8 [1, 2, 2, 2]"));
        assert!(reason(&[("images", Dtype::U8, vec![0, 2, 2], vec![])], None).contains("at least one pixel"));
        let few: Tensor = ("labels", Dtype::U8, vec![1], vec![0]);
        assert!(reason(&[images.clone(), few], None).contains("expected 2 labels, one per image, got shape [1]"));
        let floats: Tensor = ("labels", Dtype::F32, vec![2], le(&[0.0, 1.0]));
        assert!(reason(&[images.clone(), floats], None).contains("u8, i32 or i64, got F32"));
        let negative: Tensor = ("labels", Dtype::I32, vec![2], vec![0xFF; 8]);
        assert!(reason(&[images.clone(), negative], None).contains("from 0 up, got -1"));
        let beyond: Tensor = ("labels", Dtype::U8, vec![2], vec![0, 2]);
        assert!(reason(&[images, beyond], Some("a,b")).contains("labels below 2 (class_names), got 2"));
    }

    #[test]
    fn pixels_out_of_range_break_only_their_image() {
        let (_dir, source) = open(&bytes(&[("images", Dtype::F32, vec![3, 1, 1, 1], le(&[0.5, f32::NAN, 1.5]))], None));
        let source = source.unwrap();
        assert_eq!(source.decode(0).unwrap().pixels(), [128]);
        assert!(source.decode(1).unwrap_err().to_string().contains("set.safetensors#1: expected f32 pixels"));
        assert!(source.decode(2).is_err());
    }

    #[test]
    fn a_file_cut_at_any_byte_is_refused() {
        let whole = bytes(&[("images", Dtype::U8, vec![2, 2, 2], vec![7; 8])], None);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.safetensors");
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert!(Source::open(&path, &SourceConfig::default()).is_err(), "{len} of {}", whole.len());
        }
    }
}
