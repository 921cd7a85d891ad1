//! What the answers of a teacher that is not trained yet tell of the images: whose batch-norm statistics fit them, and which
//! class hardly comes.

use candle_core::Tensor;
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
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
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
    /// The class that the fewest images seem to be of.
    pub rarest_class: RarestClass,
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
        Ok(Self {
            source_stability: stability(source)?,
            target_stability: stability(target)?,
            images: images.len(),
            source_diversity: diversity(source.1)?,
            target_diversity: diversity(target.1)?,
            rarest_class: RarestClass::of(&[&source.1.logits, &target.1.logits])?,
        })
    }

    /// Whether the source's statistics fit at least as well. Of two sets for the same weights, which no training has made
    /// sure of themselves, the steadier one answers better, unless it is steady for answering a few classes alone.
    pub fn prefers_source(&self) -> bool {
        self.source_stability >= self.target_stability && !self.source_collapsed()
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

/// The class that the fewest images seem to be of. Training for information answers other images with a class that is not
/// among them, or forgets it, and nothing that the trained network says of these images tells.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RarestClass {
    /// Its index.
    pub class: usize,
    /// Its share of the images, relative to the even share of 1/C.
    pub share: f64,
}

impl RarestClass {
    /// By the answers of untrained networks to the same images: a class has the largest of the mean probabilities that they
    /// give it. Training for diversity would find images of every class.
    ///
    /// # Shapes
    /// Raw logits `[N, C]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are none or they are no matrices of one width.
    pub fn of(answers: &[&Tensor]) -> Result<Self> {
        let mut shares: Vec<f64> = Vec::new();
        for logits in answers {
            let means: Vec<f32> = loss::mean_prediction(logits)?.to_vec1()?;
            if !shares.is_empty() && shares.len() != means.len() {
                let (expected, got) = (shares.len(), means.len());
                return Err(Error::Shape(format!("rarest class: expected logits of {expected} classes, got {got}")));
            }
            shares.resize(means.len(), 0.0);
            shares.iter_mut().zip(&means).for_each(|(share, mean)| *share = share.max(f64::from(*mean)));
        }
        let rarest = shares.iter().copied().enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
        let (class, share) = rarest.ok_or_else(|| Error::Shape("rarest class: expected logits, got none".into()))?;
        Ok(Self { class, share: share * shares.len() as f64 })
    }

    /// What is wrong if its share of so many `images` is below `least`, with its name of `names`. One standard error below is
    /// no reason: a few images have few of each class.
    pub fn complaint(&self, names: &[String], images: usize, least: f64) -> Option<String> {
        let Self { class, share } = *self;
        let even = images as f64 / names.len() as f64;
        let least = least - (least / even).sqrt();
        let name = names.get(class).map_or_else(|| class.to_string(), |name| format!("{name:?}"));
        (share < least).then(|| {
            format!(
                "class {name} seems to have {share:.2} of an even share of the {images} images, expected at least \
                 {least:.2}: training answers other images with a class that does not come, or forgets it; bring images \
                 of it, or let that pass with --min-class-share 0"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn answers(rows: &[usize]) -> Tensor {
        let row = |class: usize| -> [f32; 3] { std::array::from_fn(|i| if i == class { 20.0 } else { 0.0 }) };
        let rows: Vec<f32> = rows.iter().flat_map(|&class| row(class)).collect();
        Tensor::from_vec(rows.clone(), (rows.len() / 3, 3), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_class_is_as_rare_as_the_network_that_sees_most_of_it_says() {
        let [blind, seeing] = [answers(&[0, 0, 1, 1, 0, 0]), answers(&[0, 0, 1, 2, 2, 2])];
        let alone = RarestClass::of(&[&blind]).unwrap();
        assert_eq!(alone.class, 2);
        assert!(alone.share < 1e-6, "{alone:?}");
        let both = RarestClass::of(&[&blind, &seeing]).unwrap();
        assert_eq!(both.class, 1);
        assert!((both.share - 1.0).abs() < 1e-6, "a third of the images is an even share: {both:?}");
    }

    #[test]
    fn a_rare_class_is_named() {
        let rare = RarestClass { class: 1, share: 0.2 };
        let names = ["bike".to_string(), "mug".to_string()];
        assert_eq!(rare.complaint(&names, 10_000, 0.2), None);
        let said = rare.complaint(&names, 10_000, 0.25).unwrap();
        assert!(said.starts_with("class \"mug\" seems to have 0.20 of an even share of the 10000 images"), "{said}");
        assert_eq!(rare.complaint(&names, 32, 0.25), None, "of 32 images it may be chance");
    }

    #[test]
    fn answers_that_do_not_belong_together_are_refused() {
        assert!(matches!(RarestClass::of(&[]), Err(Error::Shape(_))));
        let narrow = Tensor::zeros((4, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let refused = RarestClass::of(&[&answers(&[0, 1]), &narrow]).unwrap_err().to_string();
        assert!(refused.contains("expected logits of 3 classes, got 2"), "{refused}");
    }

    #[test]
    fn training_asks_for_a_clear_difference_and_a_choice_for_any() {
        let survey = |source_stability, target_stability, images| Survey {
            source_stability,
            target_stability,
            images,
            source_diversity: 2.2,
            target_diversity: 2.3,
            rarest_class: RarestClass { class: 0, share: 1.0 },
        };
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
