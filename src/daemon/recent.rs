//! The latest answers of the version that serves.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::score::Scores;
use crate::model::rank;
use crate::store::Version;

/// Answers kept, a window for what is told from them.
const MOST_ANSWERS: usize = 4096;

/// Sees answers on any thread, and tells what they have in common.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Answers>);

#[derive(Debug, Default)]
struct Answers {
    version: Option<Version>,
    /// Class and probability, to requests and to arriving images.
    given: VecDeque<(usize, f32)>,
    /// Those of the version before.
    before: VecDeque<(usize, f32)>,
    /// Logits of the images that arrived.
    arrivals: VecDeque<Vec<f32>>,
    /// The first window of them.
    first: Vec<Vec<f32>>,
    failed: u64,
}

/// What a window of answers has in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Window {
    /// How many answers.
    pub answers: usize,
    /// Mean probability of the likeliest class.
    pub confidence: f64,
    /// Entropy of the classes, in nats.
    pub diversity: f64,
}

impl Window {
    fn of<'a>(answers: impl Iterator<Item = &'a (usize, f32)>) -> Self {
        let (mut count, mut confidence, mut classes) = (0usize, 0.0, BTreeMap::new());
        for (class, probability) in answers {
            count += 1;
            confidence += f64::from(*probability);
            *classes.entry(*class).or_insert(0usize) += 1;
        }
        let n = count.max(1) as f64;
        let part = |count: &usize| *count as f64 / n;
        let diversity = classes.values().map(|count| -part(count) * part(count).ln()).sum();
        Self { answers: count, confidence: confidence / n, diversity }
    }
}

impl Recent {
    /// From now on `version` serves; answers of others are not counted.
    pub fn serves(&self, version: Version) {
        let mut answers = self.locked();
        if answers.version != Some(version) {
            let before = std::mem::take(&mut answers.given);
            *answers = Answers { version: Some(version), before, ..Answers::default() };
        }
    }

    /// An image was answered.
    pub fn answered(&self, version: Version, class: usize, probability: f32) {
        let mut answers = self.locked();
        if answers.version == Some(version) {
            answers.given.push_back((class, probability));
            if answers.given.len() > MOST_ANSWERS {
                answers.given.pop_front();
            }
        }
    }

    /// An arriving image was answered; the latest `window` of them are kept. Returns the likeliest class.
    pub fn arrived(&self, version: Version, logits: Vec<f32>, window: usize) -> Option<usize> {
        let (class, probability) = *rank(&logits, 1).first()?;
        self.answered(version, class, probability);
        let mut answers = self.locked();
        if answers.version == Some(version) {
            if answers.first.len() < window {
                answers.first.push(logits.clone());
            }
            answers.arrivals.push_back(logits);
            while answers.arrivals.len() > window {
                answers.arrivals.pop_front();
            }
        }
        Some(class)
    }

    /// The version did not answer an image with finite logits.
    pub fn failed(&self, version: Version) {
        let mut answers = self.locked();
        answers.failed += u64::from(answers.version == Some(version));
    }

    /// How often it did not.
    pub fn failures(&self) -> u64 {
        self.locked().failed
    }

    /// The answers of this version, and of the one before in the same number, as far as they are kept.
    pub fn windows(&self) -> (Window, Window) {
        let answers = self.locked();
        let same = answers.before.iter().rev().take(answers.given.len());
        (Window::of(answers.given.iter()), Window::of(same))
    }

    /// Scores of the first `window` arrivals after the version began to serve, once there are so many, which are then
    /// forgotten.
    pub fn first_arrivals(&self, window: usize) -> Option<Scores> {
        let mut answers = self.locked();
        let full = answers.first.len() >= window && window > 0;
        full.then(|| Scores::of(std::mem::take(&mut answers.first).iter().map(Vec::as_slice)))
    }

    /// Scores of the latest `window` arrivals, if there are so many.
    pub fn latest_arrivals(&self, window: usize) -> Option<Scores> {
        let answers = self.locked();
        (answers.arrivals.len() >= window).then(|| Scores::of(answers.arrivals.iter().map(Vec::as_slice)))
    }

    fn locked(&self) -> MutexGuard<'_, Answers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_version_that_serves_is_counted_and_the_one_before_compared() {
        let recent = Recent::default();
        recent.serves(Version(1));
        (0..10).for_each(|class| recent.answered(Version(1), class % 2, 0.75));
        recent.serves(Version(2));
        recent.answered(Version(1), 0, 0.75);
        (0..4).for_each(|_| recent.answered(Version(2), 3, 0.5));
        let (now, before) = recent.windows();
        assert_eq!((now.answers, now.confidence, now.diversity), (4, 0.5, 0.0));
        assert_eq!((before.answers, before.confidence), (4, 0.75));
        assert!((before.diversity - 2f64.ln()).abs() < 1e-9);
        recent.failed(Version(1));
        recent.failed(Version(2));
        assert_eq!(recent.failures(), 1);
    }

    #[test]
    fn the_first_arrivals_are_told_once_and_the_latest_always() {
        let recent = Recent::default();
        recent.serves(Version(1));
        for index in 0..5 {
            assert_eq!(recent.arrived(Version(1), vec![index as f32, 2.5], 3), Some(usize::from(index < 3)));
        }
        assert_eq!(recent.first_arrivals(3).unwrap().logit_mean, [1.0, 2.5]);
        assert_eq!(recent.first_arrivals(3), None);
        assert_eq!(recent.latest_arrivals(3).unwrap().logit_mean, [3.0, 2.5]);
        assert_eq!(recent.latest_arrivals(4), None);
    }
}
