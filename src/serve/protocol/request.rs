//! An inference request: JSON, perhaps with binary tensors behind it.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use super::tensor::{Data, Input, JsonData, Signature};
use super::{INPUT, OUTPUT};
use crate::serve::error::{Code, Refusal};

/// As many as any model has, and more.
const MOST_CLASSES: u64 = 1_000_000;
/// An hour.
const MOST_MICROSECONDS: u64 = 3_600_000_000;

/// A request that is whole in itself; whether it suits a model shows in [`InferRequest::images`].
#[derive(Debug, Clone, PartialEq)]
pub struct InferRequest {
    /// The client's name for it, given back in the answer.
    pub id: Option<String>,
    /// What the answer shall look like.
    pub wanted: Wanted,
    /// The time the client gives it, where it says one.
    pub timeout: Option<Duration>,
    input: Input,
}

/// What the answer shall look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// The best k classes by name instead of all logits.
    pub classification: Option<usize>,
    /// As a binary tensor behind the JSON instead of in it.
    pub binary: bool,
}

#[derive(Deserialize)]
struct Request {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: Option<Parameters>,
    inputs: Vec<Tensor>,
    #[serde(default)]
    outputs: Option<Vec<Output>>,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    #[serde(default)]
    parameters: Option<Parameters>,
    #[serde(default)]
    data: Option<JsonData>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Option<Parameters>,
}

/// The parameters that mean something here; the protocol lets a server ignore others.
#[derive(Deserialize, Default)]
struct Parameters {
    /// Of the request: a default for its outputs.
    binary_data_output: Option<bool>,
    /// Of an output.
    binary_data: Option<bool>,
    /// Of an input: its bytes behind the JSON.
    binary_data_size: Option<u64>,
    /// Of an output.
    classification: Option<u64>,
    /// Of the request, in microseconds.
    timeout: Option<u64>,
    /// Of a tensor: Triton's shared-memory extension.
    shared_memory_region: Option<serde::de::IgnoredAny>,
}

fn malformed(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::Malformed, message)
}

impl InferRequest {
    /// Reads `body`; `json_length` is what the header `Inference-Header-Content-Length` says, the bytes of JSON that
    /// binary tensors follow.
    ///
    /// # Errors
    /// [`Code::Malformed`], [`Code::InvalidTensor`], [`Code::InvalidParameter`] or [`Code::NotFinite`] naming the field.
    pub fn parse(body: &Bytes, json_length: Option<usize>) -> Result<Self, Refusal> {
        let json_length = json_length.unwrap_or(body.len());
        if json_length > body.len() {
            let got = body.len();
            return Err(malformed(format!(
                "expected {json_length} bytes of JSON as the header says, got {got} in all"
            )));
        }
        let (json, mut binary) = (body.slice(..json_length), body.slice(json_length..));
        let request: Request = serde_json::from_slice(&json).map_err(|e| malformed(format!("not a request: {e}")))?;
        let parameters = request.parameters.unwrap_or_default();
        let Ok([tensor]) = <[Tensor; 1]>::try_from(request.inputs) else {
            return Err(malformed(format!("inputs: expected one tensor, {INPUT:?}")));
        };
        let input = input(tensor, &mut binary)?;
        if !binary.is_empty() {
            return Err(malformed(format!("{} bytes behind the JSON belong to no tensor", binary.len())));
        }
        let wanted = wanted(request.outputs, parameters.binary_data_output.unwrap_or(false))?;
        let timeout = parameters.timeout.map(|us| within("timeout", us, 0..=MOST_MICROSECONDS)).transpose()?;
        Ok(Self { id: request.id, wanted, timeout: timeout.map(Duration::from_micros), input })
    }

    /// The images as the network takes them, `[N, C, H, W]`, and their number; UINT8 pixels are normalised.
    ///
    /// # Errors
    /// [`Code::InvalidTensor`] if the shape is not the model's.
    pub fn images(&self, signature: &Signature) -> Result<(Vec<f32>, usize), Refusal> {
        self.input.images(signature)
    }
}

fn input(tensor: Tensor, binary: &mut Bytes) -> Result<Input, Refusal> {
    let Tensor { name, datatype, shape, parameters, data } = tensor;
    if name != INPUT {
        return Err(Refusal::new(Code::InvalidTensor, format!("expected an input named {INPUT:?}, got {name:?}")));
    }
    let parameters = parameters.unwrap_or_default();
    refuse_shared_memory(&parameters)?;
    let data = match (data, parameters.binary_data_size) {
        (Some(JsonData(values)), None) => Data::Json(values),
        (None, Some(size)) => {
            let size = usize::try_from(size).ok().filter(|size| *size <= binary.len());
            let size = size.ok_or_else(|| {
                let have = binary.len();
                malformed(format!("{INPUT}: binary_data_size: expected at most the {have} bytes behind the JSON"))
            })?;
            Data::Binary(binary.split_to(size))
        }
        (Some(_), Some(_)) => return Err(malformed(format!("{INPUT}: expected data or binary_data_size, got both"))),
        (None, None) => return Err(malformed(format!("{INPUT}: expected data or binary_data_size, got neither"))),
    };
    Input::new(&datatype, &shape, data)
}

fn wanted(outputs: Option<Vec<Output>>, binary: bool) -> Result<Wanted, Refusal> {
    let mut outputs = outputs.unwrap_or_default();
    let Some(output) = outputs.pop() else { return Ok(Wanted { classification: None, binary }) };
    if !outputs.is_empty() || output.name != OUTPUT {
        return Err(Refusal::new(Code::InvalidTensor, format!("outputs: expected {OUTPUT:?} once or nothing")));
    }
    let parameters = output.parameters.unwrap_or_default();
    refuse_shared_memory(&parameters)?;
    let classification = match parameters.classification {
        None => None,
        Some(k) => Some(usize::try_from(within("classification", k, 1..=MOST_CLASSES)?).unwrap_or(usize::MAX)),
    };
    Ok(Wanted { classification, binary: parameters.binary_data.unwrap_or(binary) })
}

fn within(name: &str, value: u64, range: RangeInclusive<u64>) -> Result<u64, Refusal> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(Refusal::new(Code::InvalidParameter, format!("{name}: expected a number within {range:?}, got {value}")))
}

fn refuse_shared_memory(parameters: &Parameters) -> Result<(), Refusal> {
    match parameters.shared_memory_region {
        None => Ok(()),
        Some(_) => Err(Refusal::new(Code::InvalidParameter, "shared_memory_region: not supported, send the tensor")),
    }
}

#[cfg(test)]
mod tests;
