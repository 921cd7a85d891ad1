//! Timing engines: what the latency budget of `adapt` and the `bench` command share.
//!
//! A board's clock wanders, so whatever is to be compared is timed in turns, block by block, and judged by medians.

mod stats;
mod timed;

pub use stats::Stats;
pub use timed::{Timed, in_turns, median_profile};
