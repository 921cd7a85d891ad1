//! The Open Inference Protocol v2: requests read from bytes, answers written to bytes.
//!
//! Pure functions, no HTTP: what arrives in a header arrives here as an argument. Everything is checked that can be
//! checked without a model; [`InferRequest::images`] checks the rest against one.

mod metadata;
mod multipart;
mod request;
mod response;
mod tensor;

pub use metadata::{IndexEntry, ModelMetadata, ServerMetadata, TensorMetadata};
pub use multipart::first_image;
pub use request::{InferRequest, Wanted};
pub use response::{Answer, Encoded};
pub use tensor::{Input, Signature};

/// The name of a model's input.
pub const INPUT: &str = "input";
/// The name of a model's output.
pub const OUTPUT: &str = "logits";
