//! The header of a safetensors file, parsed and checked once so that no accessor has to check again.
//!
//! The safetensors crate has a parser too. This one names the tensor at fault, refuses repeated names (the crate
//! keeps the last) and survives offsets near the end of the address range (the crate's sum overflows). A test
//! holds the two to the same verdict everywhere else.

use std::collections::BTreeMap;
use std::fmt;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

/// Bytes in front of the header that hold its length.
const LENGTH_BYTES: usize = 8;
/// The format's own limit on the header.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// What the header says, every claim checked against the file's length.
#[derive(Debug)]
pub(super) struct Header {
    /// The free-form `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Tensors by name; offsets count from `data_start`.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// Where tensor data begins in the file.
    pub data_start: usize,
}

impl Header {
    /// Parses and checks the header of the whole file `bytes`.
    ///
    /// # Errors
    /// The reason, without the file's name.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.is_empty() {
            return Err("the file is empty".into());
        }
        if let Some(kind) = foreign_format(bytes) {
            return Err(format!("not a safetensors file: {kind}"));
        }
        let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
            return Err(format!("not a safetensors file: expected at least 8 bytes, got {}", bytes.len()));
        };
        let length = u64::from_le_bytes(*length);
        let length = usize::try_from(length).ok().filter(|&n| n <= MAX_HEADER_BYTES).ok_or_else(|| {
            format!("not a safetensors file: header too large, expected at most {MAX_HEADER_BYTES} bytes, got {length}")
        })?;
        let (json, data) = rest.split_at_checked(length).ok_or_else(|| {
            format!("truncated inside its header: expected {length} bytes of header, got {}", rest.len())
        })?;
        let json =
            std::str::from_utf8(json).map_err(|e| format!("not a safetensors file: the header is not UTF-8 ({e})"))?;
        let Entries { metadata, tensors } = serde_json::from_str(json)
            .map_err(|e| format!("not a safetensors file: the header is not the expected JSON ({e})"))?;
        check_layout(&tensors, data.len())?;
        Ok(Self { metadata, tensors, data_start: LENGTH_BYTES + length })
    }
}

/// Recognises files that people often hold in its place.
fn foreign_format(bytes: &[u8]) -> Option<&'static str> {
    const KNOWN: [(&[u8], &str); 5] = [
        (b"PK\x03\x04", "a zip archive, probably a PyTorch checkpoint; convert it to safetensors first"),
        (b"\x80\x02", "a Python pickle, probably a PyTorch checkpoint; convert it to safetensors first"),
        (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with git lfs pull"),
        (b"\x89HDF", "an HDF5 file; convert it to safetensors first"),
        (b"<!DOCTYPE", "a web page; the download went wrong"),
    ];
    // A pickle's two bytes are also a possible header length; the ninth byte, `{`, tells.
    if bytes.get(LENGTH_BYTES) == Some(&b'{') {
        return None;
    }
    KNOWN.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, kind)| *kind)
}

/// Checks that the tensors cover the `present` bytes of data exactly, each with the bytes its shape and dtype need.
fn check_layout(tensors: &BTreeMap<String, TensorInfo>, present: usize) -> Result<(), String> {
    let mut ordered: Vec<(&String, &TensorInfo)> = tensors.iter().collect();
    ordered.sort_by_key(|(_, info)| info.data_offsets);
    let mut position = 0;
    for (name, info) in ordered {
        let (start, end) = info.data_offsets;
        if start != position || end < start {
            return Err(format!("tensor {name:?}: expected its data to start at byte {position}, got {start}..{end}"));
        }
        let needed = byte_size(info).ok_or_else(|| {
            format!("tensor {name:?}: {} {:?} is not a whole and possible number of bytes", info.dtype, info.shape)
        })?;
        if end - start != needed {
            return Err(format!(
                "tensor {name:?}: expected {needed} bytes for {} {:?}, got {}",
                info.dtype,
                info.shape,
                end - start
            ));
        }
        if end > present {
            return Err(format!(
                "truncated in tensor {name:?}: expected at least {end} bytes of tensor data, got {present}"
            ));
        }
        position = end;
    }
    if position != present {
        return Err(format!("expected {position} bytes of tensor data, got {present}"));
    }
    Ok(())
}

fn byte_size(info: &TensorInfo) -> Option<usize> {
    let elements = info.shape.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim))?;
    let bits = elements.checked_mul(Dtype::bitsize(&info.dtype))?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The header's JSON object: `__metadata__` beside any number of tensors.
