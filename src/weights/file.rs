//! A safetensors file, memory-mapped, whose header is checked on opening and whose values are checked on reading.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::header::Header;
use crate::{Error, Result};

/// A memory-mapped safetensors file with a checked header.
///
/// Every read copies, so drop the file once its tensors are loaded: on boards where processor and accelerator share
/// their memory, a mapping that is kept doubles what the weights occupy.
///
/// A file that *shrinks* while it is mapped kills the process (SIGBUS) when the lost part is read. Every read first
/// compares the length with the mapped one, which leaves only the moment between the two; nothing closes that gap
/// but to replace files by renaming, as [`super::write_atomic`] does, and never to write into them.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    map: Mmap,
    header: Header,
}

impl TensorFile {
    /// Maps the file at `path` and checks its header against its length.
    ///
    /// # Errors
    /// [`Error::Io`] if the file is missing or unreadable; [`Error::Weights`] if it is a folder or a device, empty,
    /// truncated, not safetensors, or names a tensor twice.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        // Asked before opening, because opening a named pipe would wait for its writer.
        let kind = fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
        if kind.is_dir() {
            return Err(Error::weights(path, "expected a safetensors file, got a folder"));
        }
        if !kind.is_file() {
            return Err(Error::weights(path, "expected a safetensors file, got a pipe, socket or device"));
        }
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        // SAFETY: the mapping is read-only and private to this struct. Others may still change the file; see the
        // struct's documentation for what is done about it. Only plain bytes are read from it.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
        let header = Header::parse(&map).map_err(|reason| Error::weights(path, reason))?;
        Ok(Self { path: path.to_path_buf(), file, map, header })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The free-form metadata of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// Element type and shape of tensor `name`.
    ///
    /// # Errors
    /// [`Error::Weights`] if there is no such tensor.
    pub fn info(&self, name: &str) -> Result<(Dtype, &[usize])> {
        self.entry(name).map(|info| (info.dtype, info.shape.as_slice()))
    }

    /// The little-endian bytes of tensor `name` as they lie in the mapping, at any alignment.
    ///
    /// # Errors
    /// [`Error::Weights`] if there is no such tensor, or if the file's length changed since it was opened.
    pub fn read_raw(&self, name: &str) -> Result<&[u8]> {
        let (start, end) = self.entry(name)?.data_offsets;
        let now = self.file.metadata().map_err(|e| Error::io("read", &self.path, e))?.len();
        if now != self.map.len() as u64 {
            return Err(self.fault(
                name,
                format!(
                    "the file was {} bytes when opened and is {now} now; replace files by renaming",
                    self.map.len()
                ),
            ));
        }
        let offset = self.header.data_start;
        self.map.get(offset + start..offset + end).ok_or_else(|| self.fault(name, "its data lies outside the file"))
    }

    /// The values of a floating-point tensor, converted to `f32`.
    ///
    /// # Errors
    /// [`Error::Weights`] naming the tensor: missing, of another type than F32, F16, BF16 or F64, or with a value
    /// that is not finite in `f32`.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let bytes = self.read_raw(name)?;
        let values: Vec<f32> = match self.entry(name)?.dtype {
            Dtype::F32 => decode(bytes, f32::from_le_bytes),
            Dtype::F16 => decode(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => decode(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F64 => decode(bytes, |b| f64::from_le_bytes(b) as f32),
            other => return Err(self.fault(name, format!("expected dtype F32, F16, BF16 or F64, got {other}"))),
        };
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(index) => {
                Err(self.fault(name, format!("expected finite values, got {} at index {index}", values[index])))
            }
        }
    }

    /// Tensor `name` with its own type, bit for bit: what [`super::write_atomic`] wrote. Not-a-number is let through.
    ///
    /// # Errors
    /// [`Error::Weights`] if there is no such tensor or its type is none of F32, F64, U8, U32 and I64.
    pub fn read_tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let bytes = self.read_raw(name)?;
        let info = self.entry(name)?;
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            Dtype::U8 => DType::U8,
            Dtype::U32 => DType::U32,
            Dtype::I64 => DType::I64,
            other => return Err(self.fault(name, format!("expected dtype F32, F64, U8, U32 or I64, got {other}"))),
        };
        Ok(Tensor::from_raw_buffer(bytes, dtype, &info.shape, device)?)
    }

    fn entry(&self, name: &str) -> Result<&TensorInfo> {
        self.header.tensors.get(name).ok_or_else(|| self.fault(name, "not in the file"))
    }

    /// An error about one tensor of this file.
    pub(super) fn fault(&self, name: &str, reason: impl std::fmt::Display) -> Error {
        Error::weights(&self.path, format!("tensor {name:?}: {reason}"))
    }
}

