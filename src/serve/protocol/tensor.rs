//! The input tensor: what arrived, and what a model makes of it.

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};

use super::INPUT;
use crate::data::{Image, Preprocess};
use crate::serve::error::{Code, Refusal};

/// What a model takes and gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Signature {
    /// Channels, height, width.
    pub input: [usize; 3],
    /// One name per logit.
    pub class_names: Vec<String>,
    /// How pixels become the input.
    pub preprocess: Preprocess,
}

impl Signature {
    /// Values of one image.
    pub fn per_image(&self) -> usize {
        self.input.iter().product()
    }
}

/// The tensor of a request: its shape and values agree, whether they suit a model is not known yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    shape: Vec<usize>,
    values: Values,
}

/// The element type and where the elements are.
#[derive(Debug, Clone, PartialEq)]
enum Values {
    /// FP32, little-endian, as it came.
    RawF32(Bytes),
    /// FP32 out of JSON.
    F32(Vec<f32>),
    /// UINT8.
    U8(Bytes),
}

/// Where a tensor's elements stand in a request.
#[derive(Debug)]
pub(super) enum Data {
    /// In the JSON, flattened.
    Json(Vec<f32>),
    /// Behind the JSON.
    Binary(Bytes),
}

fn invalid(message: String) -> Refusal {
    Refusal::new(Code::InvalidTensor, format!("{INPUT}: {message}"))
}

impl Input {
    /// A tensor whose elements fit its shape.
    ///
    /// # Errors
    /// [`Code::InvalidTensor`] for another type than FP32 or UINT8, or a number of elements that is not the shape's;
    /// [`Code::NotFinite`] for NaN and infinity.
    pub(super) fn new(datatype: &str, shape: &[i64], data: Data) -> Result<Self, Refusal> {
        let bytes_each = match datatype {
            "FP32" => size_of::<f32>(),
            "UINT8" => 1,
            other => return Err(invalid(format!("expected datatype FP32 or UINT8, got {other:?}"))),
        };
        let sides: Option<Vec<usize>> = shape.iter().map(|side| usize::try_from(*side).ok()).collect();
        let elements = sides.as_ref().and_then(|s| s.iter().try_fold(1usize, |n, side| n.checked_mul(*side)));
        let (Some(shape), Some(elements)) = (sides, elements) else {
            return Err(invalid(format!("expected a possible shape, got {shape:?}")));
        };
        let expect = |what: &str, want: Option<usize>, got: usize| match want {
            Some(want) if want == got => Ok(()),
            Some(want) => Err(invalid(format!("expected {want} {what} for {datatype} {shape:?}, got {got}"))),
            None => Err(invalid(format!("expected a possible shape, got {shape:?}"))),
        };
        let values = match (datatype, data) {
            (_, Data::Json(values)) if bytes_each == 1 => {
                expect("values", Some(elements), values.len())?;
                Values::U8(to_bytes(&values)?)
            }
            (_, Data::Json(values)) => {
                expect("values", Some(elements), values.len())?;
                finite(values.iter().copied())?;
                Values::F32(values)
            }
            (_, Data::Binary(bytes)) => {
                expect("bytes", elements.checked_mul(bytes_each), bytes.len())?;
                if bytes_each == 1 {
                    Values::U8(bytes)
                } else {
                    finite(floats(&bytes))?;
                    Values::RawF32(bytes)
                }
            }
        };
        Ok(Self { shape, values })
    }

    /// The images as the network takes them, `[N, C, H, W]`, and their number; UINT8 pixels are normalised.
    ///
    /// # Errors
    /// [`Code::InvalidTensor`] if the shape is not the model's: `[N, C, H, W]` for FP32, `[N, H, W, C]` for UINT8.
    pub fn images(&self, signature: &Signature) -> Result<(Vec<f32>, usize), Refusal> {
        let [c, h, w] = signature.input;
        let (kind, want) = match self.values {
            Values::U8(_) => ("UINT8", [h, w, c]),
            _ => ("FP32", [c, h, w]),
        };
        let [count, image @ ..] = &self.shape[..] else {
            return Err(invalid(format!("expected shape [N, {}, {}, {}], got []", want[0], want[1], want[2])));
        };
        if *count == 0 || *image != want {
            let [a, b, c] = want;
            return Err(invalid(format!("expected shape [N, {a}, {b}, {c}] for {kind}, got {:?}", self.shape)));
        }
        let images = match &self.values {
            Values::RawF32(bytes) => floats(bytes).collect(),
            Values::F32(values) => values.clone(),
            Values::U8(pixels) => normalised(pixels, signature)?,
        };
        Ok((images, *count))
    }
}

fn normalised(pixels: &[u8], signature: &Signature) -> Result<Vec<f32>, Refusal> {
    let [c, h, w] = signature.input;
    let mut images = Vec::with_capacity(pixels.len());
    for pixels in pixels.chunks(signature.per_image().max(1)) {
        let image = Image::new(INPUT, [h, w, c], pixels.to_vec()).map_err(|e| invalid(e.to_string()))?;
        images.extend(signature.preprocess.eval(&image));
    }
    Ok(images)
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four))
}

fn finite(mut values: impl Iterator<Item = f32>) -> Result<(), Refusal> {
    match values.position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => {
            let message = format!("{INPUT}: expected finite values, got NaN or infinity at index {index}");
            Err(Refusal::new(Code::NotFinite, message))
        }
    }
}

fn to_bytes(values: &[f32]) -> Result<Bytes, Refusal> {
    let byte = |&value: &f32| {
        let byte = value as u8;
        if f32::from(byte) == value {
            Ok(byte)
        } else {
            Err(invalid(format!("expected whole numbers within 0..=255 for UINT8, got {value}")))
        }
    };
    values.iter().map(byte).collect::<Result<Vec<u8>, _>>().map(Bytes::from)
}

/// Reads numbers in arrays of any nesting, row after row; the protocol allows flat and nested data.
pub(super) struct Flattened<'a>(pub &'a mut Vec<f32>);

impl<'de> DeserializeSeed<'de> for Flattened<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Flattened<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("numbers, or arrays of numbers")
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        let narrow = value as f32;
        if !narrow.is_finite() {
            return Err(E::custom(format!("{value:e} is beyond FP32")));
        }
        self.0.push(narrow);
        Ok(())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.0.push(value as f32);
        Ok(())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.0.push(value as f32);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        while rows.next_element_seed(Flattened(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        Err(E::invalid_type(serde::de::Unexpected::Bool(value), &self))
    }
}

/// `"data"` of a JSON tensor.
#[derive(Debug, Default)]
pub(super) struct JsonData(pub Vec<f32>);

impl<'de> serde::Deserialize<'de> for JsonData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Outer;
        impl<'de> Visitor<'de> for Outer {
            type Value = JsonData;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an array of numbers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, rows: A) -> Result<JsonData, A::Error> {
                let mut values = Vec::new();
                Flattened(&mut values).visit_seq(rows).map_err(A::Error::custom)?;
                Ok(JsonData(values))
            }
        }
        deserializer.deserialize_seq(Outer)
    }
}
