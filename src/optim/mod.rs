//! Optimisers whose state can be saved and restored, gradient clipping, and learning-rate schedules.
//!
//! candle's own optimisers hide their moments, so a run with them cannot be resumed. These follow PyTorch's update
//! formulas over an ordered map of named parameters, and hand their state out as named tensors; after
//! [`Optimizer::load_state`] the next steps are the same to the last bit. This module knows tensors and names only,
//! never a model.

mod adam;
mod clip;
mod moment;
mod schedule;
mod sgd;
mod update;

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub use adam::{Adam, AdamConfig};
pub use clip::clip_grad_norm;
pub use schedule::{cosine, inverse_power, linear_warm_up};
pub use sgd::{Sgd, SgdConfig};

/// Trainable parameters by name, in a fixed order.
pub type Params = BTreeMap<String, Var>;
/// Gradients under the names of their parameters.
pub type Grads = BTreeMap<String, Tensor>;
/// An optimiser's saved state: `KIND.PARAMETER` to tensor.
pub type State = BTreeMap<String, Tensor>;

/// What every optimiser can do.
pub trait Optimizer {
    /// Moves every parameter that has a gradient, at learning rate `lr`.
    ///
    /// A parameter without a gradient is not touched, nor is its state; a gradient without a parameter is ignored.
    ///
    /// # Errors
    /// [`Error::Shape`] if a gradient has another shape than its parameter; then nothing has moved.
    fn step(&mut self, params: &Params, grads: &Grads, lr: f64) -> Result<()>;

    /// A copy of the state, which later steps do not change. Parameters that never had a gradient are absent.
    ///
    /// # Errors
    /// [`Error::Tensor`] if a copy cannot be made.
    fn state(&self) -> Result<State>;

    /// Replaces the state by one that [`Optimizer::state`] returned, for the same parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for an entry this optimiser does not keep, a parameter not in `params`, or a set of entries
    /// that is not complete; [`Error::Shape`] for one of another shape. The old state stays after an error.
    fn load_state(&mut self, params: &Params, state: &State) -> Result<()>;
}

/// Which parameters weight decay pulls towards zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecayOn {
    /// Tensors of rank above 1: the weights of convolutions and linear layers, not biases and not the scale and shift
    /// of batch norms.
    #[default]
    Matrices,
    /// Every parameter, as PyTorch does unless told otherwise.
    All,
}

impl DecayOn {
    /// `weight_decay` if it reaches `param`, else 0.
    fn on(self, param: &Var, weight_decay: f64) -> f64 {
        match self {
            Self::All => weight_decay,
            Self::Matrices if param.rank() > 1 => weight_decay,
            Self::Matrices => 0.0,
        }
    }
}

/// Takes the gradient of each parameter out of `store`; a parameter the loss does not depend on has none.
pub fn take_grads(params: &Params, store: &mut GradStore) -> Grads {
    let grad = |(name, param): (&String, &Var)| store.remove(param).map(|grad| (name.clone(), grad));
    params.iter().filter_map(grad).collect()
}

/// Pairs parameters with their gradients, after checking all shapes.
fn pairs<'a>(params: &'a Params, grads: &'a Grads) -> Result<Vec<(&'a String, &'a Var, Tensor)>> {
    let with_grad = params.iter().filter_map(|(name, param)| grads.get(name).map(|grad| (name, param, grad)));
    with_grad
        .map(|(name, param, grad)| {
            if param.dims() == grad.dims() {
                return Ok((name, param, grad.detach()));
            }
            Err(Error::Shape(format!("gradient of {name}: expected {:?}, got {:?}", param.dims(), grad.dims())))
        })
        .collect()
}

/// Splits a state entry into its kind and its parameter, and checks that the parameter exists.
fn entry<'a>(params: &'a Params, key: &'a str) -> Result<(&'a str, &'a str, &'a Var)> {
    let found = key.split_once('.').and_then(|(kind, name)| params.get(name).map(|param| (kind, name, param)));
    found.ok_or_else(|| Error::Config(format!("optimiser state: no parameter for entry {key}")))
}

/// Checks that `value` is in `range`; `name` is the configuration key.
fn check_range(name: &str, value: f64, range: impl std::ops::RangeBounds<f64>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Error::Config(format!("{name}: {value} is out of range")))
}

#[cfg(test)]
mod testing;