fn decode<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|&chunk| convert(chunk)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::test_support::{raw_file, teachers};

    fn open(json: &str, data: &[u8]) -> (tempfile::TempDir, TensorFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        fs::write(&path, raw_file(json, data)).unwrap();
        let file = TensorFile::open(&path).unwrap();
        (folder, file)
    }

    #[test]
    fn floats_of_every_width_are_converted_at_any_alignment() {
        // One byte in front puts every later tensor at an odd offset.
        let json = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
            "f16":{"dtype":"F16","shape":[2],"data_offsets":[1,5]},
            "bf16":{"dtype":"BF16","shape":[2],"data_offsets":[5,9]},
            "f32":{"dtype":"F32","shape":[2],"data_offsets":[9,17]},
            "f64":{"dtype":"F64","shape":[1,2],"data_offsets":[17,33]}}"#;
        let mut data = vec![9_u8];
        [1.5, -2.0].iter().for_each(|&v| data.extend(f16::from_f32(v).to_le_bytes()));
        [1.5, -2.0].iter().for_each(|&v| data.extend(bf16::from_f32(v).to_le_bytes()));
        [1.5_f32, -2.0].iter().for_each(|v| data.extend(v.to_le_bytes()));
        [1.5_f64, -2.0].iter().for_each(|v| data.extend(v.to_le_bytes()));
        let (_folder, file) = open(json, &data);
        for name in ["f16", "bf16", "f32", "f64"] {
            assert_eq!(file.read_f32(name).unwrap(), [1.5, -2.0], "{name}");
        }
        let tensor = file.read_tensor("f64", &Device::Cpu).unwrap();
        assert_eq!(tensor.to_vec2::<f64>().unwrap(), [[1.5, -2.0]]);
        assert_eq!(file.read_raw("a").unwrap(), [9]);
        assert_eq!(file.info("f64").unwrap(), (Dtype::F64, &[1, 2][..]));
        assert_eq!(file.names().collect::<Vec<_>>(), ["a", "bf16", "f16", "f32", "f64"]);
    }

    #[test]
    fn unusable_tensors_are_named_with_their_file() {
        let json = r#"{"i":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},
            "nan":{"dtype":"F32","shape":[3],"data_offsets":[8,20]},
            "wide":{"dtype":"F64","shape":[1],"data_offsets":[20,28]},
            "half":{"dtype":"F16","shape":[1],"data_offsets":[28,30]}}"#;
        let mut data = vec![0; 8];
        [0.0, f32::NAN, f32::INFINITY].iter().for_each(|v| data.extend(v.to_le_bytes()));
        data.extend(1e300_f64.to_le_bytes());
        data.extend(f16::NEG_INFINITY.to_le_bytes());
        let (_folder, file) = open(json, &data);
        for (name, expected) in [
            ("i", "tensor \"i\": expected dtype F32, F16, BF16 or F64, got I64"),
            ("nan", "tensor \"nan\": expected finite values, got NaN at index 1"),
            ("wide", "tensor \"wide\": expected finite values, got inf at index 0"),
            ("half", "tensor \"half\": expected finite values, got -inf at index 0"),
            ("other", "tensor \"other\": not in the file"),
        ] {
            let got = file.read_f32(name).unwrap_err().to_string();
            assert!(got.contains(expected) && got.contains("x.safetensors"), "expected {expected:?} in {got:?}");
        }
        let got = file.read_tensor("half", &Device::Cpu).unwrap_err().to_string();
        assert!(got.contains("got F16"), "{got}");
    }

    #[test]
    fn what_is_not_a_weights_file_is_refused_when_opened() {
        let folder = tempfile::tempdir().unwrap();
        let missing = TensorFile::open(folder.path().join("none.safetensors")).unwrap_err();
        assert!(matches!(&missing, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound));
        assert!(missing.to_string().contains("none.safetensors"));
        let got = TensorFile::open(folder.path()).unwrap_err().to_string();
        assert!(got.contains("got a folder"), "{got}");
        let got = TensorFile::open("/dev/null").unwrap_err().to_string();
        assert!(got.contains("device"), "{got}");
        let empty = folder.path().join("empty.safetensors");
        fs::write(&empty, b"").unwrap();
        let got = TensorFile::open(&empty).unwrap_err().to_string();
        assert!(got.contains("empty.safetensors: the file is empty"), "{got}");
    }

    #[test]
    fn a_file_that_shrinks_after_opening_is_an_error_and_not_a_crash() {
        let (_folder, file) = open(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &[0; 8]);
        let shrunk = fs::OpenOptions::new().write(true).open(file.path()).unwrap();
        shrunk.set_len(10).unwrap();
        let got = file.read_f32("w").unwrap_err().to_string();
        assert!(got.contains("and is 10 now"), "{got}");
    }

    #[test]
    fn a_file_replaced_by_renaming_keeps_its_old_values() {
        let (folder, file) = open(r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, &1_f32.to_le_bytes());
        let new = folder.path().join("new");
        fs::write(&new, b"other").unwrap();
        fs::rename(&new, file.path()).unwrap();
        assert_eq!(file.read_f32("w").unwrap(), [1.0]);
    }

    #[test]
    fn trained_teachers_are_read_completely() {
        let Some(folder) = teachers() else { return };
        let mut seen = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                let file = TensorFile::open(&path).unwrap();
                assert!(file.metadata().contains_key("arch"), "{}", path.display());
                for name in file.names() {
                    let values = file.read_f32(name).unwrap();
                    assert_eq!(values.len(), file.info(name).unwrap().1.iter().product::<usize>(), "{name}");
                }
                seen += 1;
            }
        }
        assert!(seen > 0, "the folder of teachers holds no safetensors file");
    }
}
