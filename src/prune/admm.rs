//! ADMM for the {0, 1} constraint on the hard mask.

use serde::{Deserialize, Serialize};

use super::Selector;
use crate::{Error, Result};

/// Settings of the hard mask's updates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdmmConfig {
    /// Step size on the loss gradient of the relaxed mask.
    pub mask_lr: f64,
    /// Pull of the relaxed mask towards the auxiliary at the start; grows geometrically.
    pub rho_start: f64,
    /// The pull at the end.
    pub rho_end: f64,
    /// Weight of the importance rank in the projection.
    pub rank_weight: f64,
    /// Step of the scaled dual.
    pub dual_step: f64,
    /// Bound on the scaled dual.
    pub dual_clip: f64,
    /// Steps between two projections.
    pub every: usize,
    /// Part of the phase over which the budget ramps up: from, to.
    pub ramp: (f64, f64),
    /// Part of the phase from which on the auxiliary is frozen and the mask contracts to it.
    pub freeze_at: f64,
}

impl Default for AdmmConfig {
    fn default() -> Self {
        Self {
            mask_lr: 0.05,
            rho_start: 0.01,
            rho_end: 0.3,
            rank_weight: 0.5,
            dual_step: 0.1,
            dual_clip: 0.5,
            every: 10,
            ramp: (0.05, 0.6),
            freeze_at: 0.75,
        }
    }
}

/// The hard mask in ADMM form: relaxed primal `v` in [0, 1], binary auxiliary `z`, scaled dual `u`.
///
/// `v ← clip(v − lr·g − ρ(v − z + u), 0, 1)` after every step; every few steps `z ← project(v + u + w·π)` and
/// `u ← clip(u + η(v − z), ±c)`.
///
/// # Source
/// Boyd et al. 2011, "Distributed Optimization and Statistical Learning via ADMM", section 3.1.1 (scaled form);
/// Feng et al. 2020, arXiv:2006.04127. Deviations, measured: an importance rank π breaks the ties of equal v; the
/// dual moves slowly and is clipped; the support is frozen near the end, so that hardening loses nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Admm {
    /// Relaxed mask, one value per entry.
    pub primal: Vec<f32>,
    /// Binary mask under the budget.
    pub auxiliary: Vec<f32>,
    /// Scaled dual.
    pub scaled_dual: Vec<f32>,
    config: AdmmConfig,
    rank: Vec<f32>,
}

impl Admm {
    /// All channels on; `rank` is each entry's importance percentile in [0, 1].
    pub fn new(rank: Vec<f32>, config: AdmmConfig) -> Self {
        let n = rank.len();
        Self { primal: vec![1.0; n], auxiliary: vec![1.0; n], scaled_dual: vec![0.0; n], config, rank }
    }

    /// One update after step `step` of `steps`, with the loss gradient of the relaxed mask.
    ///
    /// # Errors
    /// [`Error::Numeric`] if a gradient made the mask non-finite.
    pub fn step(&mut self, gradient: &[f32], step: usize, steps: usize, selector: &Selector) -> Result<()> {
        let t = (step + 1) as f64 / steps as f64;
        let frozen = t > self.config.freeze_at;
        if frozen {
            self.scaled_dual.fill(0.0);
        }
        let rho = self.rho(t) as f32;
        let lr = self.config.mask_lr as f32;
        for (i, v) in self.primal.iter_mut().enumerate() {
            let pull = *v - self.auxiliary[i] + self.scaled_dual[i];
            *v = (*v - lr * gradient.get(i).copied().unwrap_or(0.0) - rho * pull).clamp(0.0, 1.0);
        }
        if self.primal.iter().any(|v| !v.is_finite()) {
            return Err(Error::Numeric("admm: the mask's gradient is not finite".into()));
        }
        if (step + 1).is_multiple_of(self.config.every.max(1)) && !frozen {
            self.project(t, selector)?;
        }
        Ok(())
    }

    /// `z ← project(v + u + w·π)`, then the dual step.
    fn project(&mut self, t: f64, selector: &Selector) -> Result<()> {
        let weight = self.config.rank_weight as f32;
        let scores: Vec<f32> =
            (0..self.primal.len()).map(|i| self.primal[i] + self.scaled_dual[i] + weight * self.rank[i]).collect();
        let keep = selector.select(&scores, self.ramp(t))?;
        let (eta, clip) = (self.config.dual_step as f32, self.config.dual_clip as f32);
        for (i, kept) in keep.into_iter().enumerate() {
            self.auxiliary[i] = f32::from(u8::from(kept));
            let dual = self.scaled_dual[i] + eta * (self.primal[i] - self.auxiliary[i]);
            self.scaled_dual[i] = dual.clamp(-clip, clip);
        }
        Ok(())
    }

    /// The final mask: a last projection at the full budget, unless the support already meets it.
    ///
    /// # Errors
    /// As [`Selector::select`].
    pub fn harden(&mut self, selector: &Selector) -> Result<Vec<bool>> {
        let support: Vec<bool> = self.auxiliary.iter().map(|z| *z > 0.5).collect();
        let projected = self.harden_again(selector)?;
        let keep = if selector.meets(&support, 1.0)? { support } else { projected };
        self.settle(&keep);
        Ok(keep)
    }

    /// A projection at the full budget whether or not the support meets it: for a selector that counts differently now.
    ///
    /// # Errors
    /// As [`Selector::select`].
    pub fn harden_again(&mut self, selector: &Selector) -> Result<Vec<bool>> {
        let scores: Vec<f32> =
            (0..self.primal.len()).map(|i| 2.0 * self.auxiliary[i] + self.primal[i] + self.rank[i]).collect();
        let keep = selector.select(&scores, 1.0)?;
        self.settle(&keep);
        Ok(keep)
    }

    /// Ends the iteration at `keep`.
    fn settle(&mut self, keep: &[bool]) {
        for (z, kept) in self.auxiliary.iter_mut().zip(keep) {
            *z = f32::from(u8::from(*kept));
        }
        self.primal.clone_from(&self.auxiliary);
        self.scaled_dual.fill(0.0);
    }

    /// Skips the iteration: the importance rank alone decides, at the full budget.
    ///
    /// # Errors
    /// As [`Selector::select`].
    pub fn at_rank(rank: Vec<f32>, config: AdmmConfig, selector: &Selector) -> Result<Self> {
        let keep = selector.select(&rank, 1.0)?;
        let mut admm = Self::new(rank, config);
        admm.settle(&keep);
        Ok(admm)
    }

    /// Root mean square of v − z: how far the mask is from binary.
    pub fn primal_residual(&self) -> f64 {
        let sum: f64 = self.primal.iter().zip(&self.auxiliary).map(|(v, z)| f64::from(v - z).powi(2)).sum();
        (sum / self.primal.len().max(1) as f64).sqrt()
    }

    /// Penalty weight at progress `t`: geometric from `rho_start` to `rho_end`.
    pub fn rho(&self, t: f64) -> f64 {
        self.config.rho_start * (self.config.rho_end / self.config.rho_start).powf(t.clamp(0.0, 1.0))
    }

    /// Part of the budget in force at progress `t`: 1 − (1 − q)³ over the ramp.
    fn ramp(&self, t: f64) -> f64 {
        let (from, to) = self.config.ramp;
        let q = ((t - from) / (to - from).max(1e-9)).clamp(0.0, 1.0);
        1.0 - (1.0 - q).powi(3)
    }
}

#[cfg(test)]
mod tests;
