//! What the answers of a teacher that is not trained yet tell of the images: whose batch-norm statistics fit them, and which
//! classes hardly come.

use serde::{Deserialize, Serialize};

use super::pass::{Answers, Network};
use super::run::Context;
use crate::model::Params;
use crate::rng::Rng;
use crate::{Error, Result, loss};

/// Most images that are changed at random to see which answers stay.
const MOST_CHANGED_IMAGES: usize = 1024;
/// By so much, and so many standard errors, the stability of one set of statistics clearly exceeds another's.
const CLEARLY_STEADIER: f64 = 0.03;
const CLEAR_ERRORS: f64 = 2.0;
/// Nats of diversity that the source's statistics may lack: answers that fall to a few classes are steady and wrong.
const COLLAPSED: f64 = 0.2;
const STREAM: u64 = 0x5354_4541;

/// How the untrained teacher answers, with the source's and with the target's batch-norm statistics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Survey {
    /// Fraction of the images whose class a random change leaves as it is, with the source's statistics.
    pub source_stability: f64,
    /// The same with the target's.
    pub target_stability: f64,
    /// Of so many images.
    pub images: usize,
    /// Entropy of the mean prediction with the source's statistics, in nats.
    pub source_diversity: f64,
    /// The same with the target's.
    pub target_diversity: f64,
    /// How many of the images seem to be of each class, relative to an even share of 1/C, by the steadier of the two: see
    /// [`loss::class_shares`].
    pub class_shares: Vec<f64>,
}

impl Survey {
    /// Asks the same weights with both sets of statistics.
    pub(super) fn new(context: &Context, source: (&Params, &Answers), target: (&Params, &Answers)) -> Result<Self> {
        let mut images = context.images.good().to_vec();
        Rng::stream(context.config.seed, STREAM).shuffle(&mut images);
        images.truncate(MOST_CHANGED_IMAGES);
        let stability = |(params, answers): (&Params, &Answers)| {
            context.stability(Network { graph: &context.teacher.graph, params }, answers, &images)
        };
        let diversity =
            |answers: &Answers| Ok::<_, Error>(f64::from(loss::diversity(&answers.logits)?.to_scalar::<f32>()?));
        let mut survey = Self {
            source_stability: stability(source)?,
            target_stability: stability(target)?,
            images: images.len(),
            source_diversity: diversity(source.1)?,
            target_diversity: diversity(target.1)?,
            class_shares: Vec::new(),
        };
        // Answers are about as often right as they are steady (docs/accuracy.md), of few classes or many: of images of a
        // single class those are right that name one.
        let steadier = if survey.source_is_steadier() { source.1 } else { target.1 };
        let shares = loss::class_shares(&steadier.logits, survey.stability())?;
        survey.class_shares = shares.iter().map(|share| share * shares.len() as f64).collect();
        Ok(survey)
    }

    /// Whether the teacher is at least as steady with the source's statistics.
    pub fn source_is_steadier(&self) -> bool {
        self.source_stability >= self.target_stability
    }

    /// Stability with the steadier statistics.
    pub fn stability(&self) -> f64 {
        if self.source_is_steadier() { self.source_stability } else { self.target_stability }
    }

    /// Whether the source's statistics fit at least as well. Of two sets for the same weights, which no training has made
    /// sure of themselves, the steadier one answers better, unless it is steady for answering a few classes alone.
    pub fn prefers_source(&self) -> bool {
        self.source_is_steadier() && !self.source_collapsed()
    }

    fn source_collapsed(&self) -> bool {
        self.source_diversity < self.target_diversity - COLLAPSED
    }

    /// Whether training does better with the source's statistics left as they are than with each batch's own.
    pub fn trains_by_source(&self) -> bool {
        let variance = |share: f64| share * (1.0 - share) / self.images as f64;
        let error = (variance(self.source_stability) + variance(self.target_stability)).sqrt();
        let clearly = CLEARLY_STEADIER.max(CLEAR_ERRORS * error);
        self.source_stability - self.target_stability > clearly && !self.source_collapsed()
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn survey(source_stability: f64, target_stability: f64, images: usize) -> Survey {
        Survey {
            source_stability,
            target_stability,
            images,
            source_diversity: 2.2,
            target_diversity: 2.3,
            class_shares: Vec::new(),
        }
    }

    #[test]
    fn training_asks_for_a_clear_difference_and_a_choice_for_any() {
        let told = |source, target, images| {
            let survey = survey(source, target, images);
            (survey.prefers_source(), survey.trains_by_source())
        };
        assert_eq!(told(0.679, 0.569, 1024), (true, true), "webcam to amazon");
        assert_eq!(told(0.769, 0.699, 498), (true, true), "amazon to dslr");
        assert_eq!(told(0.936, 0.918, 1024), (true, false), "mnist to usps");
        assert_eq!(told(0.623, 0.703, 795), (false, false), "amazon to webcam");
        assert_eq!(told(0.883, 0.817, 60), (true, false), "four of sixty images may be chance");
        assert_eq!(told(f64::NAN, 0.5, 100), (false, false));
        let noise = Survey { source_diversity: 1.1, ..survey(0.412, 0.319, 1024) };
        assert_eq!((noise.prefers_source(), noise.trains_by_source()), (false, false), "CIFAR-10 under noise");
    }
}
