//! Adam, with weight decay in the gradient or decoupled from it (AdamW).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use candle_core::{DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::moment::Moment;
use super::update::fused;
use super::{DecayOn, Grads, Optimizer, Params, State, check_range, entry, pairs};
use crate::error::{Error, Result};

const FIRST: &str = "exp_avg";
const SECOND: &str = "exp_avg_sq";
const STEP: &str = "step";

/// Options of [`Adam`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamConfig {
    /// β₁, the share of the mean gradient that is kept.
    pub beta1: f64,
    /// β₂, the share of the mean squared gradient that is kept.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub eps: f64,
    /// λ; its meaning depends on `decoupled_decay`.
    pub weight_decay: f64,
    /// AdamW: shrinks the parameter by lr·λ. Else λ·p is added to the gradient.
    pub decoupled_decay: bool,
    /// The parameters `weight_decay` applies to.
    pub decay_on: DecayOn,
}

impl Default for AdamConfig {
    /// AdamW with PyTorch's defaults, decay on matrices only.
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 1e-2,
            decoupled_decay: true,
            decay_on: DecayOn::Matrices,
        }
    }
}

impl AdamConfig {
    /// Checks that the options are in range.
    ///
    /// # Errors
    /// [`Error::Config`] names the option.
    pub fn validate(&self) -> Result<()> {
        check_range("beta1", self.beta1, 0.0..1.0)?;
        check_range("beta2", self.beta2, 0.0..1.0)?;
        check_range("eps", self.eps, 0.0..f64::INFINITY)?;
        check_range("weight_decay", self.weight_decay, 0.0..f64::INFINITY)
    }
}

/// Adam or AdamW.
///
/// `m ← β₁·m + (1−β₁)·g`, `v ← β₂·v + (1−β₂)·g²`, then
/// `p ← p − lr/(1−β₁ᵗ) · m / (√v / √(1−β₂ᵗ) + ε)`, t counting the steps of each parameter. State: `exp_avg.PARAMETER`,
/// `exp_avg_sq.PARAMETER` and `step.PARAMETER` (an i64 scalar).
///
/// # Source
/// `torch.optim.Adam` and `AdamW` without amsgrad: Kingma, Ba 2014, arXiv:1412.6980; Loshchilov, Hutter 2017,
/// arXiv:1711.05101.
#[derive(Debug)]
pub struct Adam {
    config: AdamConfig,
    slots: BTreeMap<String, Slot>,
}

#[derive(Debug)]
struct Slot {
    first: Moment,
    second: Moment,
    step: i64,
}

impl Slot {
    fn zeros(param: &Var) -> Result<Self> {
        Ok(Self { first: Moment::zeros(param)?, second: Moment::zeros(param)?, step: 0 })
    }
}

impl Adam {
    /// An optimiser without state.
    ///
    /// # Errors
    /// [`Error::Config`] if `config` is not valid.
    pub fn new(config: AdamConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { config, slots: BTreeMap::new() })
    }
}

impl Optimizer for Adam {
    fn step(&mut self, params: &Params, grads: &Grads, lr: f64) -> Result<()> {
        let config = &self.config;
        for (name, param, grad) in pairs(params, grads)? {
            let slot = match self.slots.entry(name.clone()) {
                Entry::Occupied(found) => found.into_mut(),
                Entry::Vacant(place) => place.insert(Slot::zeros(param)?),
            };
            slot.step += 1;
            let rates = Rates::at(config, lr, config.decay_on.on(param, config.weight_decay), slot.step);
            match (&mut slot.first, &mut slot.second) {
                (Moment::Host(first, _), Moment::Host(second, _)) => rates.fused(param, &grad, [first, second])?,
                (Moment::Device(first), Moment::Device(second)) => rates.by_tensor(param, &grad, [first, second])?,
                // Both moments are made from one parameter, in one place.
                _ => return Err(Error::Config(format!("optimiser state: the moments of {name} differ in kind"))),
            }
        }
        Ok(())
    }

    fn state(&self) -> Result<State> {
        let mut state = State::new();
        for (name, slot) in &self.slots {
            state.insert(format!("{FIRST}.{name}"), slot.first.save()?);
            state.insert(format!("{SECOND}.{name}"), slot.second.save()?);
            state.insert(format!("{STEP}.{name}"), Tensor::new(slot.step, &Device::Cpu)?);
        }
        Ok(state)
    }

    fn load_state(&mut self, params: &Params, state: &State) -> Result<()> {
        let mut slots = BTreeMap::new();
        let find = |kind: &str, name: &str| {
            let key = format!("{kind}.{name}");
            let missing = || Error::Config(format!("optimiser state: no entry {key}"));
            state.get(&key).ok_or_else(missing).map(|saved| (key.clone(), saved))
        };
        for key in state.keys() {
            let (kind, name, param) = entry(params, key)?;
            if ![FIRST, SECOND, STEP].contains(&kind) {
                return Err(Error::Config(format!("optimiser state: unexpected entry {key}")));
            }
            if slots.contains_key(name) {
                continue;
            }
            let ((first_key, first), (second_key, second)) = (find(FIRST, name)?, find(SECOND, name)?);
            let (step_key, step) = find(STEP, name)?;
            let slot = Slot {
                first: Moment::load(&first_key, param, first)?,
                second: Moment::load(&second_key, param, second)?,
                step: load_step(&step_key, step)?,
            };
            slots.insert(name.to_owned(), slot);
        }
        self.slots = slots;
        Ok(())
    }
}

