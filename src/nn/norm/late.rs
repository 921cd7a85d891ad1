//! The gradient that a batch normalisation passes on, before it is computed.

use std::mem::MaybeUninit;

use candle_core::{Result as CandleResult, Tensor};

use super::kernels::{Normaliser, Terms};
use crate::graph::Activation;
use crate::nn::activation::with_function;
use crate::nn::host;

/// What computes rows of a gradient: it gets the index of the first value and memory for whole rows, and writes all of it.
pub(in crate::nn) type FillRows<'a> = dyn Fn(usize, &mut [MaybeUninit<f32>]) + Sync + 'a;

/// A gradient in f32 whose rows are computed where they are needed, so that it never lies in memory as a whole.
pub struct LateGradient {
    x: Tensor,
    dy: Tensor,
    activation: Option<Activation>,
    normaliser: Normaliser<f32>,
    terms: Terms<f32>,
}

impl std::fmt::Debug for LateGradient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LateGradient({:?})", self.x.shape())
    }
}

impl LateGradient {
    pub(super) const fn new(
        x: Tensor,
        dy: Tensor,
        activation: Option<Activation>,
        normaliser: Normaliser<f32>,
        terms: Terms<f32>,
    ) -> Self {
        Self { x, dy, activation, normaliser, terms }
    }

    /// All of it, in the shape of the batch norm's input.
    ///
    /// # Errors
    /// [`candle_core::Error`] if it cannot be made a tensor.
    pub fn tensor(&self) -> CandleResult<Tensor> {
        let dx = host::read2(
            &self.x,
            &self.dy,
            |x, dy| with_function!(self.activation, F => self.normaliser.input_gradient::<F>(x, dy, &self.terms)),
        )?;
        host::tensor(dx, self.x.shape())
    }

    /// Calls `f` with what computes it row by row.
    pub(in crate::nn) fn by_rows<R>(&self, f: impl FnOnce(&FillRows) -> R) -> CandleResult<R> {
        host::read2(&self.x, &self.dy, |x, dy| {
            f(&|at: usize, dx: &mut [MaybeUninit<f32>]| {
                let range = at..at + dx.len();
                let of = [&x[range.clone()], &dy[range]];
                with_function!(self.activation, F => self.normaliser.input_gradient_of::<F>(of, &self.terms, dx));
            })
        })
    }
}
