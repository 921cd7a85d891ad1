//! Stochastic gradient descent with momentum.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use super::moment::Moment;
use super::update::{fused, is_fused};
use super::{DecayOn, Grads, Optimizer, Params, State, check_range, entry, pairs};
use crate::error::{Error, Result};

const BUFFER: &str = "momentum_buffer";

/// Options of [`Sgd`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SgdConfig {
    /// μ, the share of the last direction that is kept; 0 keeps no state.
    pub momentum: f64,
    /// Looks one step ahead along the momentum.
    pub nesterov: bool,
    /// Added to the gradient, times the parameter.
    pub weight_decay: f64,
    /// The parameters `weight_decay` applies to.
    pub decay_on: DecayOn,
}

impl Default for SgdConfig {
    /// Nesterov momentum 0.9, weight decay 1e-3 on matrices.
    fn default() -> Self {
        Self { momentum: 0.9, nesterov: true, weight_decay: 1e-3, decay_on: DecayOn::Matrices }
    }
}

impl SgdConfig {
    /// Checks that the options are in range and fit together.
    ///
    /// # Errors
    /// [`Error::Config`] names the option.
    pub fn validate(&self) -> Result<()> {
        check_range("momentum", self.momentum, 0.0..1.0)?;
        check_range("weight_decay", self.weight_decay, 0.0..f64::INFINITY)?;
        if self.nesterov && self.momentum == 0.0 {
            return Err(Error::Config("nesterov: needs a momentum above 0".into()));
        }
        Ok(())
    }
}

/// SGD with momentum, Nesterov or plain.
///
/// `g ← g + λ·p`, `b ← μ·b + g` (b starts at 0, so the first b is g), then `p ← p − lr·b`, or with Nesterov
/// `p ← p − lr·(g + μ·b)`. State: `momentum_buffer.PARAMETER`.
///
/// # Source
/// `torch.optim.SGD` with dampening 0; the look-ahead is that of Sutskever, Martens, Dahl, Hinton 2013.
#[derive(Debug)]
pub struct Sgd {
    config: SgdConfig,
    buffers: BTreeMap<String, Moment>,
}

impl Sgd {
    /// An optimiser without state.
    ///
    /// # Errors
    /// [`Error::Config`] if `config` is not valid.
    pub fn new(config: SgdConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { config, buffers: BTreeMap::new() })
    }
}

/// The numbers of one parameter's update.
#[derive(Clone, Copy)]
struct Rates {
    lr: f64,
    momentum: f64,
    decay: f64,
    nesterov: bool,
}

impl Optimizer for Sgd {
    fn step(&mut self, params: &Params, grads: &Grads, lr: f64) -> Result<()> {
        let SgdConfig { momentum, nesterov, weight_decay, decay_on } = self.config;
        for (name, param, grad) in pairs(params, grads)? {
            let rates = Rates { lr, momentum, decay: decay_on.on(param, weight_decay), nesterov };
            if momentum == 0.0 {
                rates.without_momentum(param, &grad)?;
                continue;
            }
            let buffer = match self.buffers.entry(name.clone()) {
                Entry::Occupied(found) => found.into_mut(),
                Entry::Vacant(place) => place.insert(Moment::zeros(param)?),
            };
            match buffer {
                Moment::Host(buffer, _) => rates.fused(param, &grad, buffer)?,
                Moment::Device(buffer) => rates.by_tensor(param, &grad, buffer)?,
            }
        }
        Ok(())
    }

    fn state(&self) -> Result<State> {
        self.buffers.iter().map(|(name, buffer)| Ok((format!("{BUFFER}.{name}"), buffer.save()?))).collect()
    }

    fn load_state(&mut self, params: &Params, state: &State) -> Result<()> {
        let mut buffers = BTreeMap::new();
        for (key, saved) in state {
            let (kind, name, param) = entry(params, key)?;
            if kind != BUFFER || self.config.momentum == 0.0 {
                return Err(Error::Config(format!("optimiser state: unexpected entry {key}")));
            }
            buffers.insert(name.to_owned(), Moment::load(key, param, saved)?);
        }
        self.buffers = buffers;
        Ok(())
    }
}

