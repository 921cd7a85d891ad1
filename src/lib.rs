//! secateur: adapt a pretrained vision model to a device's own unlabeled images, remove its channels, serve
//! the compact student.
//!
//! The layers and what each may use are listed in ARCHITECTURE.md and enforced by `tests/layering.rs`.
#![deny(missing_docs)]

pub mod accuracy;
pub mod adapt;
pub mod arch;
pub mod bench;
pub mod board;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod data;
pub mod engine;
pub mod error;
pub mod graph;
pub mod loss;
pub mod model;
pub mod nn;
pub mod onnx;
pub mod optim;
pub mod plot;
pub mod prune;
pub mod rng;
pub mod serve;
pub mod store;
pub mod timing;
pub mod weights;

pub use error::{Error, Result};
