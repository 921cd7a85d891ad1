//! Safetensors in (memory-mapped, validated against a graph) and out (atomic and durable).
//!
//! A teacher arrives as a weights file, perhaps with a `config.json`; a student, a checkpoint and a report leave as
//! files that are either the old or the new one, whatever happens in between. What the tensors mean is not known
//! here: a [`crate::graph::Graph`] says which ones a network needs.
//!
//! ```no_run
//! # fn main() -> secateur::Result<()> {
//! # let graph = secateur::graph::GraphBuilder::new("tiny", [1, 2, 2]).finish()?;
//! use secateur::weights::{ModelDescription, TensorFile, load_params, resolve};
//!
//! let flags = ModelDescription { num_classes: Some(31), ..Default::default() };
//! let (path, found) = resolve("teacher".as_ref())?;
//! let description = found.overridden_by(flags);
//! description.check(&path)?;
//! let params = load_params(&TensorFile::open(&path)?, &graph, &candle_core::Device::Cpu)?;
//! # Ok(())
//! # }
//! ```

mod atomic;
mod config;
mod describe;
mod digest;
mod file;
mod header;
mod load;
#[cfg(test)]
pub(crate) mod test_support;
mod validate;
mod write;

pub use atomic::{sync_folder, write_bytes_atomic};
pub use config::resolve;
pub use describe::{INT8_KEY, ModelDescription, PROVENANCE_KEY};
pub use digest::{sha256, sha256_file};
pub use file::TensorFile;
pub use load::{ParamTensors, check_params, load_params};
pub use write::write_atomic;