impl Rates {
    fn fused(self, param: &Var, grad: &Tensor, buffer: &mut [f32]) -> Result<()> {
        let (lr, momentum, decay) = (self.lr as f32, self.momentum as f32, self.decay as f32);
        fused(param, grad, [buffer], |param, grad, [buffer]| {
            for ((p, &g), b) in param.iter_mut().zip(grad).zip(buffer) {
                let g = g + decay * *p;
                *b = momentum * *b + g;
                *p -= lr * if self.nesterov { g + momentum * *b } else { *b };
            }
        })
    }

    fn by_tensor(self, param: &Var, grad: &Tensor, buffer: &mut Tensor) -> Result<()> {
        let grad = self.decayed(param, grad)?;
        *buffer = ((&*buffer * self.momentum)? + &grad)?;
        let direction = if self.nesterov { (grad + (&*buffer * self.momentum)?)? } else { buffer.clone() };
        Ok(param.set(&(param.as_detached_tensor() - (direction * self.lr)?)?)?)
    }

    fn without_momentum(self, param: &Var, grad: &Tensor) -> Result<()> {
        if !is_fused(param) {
            let direction = self.decayed(param, grad)?;
            return Ok(param.set(&(param.as_detached_tensor() - (direction * self.lr)?)?)?);
        }
        let (lr, decay) = (self.lr as f32, self.decay as f32);
        fused(param, grad, [], |param, grad, []| {
            for (p, &g) in param.iter_mut().zip(grad) {
                *p -= lr * (g + decay * *p);
            }
        })
    }

    fn decayed(self, param: &Var, grad: &Tensor) -> Result<Tensor> {
        Ok((grad.to_dtype(param.dtype())? + (param.as_detached_tensor() * self.decay)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        check_fixture, check_pieces, check_quadratic, check_resume, check_untouched, params_of,
    };
    use super::*;

    const PLAIN: SgdConfig = SgdConfig { momentum: 0.0, nesterov: false, weight_decay: 0.05, decay_on: DecayOn::All };
    const MOMENTUM: SgdConfig = SgdConfig { momentum: 0.9, decay_on: DecayOn::Matrices, ..PLAIN };
    const NESTEROV: SgdConfig = SgdConfig { momentum: 0.9, nesterov: true, ..PLAIN };

    #[test]
    fn agrees_with_pytorch() {
        check_fixture("sgd_plain", || Sgd::new(PLAIN));
        check_fixture("sgd_momentum", || Sgd::new(MOMENTUM));
        check_fixture("sgd_nesterov", || Sgd::new(NESTEROV));
    }

    #[test]
    fn resumes_bit_for_bit() {
        check_resume(|| Sgd::new(PLAIN));
        check_resume(|| Sgd::new(NESTEROV));
    }

    #[test]
    fn converges_on_a_quadratic() {
        check_quadratic(Sgd::new(SgdConfig { weight_decay: 0.0, ..NESTEROV }), 0.02);
    }

    #[test]
    fn long_parameters_are_updated_whole() {
        check_pieces(|| Sgd::new(PLAIN));
        check_pieces(|| Sgd::new(NESTEROV));
    }

    #[test]
    fn errors_leave_parameters_and_state_alone() -> Result<()> {
        check_untouched(|| Sgd::new(NESTEROV))?;
        let params = params_of(candle_core::DType::F32);
        let buffer = Tensor::zeros((3, 4), candle_core::DType::F32, &candle_core::Device::Cpu)?;
        let state = State::from([(format!("{BUFFER}.weight"), buffer)]);
        assert!(matches!(Sgd::new(PLAIN)?.load_state(&params, &state), Err(Error::Config(_))));
        Ok(())
    }

    #[test]
    fn options_out_of_range_are_refused() {
        for bad in [
            SgdConfig { momentum: 1.0, ..NESTEROV },
            SgdConfig { momentum: 0.0, ..NESTEROV },
            SgdConfig { weight_decay: f64::NAN, ..NESTEROV },
            SgdConfig { weight_decay: -0.1, ..NESTEROV },
        ] {
            assert!(matches!(Sgd::new(bad), Err(Error::Config(_))), "{bad:?}");
        }
    }
}
