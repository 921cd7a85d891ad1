//! Choosing which channels stay: the best by score under a budget and per-layer limits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Budget, LatencyModel, Measure};
use crate::graph::{ChannelGroups, Graph, Keep};
use crate::{Error, Result};

/// What every layer keeps whatever the budget says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Smallest fraction of a group's channels that stays, in [0, 1]; at least one channel always stays.
    pub min_keep: f64,
    /// Widths left are multiples of this where the group is wide enough.
    pub round_to: usize,
    /// Largest fraction removed from single layers, by the name of a group's first layer.
    pub caps: BTreeMap<String, f64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { min_keep: 0.1, round_to: 1, caps: BTreeMap::new() }
    }
}

impl Limits {
    /// # Errors
    /// [`Error::Config`] naming the value that is out of range.
    pub fn validate(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.min_keep) {
            return Err(Error::Config(format!("min_keep: expected a fraction in [0, 1], got {}", self.min_keep)));
        }
        if self.round_to == 0 {
            return Err(Error::Config("round_to: expected at least 1, got 0".into()));
        }
        match self.caps.iter().find(|(_, cap)| !(0.0..=1.0).contains(*cap)) {
            Some((name, cap)) => Err(Error::Config(format!("cap {name}: expected a fraction in [0, 1], got {cap}"))),
            None => Ok(()),
        }
    }
}

/// Picks the channels that stay; the projection onto the budget that ADMM and one-shot pruning share.
#[derive(Debug)]
pub struct Selector<'a> {
    graph: &'a Graph,
    groups: &'a ChannelGroups,
    budget: Budget,
    /// What networks take, where that is the budget's measure.
    latency: Option<LatencyModel>,
    round_to: usize,
    /// For each prunable group the number of entries that always stay.
    floors: Vec<usize>,
    /// For each entry what removing it saves of the budget's measure, in units of the mean.
    savings: Vec<f64>,
    full: u64,
}

impl<'a> Selector<'a> {
    /// A selector for `budget` under `limits`.
    ///
    /// # Errors
    /// [`Error::Config`] if a limit is out of range, a cap names no prunable layer, or the budget cannot be met even
    /// with every layer at its limit (the message says how far it can go), or it is one of latency.
    pub fn new(graph: &'a Graph, groups: &'a ChannelGroups, budget: Budget, limits: &Limits) -> Result<Self> {
        Self::with_latency(graph, groups, budget, limits, None)
    }

    /// As [`Selector::new`], for a budget of latency too.
    ///
    /// # Errors
    /// As [`Selector::new`]; a budget of latency is refused without a model only.
    pub fn with_latency(
        graph: &'a Graph,
        groups: &'a ChannelGroups,
        budget: Budget,
        limits: &Limits,
        latency: Option<LatencyModel>,
    ) -> Result<Self> {
        limits.validate()?;
        if let Some(name) = limits.caps.keys().find(|name| groups.prunable().all(|g| g.name != **name)) {
            let known: Vec<&str> = groups.prunable().map(|g| g.name.as_str()).collect();
            return Err(Error::Config(format!(
                "cap {name}: no prunable layer of this name; there are {}",
                known.join(", ")
            )));
        }
        let floors = groups
            .prunable()
            .map(|g| {
                let cap = 1.0 - limits.caps.get(&g.name).copied().unwrap_or(1.0);
                let floor = (g.width as f64 * limits.min_keep.max(cap) - 1e-9).ceil() as usize;
                (floor.max(1).div_ceil(limits.round_to) * limits.round_to).min(g.width)
            })
            .collect();
        let all = vec![true; groups.len()];
        let mut selector = Self {
            graph,
            groups,
            budget,
            latency,
            round_to: limits.round_to,
            floors,
            savings: vec![1.0; groups.len()],
            full: 0,
        };
        selector.full = selector.measure(&all)?;
        selector.savings = selector.savings_of_entries()?;
        let least = selector.measure(&selector.keep_above(&vec![0.0; groups.len()], usize::MAX))?;
        let limit = selector.limit(1.0);
        if least > limit {
            let show = |amount| budget.measure.show(amount);
            return Err(Error::Config(format!(
                "budget {budget}: at most {} of {} {} may be left, but the layers' limits (min_keep, caps, round_to, \
                 scope) leave at least {}",
                show(limit),
                show(selector.full),
                budget.measure.name(),
                show(least)
            )));
        }
        Ok(selector)
    }

