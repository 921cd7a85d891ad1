//! Training losses and the label-free signals next to them, one file each.
//!
//! Everything here is a function of tensors, built from candle's basic operations so that gradients are
//! right in f32 and f64 and on every device. This module must not know what a model is; it may not use
//! candle's fused softmax, which has no gradient.
//!
//! Losses return a tensor of rank 0 unless said otherwise and turn NaN logits into a NaN loss: the training
//! loop decides what to do about it. Logits are raw, `[N, C]`, one row per image.

mod calibration;
mod class_shares;
mod cross_entropy;
mod discrepancy;
mod distillation;
mod information_maximisation;
mod mcc;
mod pseudo_labels;
mod rows;
mod signals;
#[cfg(test)]
pub(crate) mod testing;

pub use calibration::calibrated_confidences;
pub use class_shares::class_shares;
pub use cross_entropy::cross_entropy;
pub use discrepancy::discrepancy;
pub use distillation::distillation;
pub use information_maximisation::{diversity, entropy, information_maximisation, weighted_entropy};
pub use mcc::mcc;
pub use pseudo_labels::{PseudoLabels, pseudo_labels, teacher_labels};
pub use signals::{agreement, mutual_information, soft_neighbourhood_density};