fn load_step(key: &str, saved: &Tensor) -> Result<i64> {
    if saved.elem_count() != 1 {
        return Err(Error::Shape(format!("{key}: expected a scalar, got {:?}", saved.dims())));
    }
    let step = saved.to_dtype(DType::I64)?.reshape(())?.to_scalar::<i64>()?;
    if step < 1 {
        return Err(Error::Config(format!("{key}: expected a step of at least 1, got {step}")));
    }
    Ok(step)
}

/// The numbers of one parameter's update at one step.
#[derive(Clone, Copy)]
struct Rates {
    beta1: f64,
    beta2: f64,
    eps: f64,
    /// λ in the gradient.
    decay: f64,
    /// What remains of the parameter after decoupled decay.
    shrink: f64,
    /// `lr/(1−β₁ᵗ)`.
    step_size: f64,
    /// `√(1−β₂ᵗ)`.
    root_correction: f64,
}

impl Rates {
    fn at(config: &AdamConfig, lr: f64, decay: f64, step: i64) -> Self {
        let (in_gradient, decoupled) = if config.decoupled_decay { (0.0, decay) } else { (decay, 0.0) };
        let power = |beta: f64| beta.powf(step as f64);
        Self {
            beta1: config.beta1,
            beta2: config.beta2,
            eps: config.eps,
            decay: in_gradient,
            shrink: 1.0 - lr * decoupled,
            step_size: lr / (1.0 - power(config.beta1)),
            root_correction: (1.0 - power(config.beta2)).sqrt(),
        }
    }

    fn fused(self, param: &Var, grad: &Tensor, moments: [&mut Vec<f32>; 2]) -> Result<()> {
        let (beta1, beta2, eps) = (self.beta1 as f32, self.beta2 as f32, self.eps as f32);
        // 1 − β in f64 first: in f32 it would lose digits when β is close to 1.
        let (rest1, rest2) = ((1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32);
        let (decay, shrink) = (self.decay as f32, self.shrink as f32);
        let (step_size, root_correction) = (self.step_size as f32, self.root_correction as f32);
        fused(param, grad, moments.map(Vec::as_mut_slice), |param, grad, [first, second]| {
            for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(first).zip(second) {
                let g = g + decay * *p;
                *m = beta1 * *m + rest1 * g;
                *v = beta2 * *v + rest2 * g * g;
                *p = shrink * *p - step_size * *m / (v.sqrt() / root_correction + eps);
            }
        })
    }

    fn by_tensor(self, param: &Var, grad: &Tensor, [first, second]: [&mut Tensor; 2]) -> Result<()> {
        let value = param.as_detached_tensor();
        let grad = (grad.to_dtype(value.dtype())? + (&value * self.decay)?)?;
        *first = ((&*first * self.beta1)? + (&grad * (1.0 - self.beta1))?)?;
        *second = ((&*second * self.beta2)? + (grad.sqr()? * (1.0 - self.beta2))?)?;
        let root = ((second.sqrt()? / self.root_correction)? + self.eps)?;
        let change = ((&*first / root)? * self.step_size)?;
        Ok(param.set(&((value * self.shrink)? - change)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        check_fixture, check_pieces, check_quadratic, check_resume, check_untouched, params_of,
    };
    use super::*;

    const ADAM: AdamConfig = AdamConfig {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.05,
        decoupled_decay: false,
        decay_on: DecayOn::All,
    };
    const ADAMW: AdamConfig =
        AdamConfig { beta1: 0.8, beta2: 0.95, decoupled_decay: true, decay_on: DecayOn::Matrices, ..ADAM };

    #[test]
    fn agrees_with_pytorch() {
        check_fixture("adam", || Adam::new(ADAM));
        check_fixture("adamw", || Adam::new(ADAMW));
    }

    #[test]
    fn resumes_bit_for_bit() {
        check_resume(|| Adam::new(ADAM));
        check_resume(|| Adam::new(ADAMW));
    }

    #[test]
    fn converges_on_a_quadratic() {
        check_quadratic(Adam::new(AdamConfig { weight_decay: 0.0, ..ADAMW }), 0.05);
    }

    #[test]
    fn long_parameters_are_updated_whole() {
        check_pieces(|| Adam::new(ADAMW));
    }

    #[test]
    fn errors_leave_parameters_and_state_alone() -> Result<()> {
        check_untouched(|| Adam::new(ADAMW))
    }

    #[test]
    fn an_incomplete_state_is_refused() -> Result<()> {
        let params = params_of(DType::F32);
        // Copies of the values as gradients: a step may not read what it is writing.
        let copy = |param: &Var| param.as_detached_tensor().copy();
        let grads: candle_core::Result<Grads> = params.iter().map(|(n, p)| Ok((n.clone(), copy(p)?))).collect();
        let mut saved = Adam::new(ADAM)?;
        assert!(saved.state()?.is_empty());
        saved.step(&params, &grads?, 0.1)?;
        let state = saved.state()?;
        assert_eq!(state.len(), 3 * params.len());
        for key in state.keys() {
            let mut part = state.clone();
            part.remove(key);
            assert!(matches!(Adam::new(ADAM)?.load_state(&params, &part), Err(Error::Config(_))), "{key}");
        }
        let mut early = state.clone();
        early.insert(format!("{STEP}.weight"), Tensor::new(0i64, &Device::Cpu)?);
        assert!(matches!(Adam::new(ADAM)?.load_state(&params, &early), Err(Error::Config(_))));
        Ok(())
    }

    #[test]
    fn options_out_of_range_are_refused() {
        for bad in [
            AdamConfig { beta1: 1.0, ..ADAM },
            AdamConfig { beta2: -0.1, ..ADAM },
            AdamConfig { eps: f64::NAN, ..ADAM },
            AdamConfig { weight_decay: f64::INFINITY, ..ADAM },
        ] {
            assert!(matches!(Adam::new(bad), Err(Error::Config(_))), "{bad:?}");
        }
    }
}
