//! Ranges of activations, watched while the f32 engine runs on the device's own images: what 8 bits have to cover.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::element::Quant;
use super::{Engine, EngineConfig};
use crate::graph::Graph;
use crate::weights::ParamTensors;
use crate::{Error, Result};

/// Bins of a histogram; even.
const BINS: usize = 2048;
/// Steps of the search for the best range.
const STEPS: usize = 64;

/// The range of every value a network computes; a model compiles to 8 bits only with one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Images watched.
    pub images: usize,
    /// Lowest and highest real value to represent, by the node that gives it.
    pub ranges: BTreeMap<String, [f32; 2]>,
}

impl Calibration {
    /// Runs the network on `images` and chooses, for every value, the range that loses least to rounding and clipping
    /// together (least squared error).
    ///
    /// # Shapes
    /// Each of `images`: `[N, C, H, W]` normalised, any N.
    ///
    /// # Errors
    /// As [`Engine::compile`] and of the images; [`Error::Config`] if there are none or an activation is not finite.
    pub fn collect(
        graph: &Graph,
        params: ParamTensors,
        config: EngineConfig,
        images: impl IntoIterator<Item = Result<Vec<f32>>>,
    ) -> Result<Self> {
        let mut engine = Engine::compile(graph, params, EngineConfig { max_batch: 1, ..config })?;
        let mut histograms: BTreeMap<String, Histogram> = BTreeMap::new();
        let mut logits = vec![0.0; engine.num_classes()];
        let per_image: usize = engine.input_shape().iter().product();
        let mut count = 0;
        for batch in images {
            for image in batch?.chunks(per_image) {
                engine.observe(image, &mut logits, &mut |name, values| {
                    match histograms.get_mut(name) {
                        Some(histogram) => histogram.add(values),
                        None => {
                            let mut histogram = Histogram::default();
                            histogram.add(values);
                            histograms.insert(name.to_string(), histogram);
                        }
                    };
                })?;
                count += 1;
            }
        }
        if count == 0 {
            return Err(Error::Config("calibration: expected at least one image, got none".to_string()));
        }
        let ranges = (histograms.into_iter())
            .map(|(name, histogram)| match histogram.range() {
                Some(range) => Ok((name, range)),
                None => Err(Error::Config(format!("calibration: {name}: activations are not finite"))),
            })
            .collect::<Result<_>>()?;
        Ok(Self { images: count, ranges })
    }

    /// The quantisation of node `name`'s value.
    ///
    /// # Errors
    /// [`Error::Config`] if the node was not watched or its range is none.
    pub(super) fn quant(&self, name: &str) -> Result<Quant> {
        match self.ranges.get(name) {
            Some(&[low, high]) if low.is_finite() && high.is_finite() && low <= high => {
                Ok(Quant::covering([low, high]))
            }
            Some(range) => Err(Error::Config(format!("int8 calibration: node {name}: {range:?} is no range"))),
            None => {
                Err(Error::Config(format!("int8 calibration: no range for node {name}: it belongs to another model")))
            }
        }
    }
}

/// Counts of values between `-limit` and `limit`; the limit doubles when a value lies beyond.
#[derive(Debug, Clone)]
struct Histogram {
    limit: f32,
    counts: Vec<u64>,
    low: f32,
    high: f32,
    finite: bool,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { limit: 0.0, counts: vec![0; BINS], low: f32::INFINITY, high: f32::NEG_INFINITY, finite: true }
    }
}

impl Histogram {
    fn add(&mut self, values: &[f32]) {
        let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
        for &x in values {
            low = low.min(x);
            high = high.max(x);
            self.finite &= x.is_finite();
        }
        if !self.finite || values.is_empty() {
            return;
        }
        (self.low, self.high) = (self.low.min(low), self.high.max(high));
        let most = low.abs().max(high.abs());
        if self.limit == 0.0 {
            self.limit = most;
        }
        while self.limit < most {
            self.widen();
        }
        let scale = if self.limit > 0.0 { BINS as f32 / 2.0 / self.limit } else { 0.0 };
        for &x in values {
            let bin = (x * scale + BINS as f32 / 2.0) as usize;
            self.counts[bin.min(BINS - 1)] += 1;
        }
    }

    /// Twice the range with the same number of bins.
    fn widen(&mut self) {
        let mut wide = vec![0; BINS];
        for (i, count) in self.counts.iter().enumerate() {
            wide[BINS / 4 + i / 2] += count;
        }
        self.counts = wide;
        self.limit *= 2.0;
    }

    /// The range with the least squared error, or `None` if a value was not finite.
    fn range(&self) -> Option<[f32; 2]> {
        if !self.finite {
            return None;
        }
        let (low, high) = (self.low.min(0.0), self.high.max(0.0));
        let part = |i: usize| 1.0 - i as f32 / STEPS as f32 * 0.75;
        let best = |ranges: Vec<[f32; 2]>| {
            let costs = ranges.into_iter().map(|range| (self.error(range), range));
            costs.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, range)| range)
        };
        let [low, high] = best((0..STEPS).map(|i| [low * part(i), high * part(i)]).collect())?;
        let [_, high] = best((0..STEPS).map(|i| [low, high * part(i)]).collect())?;
        best((0..STEPS).map(|i| [low * part(i), high]).collect())
    }

    /// Squared error of all values under the range: uniform rounding inside, distance to the end outside.
    fn error(&self, [low, high]: [f32; 2]) -> f64 {
        let rounding = f64::from(high - low) / 255.0;
        let rounding = rounding * rounding / 12.0;
        let width = 2.0 * self.limit / BINS as f32;
        (self.counts.iter().enumerate())
            .filter(|(_, count)| **count > 0)
            .map(|(i, &count)| {
                let x = (i as f32 + 0.5) * width - self.limit;
                let beyond = f64::from((low - x).max(x - high).max(0.0));
                // Zero is exact: the half bins around it cost nothing.
                let inside = if x.abs() < width { 0.0 } else { rounding };
                count as f64 * (beyond * beyond + inside)
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(values: &[f32]) -> [f32; 2] {
        let mut histogram = Histogram::default();
        values.chunks(7).for_each(|chunk| histogram.add(chunk));
        histogram.range().unwrap()
    }

    #[test]
    fn an_even_spread_is_covered_whole() {
        let values: Vec<f32> = (0..10_000).map(|i| i as f32 / 10_000.0 * 6.0).collect();
        let [low, high] = range(&values);
        assert!(low == 0.0 && (5.8..=6.0).contains(&high), "{low} {high}");
    }

    #[test]
    fn a_lone_outlier_is_clipped() {
        let mut values: Vec<f32> = (0..100_000).map(|i| (i % 1000) as f32 / 1000.0 - 0.5).collect();
        values.push(5.0);
        let [low, high] = range(&values);
        assert!((-0.55..-0.4).contains(&low) && (0.5..4.8).contains(&high), "{low} {high}");
    }

    #[test]
    fn growth_keeps_the_counts() {
        let mut histogram = Histogram::default();
        for size in [0.1, 1.0, 100.0] {
            histogram.add(&[size, -size / 2.0]);
        }
        assert_eq!(histogram.counts.iter().sum::<u64>(), 6);
        histogram.add(&[f32::NAN]);
        assert_eq!(histogram.range(), None);
    }
}