    /// Whether `groups` of what is left of the network are those of the whole one, `kept` entries in the same order: in odd
    /// networks a group that has become narrow is tied to others, and then nothing more can be chosen there.
    pub fn covers(&self, groups: &ChannelGroups, kept: usize) -> bool {
        groups.len() == kept && groups.prunable().map(|group| &group.name).eq(self.groups.prunable().map(|g| &g.name))
    }

    /// A selector for what is left of the network, `graph` with its `groups`: the same budget, the same limits.
    ///
    /// # Errors
    /// [`Error::Shape`] if it has other groups than this selector's network, see [`Selector::covers`]; as [`Measure::of`].
    pub fn within<'b>(&self, graph: &'b Graph, groups: &'b ChannelGroups) -> Result<Selector<'b>> {
        if !self.covers(groups, groups.len()) {
            let names =
                |groups: &ChannelGroups| groups.prunable().map(|g| g.name.clone()).collect::<Vec<_>>().join(", ");
            let (expected, got) = (names(self.groups), names(groups));
            return Err(Error::Shape(format!("select: expected groups {expected}, got {got}")));
        }
        let (floors, latency) = (self.floors.clone(), self.latency.clone());
        let savings = vec![1.0; groups.len()];
        let mut selector = Selector { graph, groups, latency, floors, savings, ..*self };
        selector.savings = selector.savings_of_entries()?;
        Ok(selector)
    }

    /// The budget's measure of the network with only `keep` left.
    ///
    /// # Errors
    /// As [`Measure::of`].
    pub fn measure(&self, keep: &Keep) -> Result<u64> {
        match (self.budget.measure, &self.latency) {
            (Measure::Latency, Some(model)) => Ok(model.nanoseconds(&self.graph.compact(self.groups, keep)?.graph)),
            (measure, _) => measure.of(self.graph, self.groups, keep),
        }
    }

    /// Counts `factor` times as much time from now on: so much longer than predicted did a network take that was chosen
    /// here. Nothing else changes, for budgets of other measures nothing at all.
    pub fn correct_latency(&mut self, factor: f64) {
        self.latency = self.latency.take().map(|model| model.corrected(factor));
    }

    /// Part of the measure that may be left at the end, in [0, 1].
    pub fn part_left(&self) -> f64 {
        self.limit(1.0) as f64 / self.full.max(1) as f64
    }

    /// How much of the measure may be left at `progress`.
    pub fn limit(&self, progress: f64) -> u64 {
        self.budget.limit(self.full, progress)
    }

    /// Whether `keep` meets the budget that is in force at `progress`; the layers' limits are not looked at.
    ///
    /// # Errors
    /// As [`Measure::of`].
    pub fn meets(&self, keep: &Keep, progress: f64) -> Result<bool> {
        Ok(self.measure(keep)? <= self.limit(progress))
    }

    /// The budget.
    pub const fn budget(&self) -> Budget {
        self.budget
    }

    /// The budget's measure of the whole network.
    pub fn full(&self) -> u64 {
        self.full
    }

