//! Safetensors out: the same tensors and metadata always give the same bytes, and a file is replaced whole or not
//! at all.
//!
//! The safetensors crate writes its metadata in the order of a hash map and does not fsync, so the header is made
//! here.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::atomic::PendingFile;
use crate::{Error, Result};

/// The key of the free-form metadata, which therefore no tensor can have.
const METADATA_KEY: &str = "__metadata__";

/// Writes `tensors` and `metadata` as a safetensors file, one tensor in memory at a time, atomically and durably.
///
/// The bytes depend on the arguments alone. As the reference implementation does, wider element types come first, then
/// names in order, behind a header padded to 8 bytes: every tensor lies aligned to its type.
///
/// # Errors
/// [`Error::Weights`] naming a tensor of another type than F32, F64, U8, U32 and I64, or one that is called
/// `__metadata__`; [`Error::Io`] with `path`. In each case nothing is left in the folder and an old file stays as
/// it was.
pub fn write_atomic(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let path = path.as_ref();
    let ordered = ordered(path, tensors)?;
    let mut pending = PendingFile::create(path)?;
    pending.write_all(&header(&ordered, metadata))?;
    for entry in &ordered {
        pending.write_all(&little_endian(entry.tensor)?)?;
    }
    pending.commit()
}

/// A tensor in its place in the file.
struct Entry<'a> {
    name: &'a str,
    tensor: &'a Tensor,
    dtype: Dtype,
}

/// The tensors in the order of their data.
fn ordered<'a>(path: &Path, tensors: &'a BTreeMap<String, Tensor>) -> Result<Vec<Entry<'a>>> {
    let mut entries = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        if name == METADATA_KEY {
            return Err(Error::weights(path, format!("tensor {name:?}: the format reserves this name")));
        }
        let dtype = match tensor.dtype() {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::U8 => Dtype::U8,
            DType::U32 => Dtype::U32,
            DType::I64 => Dtype::I64,
            other => {
                let got = other.as_str();
                let reason = format!("tensor {name:?}: expected dtype f32, f64, u8, u32 or i64, got {got}");
                return Err(Error::weights(path, reason));
            }
        };
        entries.push(Entry { name, tensor, dtype });
    }
    // Stable, so that names stay in order.
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.dtype.bitsize()));
    Ok(entries)
}

/// Length and JSON, padded with spaces to a multiple of 8 bytes.
fn header(entries: &[Entry], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut object = Map::new();
    if !metadata.is_empty() {
        object.insert(METADATA_KEY.into(), json!(metadata));
    }
    let mut start = 0;
    for entry in entries {
        let end = start + entry.tensor.elem_count() * entry.dtype.bitsize() / 8;
        let info = json!({
            "dtype": entry.dtype.to_string(),
            "shape": entry.tensor.dims(),
            "data_offsets": [start, end],
        });
        object.insert(entry.name.to_string(), info);
        start = end;
    }
    let mut json = Value::Object(object).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    bytes
}

