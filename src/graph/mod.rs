//! The architecture as data: a graph of nodes over a closed set of operations. No tensors here.

pub mod op;

pub use op::{Activation, ChannelRule, Conv2d, Op, Padding, Pool2d};
