//! What happens to an accumulator before it is stored: residual, activation.

use super::{Vector, exp};
use crate::graph::Activation;

/// The tail of a fused step: `y = activation(x + residual)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epilogue {
    /// Lower bound; −∞ where there is none.
    pub low: f32,
    /// Upper bound; +∞ where there is none.
    pub high: f32,
    /// An activation that is more than a clamp.
    pub smooth: Option<Activation>,
}

impl Epilogue {
    /// The epilogue of an activation.
    pub fn new(activation: Option<Activation>) -> Self {
        let (low, high) = match activation {
            Some(Activation::Relu) => (0.0, f32::INFINITY),
            Some(Activation::Relu6) => (0.0, 6.0),
            _ => (f32::NEG_INFINITY, f32::INFINITY),
        };
        let smooth = activation.filter(|a| !matches!(a, Activation::Relu | Activation::Relu6));
        Self { low, high, smooth }
    }

    /// Whether there is a bound.
    pub fn clamps(&self) -> bool {
        self.low > f32::NEG_INFINITY || self.high < f32::INFINITY
    }
}

/// Clamps; NaN stays NaN.
///
/// # Safety
/// As [`Vector`].
#[inline(always)]
pub(crate) unsafe fn clamp<V: Vector>(x: V, low: V, high: V) -> V {
    // The order of operands matters: where one is NaN, x86 returns the second.
    // SAFETY: the caller's.
    unsafe { high.min(low.max(x)) }
}

/// A smooth activation.
///
/// # Safety
/// As [`Vector`].
#[inline(always)]
pub(crate) unsafe fn smooth<V: Vector>(x: V, function: Activation) -> V {
    // SAFETY: the caller's.
    unsafe {
        match function {
            Activation::Relu => V::splat(0.0).max(x),
            Activation::Relu6 => clamp(x, V::splat(0.0), V::splat(6.0)),
            Activation::Silu => x.mul(sigmoid(x)),
            Activation::HardSwish => x.mul(hard_sigmoid(x)),
            Activation::HardSigmoid => hard_sigmoid(x),
            Activation::Sigmoid => sigmoid(x),
        }
    }
}

#[inline(always)]
unsafe fn sigmoid<V: Vector>(x: V) -> V {
    // SAFETY: the caller's.
    unsafe { V::splat(1.0).div(V::splat(1.0).add(exp(V::splat(0.0).sub(x)))) }
}

#[inline(always)]
unsafe fn hard_sigmoid<V: Vector>(x: V) -> V {
    // SAFETY: the caller's.
    unsafe { clamp(x.add(V::splat(3.0)), V::splat(0.0), V::splat(6.0)).mul(V::splat(1.0 / 6.0)) }
}
