//! Counting observations into ranges, without locks.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many observations lie at or below each bound, how many there are, and their sum.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what lies above all.
    counts: Box<[AtomicU64]>,
    /// The bits of an `f64`.
    sum: AtomicU64,
}

impl Histogram {
    /// An empty histogram over ascending `bounds`.
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0f64.to_bits()) }
    }

    /// Adds an observation.
    pub(crate) fn observe(&self, value: f64) {
        let index = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get(index) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let add = |sum| Some((f64::from_bits(sum) + value).to_bits());
        // The closure never gives up, so this cannot fail.
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Number of observations.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// The observations so far, to tell those of a span of time from.
    pub fn counts(&self) -> Counts {
        Counts { bounds: self.bounds, counts: self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect() }
    }

    /// Sum of the observations.
    pub fn sum(&self) -> f64 {
        f64::from_bits(self.sum.load(Ordering::Relaxed))
    }

    /// The bound at or below which the fraction `q` of the observations lies; infinite beyond the last one, `None`
    /// without observations.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let total = self.count();
        let rank = (q * total as f64).ceil().max(1.0) as u64;
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        (total > 0).then(|| self.cumulative().zip(bounds).find(|(below, _)| *below >= rank).map(|(_, bound)| bound))?
    }

    /// Each bound with the number of observations at or below it; the last bound is infinity.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        self.bounds.iter().copied().chain([f64::INFINITY]).zip(self.cumulative())
    }

    fn cumulative(&self) -> impl Iterator<Item = u64> {
        self.counts.iter().scan(0, |sum, count| {
            *sum += count.load(Ordering::Relaxed);
            Some(*sum)
        })
    }
}

/// How many observations of a histogram fell into each of its ranges.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    bounds: &'static [f64],
    counts: Vec<u64>,
}

impl Counts {
    /// Those that were not there `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = earlier.counts.iter().copied().chain(std::iter::repeat(0));
        let counts = self.counts.iter().zip(before).map(|(now, before)| now.saturating_sub(before)).collect();
        Self { bounds: self.bounds, counts }
    }

    /// Adds those of another span of the same histogram.
    pub fn add(&mut self, other: &Self) {
        self.bounds = other.bounds;
        self.counts.resize(other.counts.len(), 0);
        self.counts.iter_mut().zip(&other.counts).for_each(|(own, other)| *own += other);
    }

    /// Counts every observation half, so that later ones weigh more.
    pub fn halve(&mut self) {
        self.counts.iter_mut().for_each(|count| *count /= 2);
    }

    /// Number of observations.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The value below which the fraction `q` of the observations lies, as if they were spread evenly over each range;
    /// the last bound for those beyond it. `None` without observations.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = q * self.total() as f64;
        let (mut below, mut from) = (0.0, 0.0);
        for (&count, &bound) in self.counts.iter().zip(self.bounds) {
            let count = count as f64;
            if count > 0.0 && below + count >= rank {
                return Some(from + (bound - from) * (rank - below).max(0.0) / count);
            }
            (below, from) = (below + count, bound);
        }
        (self.total() > 0).then_some(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observations_are_counted_at_or_below_their_bound() {
        let histogram = Histogram::new(&[1.0, 2.0, 4.0]);
        assert_eq!(histogram.quantile(0.5), None);
        for value in [0.5, 1.0, 1.5, 4.0, 9.0] {
            histogram.observe(value);
        }
        assert_eq!(histogram.buckets().collect::<Vec<_>>(), [(1.0, 2), (2.0, 3), (4.0, 4), (f64::INFINITY, 5)]);
        assert_eq!((histogram.count(), histogram.sum()), (5, 16.0));
        assert_eq!((histogram.quantile(0.5), histogram.quantile(0.99)), (Some(2.0), Some(f64::INFINITY)));
    }

    #[test]
    fn quantiles_of_a_span_lie_within_a_range() {
        let histogram = Histogram::new(&[1.0, 2.0, 4.0]);
        histogram.observe(0.5);
        let before = histogram.counts();
        assert_eq!(before.since(&before).quantile(0.5), None);
        (0..4).for_each(|_| histogram.observe(3.0));
        let mut span = histogram.counts().since(&before);
        assert_eq!((span.total(), span.quantile(0.5), span.quantile(1.0)), (4, Some(3.0), Some(4.0)));
        span.add(&before);
        assert_eq!((span.total(), span.quantile(0.1)), (5, Some(0.5)));
        histogram.observe(9.0);
        assert_eq!(histogram.counts().quantile(1.0), Some(4.0));
        span.halve();
        assert_eq!(span.total(), 2);
        assert_eq!(Counts::default().quantile(0.5), None);
    }
}