fn little_endian(tensor: &Tensor) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(tensor.elem_count() * tensor.dtype().size_in_bytes());
    tensor.to_device(&Device::Cpu)?.write_bytes(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use safetensors::SafeTensors;

    use super::*;
    use crate::weights::TensorFile;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn map<V: Clone>(entries: &[(&str, V)]) -> BTreeMap<String, V> {
        entries.iter().map(|(k, v)| (k.to_string(), v.clone())).collect()
    }

    #[test]
    fn the_bytes_are_the_documented_format() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let bytes = Tensor::new(&[7_u8], &Device::Cpu).unwrap();
        let tensors = map(&[("b", tensor(&[1.0])), ("a", bytes)]);
        write_atomic(&path, &tensors, &map(&[("y", "2".into()), ("x", "1".to_string())])).unwrap();
        let json = concat!(
            r#"{"__metadata__":{"x":"1","y":"2"},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"#,
            r#""a":{"dtype":"U8","shape":[1],"data_offsets":[4,5]}}"#
        );
        let padded = json.len().next_multiple_of(8);
        let header = format!("{json:<padded$}");
        let expected = [&(padded as u64).to_le_bytes()[..], header.as_bytes(), &1_f32.to_le_bytes(), &[7]];
        assert_eq!(fs::read(&path).unwrap(), expected.concat());
    }

    #[test]
    fn the_safetensors_crate_reads_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        write_atomic(&path, &map(&[("w", tensor(&[1.0, 2.0]))]), &map(&[("arch", "tiny \"ü\"\n".to_string())]))
            .unwrap();
        let bytes = fs::read(&path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["arch"], "tiny \"ü\"\n");
        let view = SafeTensors::deserialize(&bytes).unwrap().tensor("w").unwrap().data().to_vec();
        assert_eq!(view, [1_f32.to_le_bytes(), 2_f32.to_le_bytes()].concat());
    }

    #[test]
    fn a_strided_tensor_is_written_in_logical_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let transposed = tensor(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).reshape((2, 3)).unwrap().t().unwrap();
        write_atomic(&path, &map(&[("w", transposed)]), &BTreeMap::new()).unwrap();
        let read = TensorFile::open(&path).unwrap().read_tensor("w", &Device::Cpu).unwrap();
        assert_eq!(read.to_vec2::<f32>().unwrap(), [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]);
    }

    #[test]
    fn a_refused_tensor_is_named_and_the_old_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        write_atomic(&path, &map(&[("w", tensor(&[1.0]))]), &BTreeMap::new()).unwrap();
        let half = tensor(&[1.0]).to_dtype(DType::F16).unwrap();
        let got = write_atomic(&path, &map(&[("h", half)]), &BTreeMap::new()).unwrap_err().to_string();
        assert!(got.contains("a.safetensors: tensor \"h\"") && got.contains("got f16"), "{got}");
        let got = write_atomic(&path, &map(&[(METADATA_KEY, tensor(&[1.0]))]), &BTreeMap::new()).unwrap_err();
        assert!(got.to_string().contains("reserves this name"), "{got}");
        assert_eq!(TensorFile::open(&path).unwrap().read_f32("w").unwrap(), [1.0]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn stopped_before_the_rename_the_old_file_still_loads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let write = |value: f32| write_atomic(&path, &map(&[("w", tensor(&[value]))]), &BTreeMap::new());
        write(1.0).unwrap();
        // As if the process were killed: no clean-up runs, all bytes are in the temporary file, nothing is renamed.
        let mut killed = PendingFile::create(&path).unwrap();
        killed.write_all(&[0; 100_000]).unwrap();
        std::mem::forget(killed);
        assert_eq!(TensorFile::open(&path).unwrap().read_f32("w").unwrap(), [1.0]);
        write(2.0).unwrap();
        assert_eq!(TensorFile::open(&path).unwrap().read_f32("w").unwrap(), [2.0]);
    }

    #[test]
    fn truncated_at_any_byte_it_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let tensors = map(&[("a", tensor(&[1.0, 2.0, 3.0])), ("b", tensor(&[4.0]))]);
        write_atomic(&path, &tensors, &map(&[("arch", "tiny".to_string())])).unwrap();
        let whole = fs::read(&path).unwrap();
        let cut = folder.path().join("cut.safetensors");
        for length in 0..whole.len() {
            fs::write(&cut, &whole[..length]).unwrap();
            let got = TensorFile::open(&cut).expect_err("a truncated file was accepted").to_string();
            assert!(got.contains("cut.safetensors"), "{got}");
        }
        fs::write(&cut, &whole).unwrap();
        TensorFile::open(&cut).unwrap();
    }

    /// A random tensor of one of the five types, its bits taken from `seed` (not-a-number included).
    fn any_tensor() -> impl Strategy<Value = Tensor> {
        let shape = proptest::collection::vec(0_usize..4, 0..4);
        (0..5_usize, shape, any::<u64>()).prop_map(|(kind, shape, seed)| {
            let dtype = [DType::F32, DType::F64, DType::U8, DType::U32, DType::I64][kind];
            let size = shape.iter().product::<usize>() * dtype.size_in_bytes();
            let bytes: Vec<u8> = (0..size as u64).map(|i| (seed.wrapping_mul(2 * i + 1) >> 32) as u8).collect();
            Tensor::from_raw_buffer(&bytes, dtype, &shape, &Device::Cpu).unwrap()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn save_then_load_is_identity(
            tensors in proptest::collection::btree_map("[^\\x00]{1,8}", any_tensor(), 0..6),
            metadata in proptest::collection::btree_map(".{0,6}", ".{0,12}", 0..4),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.safetensors");
            write_atomic(&path, &tensors, &metadata).unwrap();
            let file = TensorFile::open(&path).unwrap();
            prop_assert_eq!(file.metadata(), &metadata);
            prop_assert!(file.names().eq(tensors.keys()));
            for (name, tensor) in &tensors {
                let read = file.read_tensor(name, &Device::Cpu).unwrap();
                prop_assert_eq!(read.dtype(), tensor.dtype());
                prop_assert_eq!(read.dims(), tensor.dims());
                prop_assert_eq!(little_endian(&read).unwrap(), little_endian(tensor).unwrap());
                prop_assert_eq!(file.read_raw(name).unwrap(), little_endian(tensor).unwrap());
            }
            SafeTensors::deserialize(&fs::read(&path).unwrap()).unwrap();
        }
    }
}
