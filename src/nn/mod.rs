//! Differentiable operations that candle lacks or does slowly, with CPU kernels and a tensor-op path for CUDA.
//!
//! Each operation takes a [`Backend`]. `Kernels` keeps activations channels-last and runs kernels with their own
//! gradients, as candle custom ops or, in training, on a [`Tape`]; `TensorOps` keeps them channels-first and builds the
//! same function from plain candle operations whose gradients are right on every device. Parameters always have
//! PyTorch's layout.
//!
//! This module knows shapes and attributes of one operation at a time: no graph, no model, no parameter names.

mod activation;
mod backend;
mod conv;
mod gemm;
mod host;
mod norm;
#[cfg(test)]
mod parity;
mod pool;
mod reshape;
mod scale;
mod simd;
mod sum;
mod tape;
#[cfg(test)]
pub(crate) mod testing;
mod threads;

pub use activation::activation;
pub use backend::Backend;
pub use conv::{conv2d, linear};
pub use norm::{BatchNorm, BatchStatistics, LateGradient, NormValues, batch_norm_eval, batch_norm_train};
pub use pool::{avg_pool2d, global_avg_pool, max_pool2d};
pub use reshape::{concat, flatten, pad_channels, subsample};
pub use scale::{mask_channels, scale};
pub use tape::{Call, Kernel, MOST_DEPTH, Tape, Value, add_to};
pub(crate) use threads::keep_awake;
