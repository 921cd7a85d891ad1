//! Networks as ONNX files, for runtimes that this program knows nothing of: TensorRT, ONNX Runtime, OpenVINO.
//!
//! One walk over the graph; which ONNX operators an [`Op`](crate::graph::Op) becomes is answered in `nodes`, what
//! the bytes mean in `proto`. Where the file goes is the caller's business.
//!
//! The operator set is 17, the newest that the parser of TensorRT 8.5 reads, which is what JetPack 5 ships; nothing
//! here needs a later one. Operators that older parsers lack (HardSwish) are written as those they have.

mod nodes;
mod proto;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use prost::Message;

use self::nodes::Nodes;
use crate::graph::Graph;
use crate::weights::ParamTensors;
use crate::{Error, Result};

/// Name of the input, f32 `[N, C, H, W]`.
pub const INPUT: &str = "input";
/// Name of the output, f32 `[N, classes]`.
pub const OUTPUT: &str = "logits";
/// Name of the batch dimension, which is free.
pub const BATCH: &str = "N";
/// Version of the operator set.
pub const OPSET: i64 = 17;

/// The file format that came with the operator set: ONNX 1.12.
const IR_VERSION: i64 = 8;
/// Protobuf's bound on a message.
const MAX_BYTES: u64 = i32::MAX as u64;

/// What a file says beside the network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExportInfo {
    /// The program that writes the file.
    pub producer: String,
    /// Its version.
    pub version: String,
    /// Free-form metadata (class names, preprocessing, provenance).
    pub metadata: BTreeMap<String, String>,
}

/// The network as the bytes of an ONNX file: input [`INPUT`], normalised, output [`OUTPUT`], raw.
///
/// Parameters keep their names; batch normalisation is written as it is, runtimes fold it. Dropout is left out. The
/// same arguments give the same bytes.
///
/// # Errors
/// [`Error::Shape`] naming a parameter that is missing or misshapen; [`Error::Config`] if the file would exceed
/// protobuf's bound of 2 GB; [`Error::Tensor`] if a device does not give its tensors.
pub fn export(graph: &Graph, params: &ParamTensors, info: &ExportInfo) -> Result<Vec<u8>> {
    let values = |shape: Vec<usize>| shape.iter().map(|&d| d as u64).product::<u64>();
    // Looked at first, so that nothing of that size is built in vain.
    let bytes = graph.params().map(|spec| 4 * values(spec.shape)).sum();
    check_size(graph, bytes)?;
    let file = model(graph, params, info)?;
    check_size(graph, file.encoded_len() as u64)?;
    Ok(file.encode_to_vec())
}

fn check_size(graph: &Graph, bytes: u64) -> Result<()> {
    match bytes > MAX_BYTES {
        false => Ok(()),
        true => Err(Error::Config(format!(
            "{}: an ONNX file of this network has {bytes} bytes, expected at most {MAX_BYTES} (protobuf's bound)",
            graph.name()
        ))),
    }
}

fn model(graph: &Graph, params: &ParamTensors, info: &ExportInfo) -> Result<proto::Model> {
    let (node, initializer) = Nodes::of(graph, params)?;
    let [channels, height, width] = graph.input_shape();
    let entry = |(key, value): (&String, &String)| proto::StringEntry { key: key.clone(), value: Some(value.clone()) };
    Ok(proto::Model {
        ir_version: IR_VERSION,
        producer_name: info.producer.clone(),
        producer_version: info.version.clone(),
        graph: Some(proto::Graph {
            node,
            name: graph.name().to_string(),
            initializer,
            input: vec![batch_of(INPUT, &[channels, height, width])],
            output: vec![batch_of(OUTPUT, &[graph.num_classes()])],
        }),
        opset_import: vec![proto::OperatorSet { domain: Some(String::new()), version: OPSET }],
        metadata_props: info.metadata.iter().map(entry).collect(),
    })
}

/// A value of `shape` per image, f32.
fn batch_of(name: &str, shape: &[usize]) -> proto::ValueInfo {
    let batch = proto::Dim { param: Some(BATCH.into()), value: None };
    let fixed = shape.iter().map(|&d| proto::Dim { value: Some(d as i64), param: None });
    let shape = proto::Shape { dim: std::iter::once(batch).chain(fixed).collect() };
    let tensor = proto::TensorType { elem_type: proto::FLOAT, shape: Some(shape) };
    proto::ValueInfo { name: name.into(), value_type: Some(proto::Type { tensor: Some(tensor) }) }
}
