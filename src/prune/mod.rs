//! Channel pruning, cut four ways: how much (budget, and latency where time is what counts), what is worth keeping
//! (importance), when (ADMM), and the removal itself (surgery). What is coupled with what is the graph's own knowledge
//! (`graph::ChannelGroups`).

pub mod admm;
pub mod budget;
pub mod importance;
pub mod latency;
pub mod select;
pub mod surgery;

pub use admm::{Admm, AdmmConfig};
pub use budget::{Amount, Budget, Measure};
pub use latency::LatencyModel;
pub use select::{Limits, Selector};