struct Entries {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut metadata = None;
                let mut tensors = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    let repeated = if name == "__metadata__" {
                        let value: Option<BTreeMap<String, String>> =
                            map.next_value().map_err(|e| A::Error::custom(format!("__metadata__: {e}")))?;
                        metadata.replace(value.unwrap_or_default()).is_some()
                    } else {
                        let info = map.next_value().map_err(|e| A::Error::custom(format!("tensor {name:?}: {e}")))?;
                        tensors.insert(name.clone(), info).is_some()
                    };
                    if repeated {
                        return Err(A::Error::custom(format!("duplicate entry {name:?}")));
                    }
                }
                Ok(Entries { metadata: metadata.unwrap_or_default(), tensors })
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    use super::*;
    use crate::weights::test_support::raw_file;

    fn reason(bytes: &[u8]) -> String {
        Header::parse(bytes).unwrap_err()
    }

    #[test]
    fn a_well_formed_header_is_read() {
        let bytes =
            raw_file(r#"{"__metadata__":{"a":"b"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &[0; 8]);
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(header.metadata["a"], "b");
        assert_eq!(header.tensors["w"].shape, [2]);
        assert_eq!(bytes.len() - header.data_start, 8);
    }

    #[test]
    fn each_fault_has_its_own_message() {
        let f32_pair = r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#;
        let cases: [(Vec<u8>, &str); 18] = [
            (vec![], "the file is empty"),
            (vec![1, 2, 3], "expected at least 8 bytes, got 3"),
            (u64::MAX.to_le_bytes().to_vec(), "header too large"),
            (100_000_001_u64.to_le_bytes().to_vec(), "header too large"),
            (
                [&9_u64.to_le_bytes()[..], b"{}"].concat(),
                "truncated inside its header: expected 9 bytes of header, got 2",
            ),
            ([&2_u64.to_le_bytes()[..], &[0xff, 0xfe]].concat(), "the header is not UTF-8"),
            (raw_file("{nonsense", &[]), "not the expected JSON"),
            (raw_file("[1]", &[]), "expected an object of tensors"),
            (
                raw_file(&format!(r#"{{"w":{{{f32_pair}}}}}"#), &[0; 7]),
                "truncated in tensor \"w\": expected at least 8",
            ),
            (raw_file(&format!(r#"{{"w":{{{f32_pair}}}}}"#), &[0; 9]), "expected 8 bytes of tensor data, got 9"),
            (raw_file(&format!(r#"{{"w":{{{f32_pair}}},"w":{{{f32_pair}}}}}"#), &[0; 8]), "duplicate entry \"w\""),
            (
                raw_file(r#"{"w":{"dtype":"F99","shape":[],"data_offsets":[0,4]}}"#, &[0; 4]),
                "tensor \"w\": unknown variant",
            ),
            (
                raw_file(r#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, &[0; 8]),
                "tensor \"w\": expected 12 bytes for F32 [3], got 8",
            ),
            (
                raw_file(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#, &[0; 12]),
                "tensor \"w\": expected its data to start at byte 0, got 4..12",
            ),
            (
                raw_file(r#"{"w":{"dtype":"F4","shape":[1],"data_offsets":[0,0]}}"#, &[]),
                "tensor \"w\": F4 [1] is not a whole",
            ),
            (raw_file(r#"{"__metadata__":{"a":1}}"#, &[]), "__metadata__: invalid type"),
            (b"PK\x03\x04 and so on".to_vec(), "PyTorch checkpoint"),
            (b"version https://git-lfs.github.com/spec/v1".to_vec(), "Git LFS pointer"),
        ];
        for (bytes, expected) in cases {
            let got = reason(&bytes);
            assert!(got.contains(expected), "expected {expected:?} in {got:?}");
        }
    }

    // Sizes are `usize`: on 32 bits such offsets are no numbers any more.
    #[cfg(target_pointer_width = "64")]
    #[test]
    fn offsets_near_the_end_of_the_address_range_are_refused_without_overflow() {
        let eighth = 1_usize << 60;
        let tensors: Vec<String> = (0..15)
            .map(|i| {
                let (start, end) = (i * eighth, (i + 1) * eighth);
                format!(r#""t{i:02}":{{"dtype":"U8","shape":[{eighth}],"data_offsets":[{start},{end}]}}"#)
            })
            .collect();
        assert!(reason(&raw_file(&format!("{{{}}}", tensors.join(",")), &[])).contains("truncated in tensor \"t00\""));
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_stack_overflow() {
        assert!(reason(&raw_file(&"[".repeat(100_000), &[])).contains("not the expected JSON"));
        let nested = format!(r#"{{"w":{}"#, r#"{"x":"#.repeat(50_000));
        assert!(reason(&raw_file(&nested, &[])).contains("not the expected JSON"));
    }

    fn sample() -> Vec<u8> {
        raw_file(
            r#"{"__metadata__":{"arch":"x"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}}"#,
            &[7; 11],
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn flipped_bytes_never_panic_and_agree_with_the_reference_parser(
            flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6)
        ) {
            let mut bytes = sample();
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            let ours = Header::parse(&bytes);
            let reference = SafeTensors::deserialize(&bytes);
            // Only repeated names and another format's magic bytes are refused by us alone.
            match (&ours, &reference) {
                (Err(reason), Ok(_)) => prop_assert!(reason.contains("duplicate"), "{reason}"),
                (Ok(_), Err(reason)) => prop_assert!(false, "accepted what the reference refuses: {reason}"),
                _ => {}
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Header::parse(&bytes).is_err() || SafeTensors::deserialize(&bytes).is_ok());
        }
    }
}
