//! The stages of a network and the training-time forward pass.
//!
//! `Teacher` (frozen tensors) becomes a `Student` (trainable variables under a channel mask), which surgery turns
//! into a `CompactModel` (a smaller graph with its own tensors). Only whole networks can be saved: a masked,
//! half-pruned one has no way out of this module. A `Runner` is one of them compiled to answer.

mod compact;
mod forward;
mod info;
mod mask;
mod ops;
#[cfg(test)]
mod parity;
mod runner;
mod scope;
mod student;
mod teacher;
#[cfg(test)]
pub(crate) mod testing;

pub use compact::{CompactModel, Provenance, metadata};
pub use forward::{ActivationMemory, Forward, LEAST_IMAGES, Mode, Output};
pub use info::ModelInfo;
pub use mask::ChannelMask;
pub use runner::{Runner, RunnerConfig, rank};
pub use scope::TrainScope;
pub use student::Student;
pub use teacher::Teacher;

use std::collections::BTreeMap;

/// Parameter tensors by torchvision / timm name.
pub type Params = BTreeMap<String, candle_core::Tensor>;