    /// The entries that stay: the best by score per unit of cost, as many as the budget allows when `progress`
    /// (0 to 1) of the way has been gone. Ties go to the earlier entry.
    ///
    /// # Errors
    /// [`Error::Numeric`] if a score is not finite; [`Error::Shape`] if there are not as many scores as entries.
    pub fn select(&self, scores: &[f32], progress: f64) -> Result<Vec<bool>> {
        if scores.len() != self.groups.len() {
            return Err(Error::Shape(format!("select: expected {} scores, got {}", self.groups.len(), scores.len())));
        }
        if scores.iter().any(|s| !s.is_finite()) {
            return Err(Error::Numeric("select: a channel's score is not finite".into()));
        }
        let limit = self.limit(progress);
        // The measure falls with every channel removed, so the smallest sufficient number is found by bisection.
        let (mut low, mut high) = (0, self.groups.len());
        while low < high {
            let middle = (low + high) / 2;
            if self.measure(&self.keep_above(scores, middle))? <= limit {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(self.keep_above(scores, low))
    }

    /// Removes the `count` lowest removable entries, then widens each layer's removal to a multiple of `round_to`.
    fn keep_above(&self, scores: &[f32], count: usize) -> Vec<bool> {
        let mut keep = vec![true; self.groups.len()];
        let mut removable: Vec<usize> = Vec::new();
        for (group, &floor) in self.groups.prunable().zip(&self.floors) {
            let ranked = ranked_best_first(group.entries.clone(), |e| f64::from(scores[e]));
            removable.extend(ranked.into_iter().skip(floor));
        }
        // Shifted so that every score is positive: dividing by the saving then ranks cheap channels to stay longer.
        let lowest = scores.iter().copied().fold(f32::INFINITY, f32::min);
        let value = |e: usize| (f64::from(scores[e]) - f64::from(lowest) + 1e-6) / self.savings[e];
        // Stable, so that scores the shift makes equal keep the order of their layer, which rounding below relies on.
        let mut ranked: Vec<(usize, f64)> = removable.into_iter().map(|e| (e, value(e))).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        for &(entry, _) in ranked.iter().rev().take(count) {
            keep[entry] = false;
        }
        if self.round_to > 1 {
            for (group, &floor) in self.groups.prunable().zip(&self.floors) {
                let kept = keep[group.entries.clone()].iter().filter(|k| **k).count();
                if kept < group.width {
                    let rounded = (kept / self.round_to * self.round_to).max(floor);
                    let ranked = ranked_best_first(group.entries.clone(), |e| f64::from(scores[e]));
                    for entry in ranked.into_iter().skip(rounded) {
                        keep[entry] = false;
                    }
                }
            }
        }
        keep
    }

    /// What removing an entry of each group saves, relative to the mean over entries.
    fn savings_of_entries(&self) -> Result<Vec<f64>> {
        let mut savings = vec![1.0; self.groups.len()];
        let whole = self.measure(&vec![true; self.groups.len()])?;
        for group in self.groups.prunable() {
            if group.width < 2 {
                continue;
            }
            // Time falls in steps of whole blocks: over half of the entries their height is spread evenly.
            let removed = if self.latency.is_some() { group.width / 2 } else { 1 };
            let mut keep = vec![true; self.groups.len()];
            keep[group.entries.clone()].iter_mut().take(removed).for_each(|keep| *keep = false);
            let saved = whole.saturating_sub(self.measure(&keep)?);
            savings[group.entries.clone()].fill(saved as f64 / removed as f64);
        }
        let mean = savings.iter().sum::<f64>() / savings.len().max(1) as f64;
        // A channel that saves nothing (a linear neuron under a channel budget) is never worth removing.
        Ok(savings.into_iter().map(|s| (s / mean.max(f64::MIN_POSITIVE)).max(1e-9)).collect())
    }
}

fn ranked_best_first(entries: impl IntoIterator<Item = usize>, score: impl Fn(usize) -> f64) -> Vec<usize> {
    let mut ranked: Vec<(usize, f64)> = entries.into_iter().map(|e| (e, score(e))).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    ranked.into_iter().map(|(e, _)| e).collect()
}

#[cfg(test)]
mod tests;
