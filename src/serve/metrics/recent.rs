//! How long the latest answers took.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Answers that are remembered: the slowest hundredth of them is a few.
const MOST: usize = 512;
/// What is older says nothing about now.
const WINDOW: Duration = Duration::from_secs(60);

/// Durations of the latest answers, exact where a histogram's ranges are too wide to watch.
#[derive(Debug, Default)]
pub struct Recent(Mutex<VecDeque<(Instant, Duration)>>);

impl Recent {
    /// Adds an answer that was given now.
    pub(crate) fn observe(&self, took: Duration) {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.len() == MOST {
            latest.pop_front();
        }
        latest.push_back((Instant::now(), took));
    }

    /// The durations at or below which each fraction of `q` lies, of the last minute's answers, 512 at most; `None`
    /// without any.
    pub fn quantiles<const N: usize>(&self, q: [f64; N]) -> Option<[Duration; N]> {
        self.since(Instant::now().checked_sub(WINDOW), q)
    }

    fn since<const N: usize>(&self, start: Option<Instant>, q: [f64; N]) -> Option<[Duration; N]> {
        let latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut durations: Vec<Duration> =
            latest.iter().filter(|(at, _)| start.is_none_or(|start| *at >= start)).map(|(_, took)| *took).collect();
        drop(latest);
        durations.sort_unstable();
        let last = durations.len().checked_sub(1)?;
        let rank = |q: f64| ((q * durations.len() as f64).ceil() as usize).saturating_sub(1).min(last);
        Some(q.map(|q| durations.get(rank(q)).copied().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_latest_answers() {
        let recent = Recent::default();
        assert_eq!(recent.quantiles([0.5]), None);
        (1..=1000).for_each(|ms| recent.observe(Duration::from_millis(ms)));
        let ms = |q| recent.quantiles([q]).unwrap()[0].as_millis();
        // 489 to 1000 are left.
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(ms), [489, 744, 995, 1000]);
    }

    #[test]
    fn what_is_old_does_not_count() {
        let recent = Recent::default();
        recent.observe(Duration::from_millis(7));
        assert_eq!(recent.since(Some(Instant::now() + Duration::from_secs(1)), [0.5]), None);
        assert_eq!(recent.since(None, [0.5]), Some([Duration::from_millis(7)]));
    }
}
