//! Channel pruning, cut four ways: how much (budget), what is worth keeping (importance), when (ADMM), and the
//! removal itself (surgery). What is coupled with what is the graph's own knowledge (`graph::ChannelGroups`).

pub mod admm;
pub mod budget;
pub mod importance;
pub mod select;
pub mod surgery;

pub use admm::{Admm, AdmmConfig};
pub use budget::{Budget, Measure};
pub use select::{Limits, Selector};
