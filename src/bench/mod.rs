//! How fast a model is on this board, and whether the figure can be trusted.
//!
//! Models are measured in turns, block by block, so that a ratio holds on a board whose clock wanders; the board's
//! temperature, frequency and load are read before and after.

mod baseline;
mod cold_start;
mod measure;
mod page;
mod random;
mod row;
mod training;

pub use baseline::{Baseline, Comparison};
pub use cold_start::{ColdStart, cold_start, serve_once};
pub use measure::{Case, Limits, Measured, Subject, measure};
pub use page::page;
pub use random::{narrowed, random_params};
pub use row::{Row, table};
pub use training::{TrainingSpeed, training_speed};
