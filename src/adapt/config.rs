//! The configuration of an adaptation run.

use serde::{Deserialize, Serialize};

use super::gate::GateConfig;
use crate::data::Augment;
use crate::engine::Precision;
use crate::graph::Scope;
use crate::model::{ModelInfo, TrainScope};
use crate::prune::importance::Criterion;
use crate::prune::{AdmmConfig, Budget, Limits};
use crate::{Error, Result};

/// What moves the soft mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SoftMask {
    /// Gradient ascent on the domain discrepancy: the adversary.
    #[default]
    Adversarial,
    /// Uniform noise of the same range: the control.
    Random,
    /// No soft mask.
    Off,
}

/// Phase 1: adapting the teacher to the target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TeacherConfig {
    /// Updates; 0 leaves the choice between source and target batch-norm statistics.
    pub steps: usize,
    /// Initial learning rate.
    pub lr: f64,
    /// Weight of the pseudo-label loss beside information maximisation.
    pub pseudo_label_weight: f64,
    /// How often pseudo labels are computed anew.
    pub label_refreshes: usize,
}

/// Phase 2: which channels go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MaskConfig {
    /// Whether masks are trained to find the channels (ADMP); otherwise the ranking decides, in rounds.
    pub admp: bool,
    /// Updates; without ADMP between the rounds, and 0 removes all at once.
    pub steps: usize,
    /// Rounds of removal without ADMP.
    pub rounds: usize,
    /// Initial learning rate of the weights.
    pub lr: f64,
    /// The hard mask's updates.
    pub admm: AdmmConfig,
    /// Whether the hard mask moves by ADMM; otherwise the ranking decides at once, and phase 2 trains the weights only.
    pub use_admm: bool,
    /// What moves the soft mask.
    pub soft: SoftMask,
    /// Smallest value of the soft mask.
    pub soft_min: f64,
    /// Learning rate of the adversary.
    pub probe_lr: f64,
    /// Steps between two moves of the adversary.
    pub probe_every: usize,
    /// Weight λ of the discrepancy in the adversary's objective.
    pub probe_weight: f64,
    /// How channels are ranked.
    pub criterion: Criterion,
    /// Batches the ranking is estimated from, if there is but one.
    pub importance_batches: usize,
    /// Batches each round's statistics and ranking are estimated from; Fisher information takes fewer.
    pub round_batches: usize,
}

impl MaskConfig {
    /// Rounds of removal: no more than there are updates to come between.
    pub fn all_rounds(&self) -> usize {
        self.rounds.min(self.steps.saturating_add(1))
    }

    /// Which round of removal comes before `step`, if one does: the first before the first; the last comes after all.
    pub fn round_before(&self, step: usize) -> Option<usize> {
        let gaps = self.all_rounds() - 1;
        let (each, more) = (self.steps.checked_div(gaps)?, self.steps.checked_rem(gaps)?);
        (0..gaps).find(|gap| gap * each + gap * more / gaps == step).map(|gap| gap + 1)
    }

    /// Part of the way to the budget after `round`, where `left` of its measure may be left at the end: each round takes the
    /// same part of what it finds.
    pub fn progress(&self, round: usize, left: f64) -> f64 {
        if left >= 1.0 {
            return 1.0;
        }
        (1.0 - left.powf(round as f64 / self.all_rounds() as f64)) / (1.0 - left)
    }
}

/// Phase 3: fine-tuning after the removal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FineTuneConfig {
    /// Updates.
    pub steps: usize,
    /// Initial learning rate.
    pub lr: f64,
}

/// Everything that decides a run's result, besides teacher and images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdaptConfig {
    /// What has to go; `None` adapts without pruning.
    pub budget: Option<Budget>,
    /// Per-layer limits.
    pub limits: Limits,
    /// Which groups may lose channels.
    pub scope: Scope,
    /// Seed of every random draw.
    pub seed: u64,
    /// Images per step.
    pub batch_size: usize,
    /// Most bytes the process may hold; a batch then goes through the network in as many parts as that takes, see
    /// [`super::memory_plan`].
    pub memory_bytes: Option<u64>,
    /// What is trained.
    pub train: TrainScope,
    /// Whether a pruned student learns from its teacher's answers; otherwise by phase 1's loss, with its pseudo labels, as a
    /// control.
    pub distillation: bool,
    /// Random changes of training images.
    pub augment: Augment,
    /// Fraction of the images kept out of training for the gate.
    pub holdout: f64,
    /// Weight decay of convolution and linear weights.
    pub weight_decay: f64,
    /// Largest norm of the gradient.
    pub clip_norm: f64,
    /// Phase 1.
    pub teacher: TeacherConfig,
    /// Phase 2.
    pub mask: MaskConfig,
    /// Phase 3.
    pub fine_tune: FineTuneConfig,
    /// Accept or refuse.
    pub gate: GateConfig,
    /// The numbers the student shall be served in.
    pub precision: Precision,
}

/// Inputs up to this side count as small images, which train in larger batches and more steps.
const SMALL_SIDE: usize = 64;
/// Photographs are trained at this fraction of the evaluation size: crops look larger than at test time otherwise
/// (Touvron et al. 2019, arXiv:1906.06423), and a step costs half.
const TRAIN_SIZE_FRACTION: f64 = 5.0 / 7.0;
/// Most images of a batch: more is a mistake, and memory is planned for as many.
const MOST_IMAGES: usize = 65_536;
/// How often adapting the teacher and fine-tuning shall see each image.
const PASSES: usize = 6;
/// Most times that they are longer for it.
const MOST_LONGER: usize = 3;

impl AdaptConfig {
    /// Defaults for a model: chosen by its input alone, never by labels.
    pub fn for_model(info: &ModelInfo) -> Self {
        let p = &info.preprocess;
        Self::for_input([p.channels, p.height, p.width])
    }

    /// This with the channels found by ADMP.
    #[must_use]
    pub const fn with_admp(mut self) -> Self {
        self.mask.admp = true;
        self
    }

    /// This with more updates of the teacher and of fine-tuning where they would see each of `images` less than six times, up
    /// to three times as many.
    #[must_use]
    pub fn for_images(mut self, images: usize) -> Self {
        let enough = PASSES.saturating_mul(images).div_ceil(self.batch_size.max(1));
        for steps in [&mut self.teacher.steps, &mut self.fine_tune.steps] {
            *steps = enough.clamp(*steps, steps.saturating_mul(MOST_LONGER));
        }
        self
    }

    /// Defaults for models whose input has these channels, height and width.
    pub fn for_input([channels, height, width]: [usize; 3]) -> Self {
        let small = height.max(width) <= SMALL_SIDE;
        let mut augment = if channels == 1 { Augment::digits() } else { Augment::default() };
        if small {
            augment.crop_scale = if channels == 1 { augment.crop_scale } else { (0.8, 1.0) };
        } else {
            let shrink = |side: usize| ((side as f64 * TRAIN_SIZE_FRACTION / 32.0).round() as usize).max(1) * 32;
            augment.train_size = Some([shrink(height), shrink(width)]);
        }
        Self {
            budget: Some(Budget::channels(0.6)),
            limits: Limits::default(),
            scope: Scope::default(),
            seed: 0,
            batch_size: if small { 64 } else { 32 },
            memory_bytes: None,
            train: TrainScope::All,
            distillation: true,
            augment,
            holdout: 0.1,
            weight_decay: 1e-3,
            clip_norm: 10.0,
            teacher: TeacherConfig {
                steps: if small { 300 } else { 160 },
                lr: if small { 0.01 } else { 0.005 },
                pseudo_label_weight: 0.3,
                label_refreshes: 6,
            },
            mask: MaskConfig {
                admp: false,
                steps: if small { 200 } else { 100 },
                rounds: 6,
                lr: if small { 0.02 } else { 0.01 },
                admm: AdmmConfig::default(),
                use_admm: true,
                soft: SoftMask::default(),
                soft_min: 0.5,
                probe_lr: 0.1,
                probe_every: 5,
                probe_weight: 1.0,
                criterion: Criterion::default(),
                importance_batches: 20,
                round_batches: 10,
            },
            fine_tune: FineTuneConfig { steps: if small { 400 } else { 170 }, lr: if small { 0.02 } else { 0.01 } },
            gate: GateConfig::default(),
            precision: Precision::F32,
        }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Config`] naming the value, what was expected and what was given.
    pub fn validate(&self) -> Result<()> {
        self.limits.validate()?;
        self.augment.validate()?;
        let positive = [
            ("teacher.lr", self.teacher.lr),
            ("mask.lr", self.mask.lr),
            ("fine_tune.lr", self.fine_tune.lr),
            ("clip_norm", self.clip_norm),
            ("mask.probe_lr", self.mask.probe_lr),
        ];
        for (name, value) in positive {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::Config(format!("{name}: expected a positive number, got {value}")));
            }
        }
        if self.train.is_classifier_alone() && self.budget.is_none() {
            return Err(Error::Config(format!(
                "train: expected bn, all or last:2 and more without pruning, got {}: adapting leaves the classifier as it is",
                self.train
            )));
        }
        if self.mask.admp && self.mask.steps == 0 && self.budget.is_some() {
            return Err(Error::Config(
                "mask.steps: expected at least 1 with ADMP, whose masks are trained, got 0".into(),
            ));
        }
        if self.mask.admp && !self.distillation {
            return Err(Error::Config(
                "distillation: expected true with ADMP, whose losses compare with the teacher's answers, got false"
                    .into(),
            ));
        }
        let at_least_zero = [
            ("weight_decay", self.weight_decay),
            ("teacher.pseudo_label_weight", self.teacher.pseudo_label_weight),
            ("mask.probe_weight", self.mask.probe_weight),
        ];
        for (name, value) in at_least_zero {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::Config(format!("{name}: expected 0 or more, got {value}")));
            }
        }
        for (name, value) in [("holdout", self.holdout), ("mask.soft_min", self.mask.soft_min)] {
            if !(0.0..0.9).contains(&value) {
                return Err(Error::Config(format!("{name}: expected a fraction in [0, 0.9), got {value}")));
            }
        }
        let share = self.gate.min_class_share;
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::Config(format!("gate.min_class_share: expected a fraction in [0, 1], got {share}")));
        }
        if self.batch_size > MOST_IMAGES {
            return Err(Error::Config(format!(
                "batch_size: expected at most {MOST_IMAGES} images, got {}",
                self.batch_size
            )));
        }
        let counts = [
            ("batch_size", self.batch_size, 2),
            ("mask.probe_every", self.mask.probe_every, 1),
            ("mask.rounds", self.mask.rounds, 1),
            ("mask.importance_batches", self.mask.importance_batches, 1),
            ("mask.round_batches", self.mask.round_batches, 1),
            ("teacher.label_refreshes", self.teacher.label_refreshes, 1),
        ];
        for (name, value, least) in counts {
            if value < least {
                return Err(Error::Config(format!("{name}: expected at least {least}, got {value}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_images_is_a_fraction() {
        let with = |min_class_share| {
            let mut config = AdaptConfig::for_input([1, 28, 28]);
            config.gate.min_class_share = min_class_share;
            config.validate().map_err(|error| error.to_string())
        };
        assert_eq!((with(0.0), with(1.0)), (Ok(()), Ok(())));
        for wrong in [-0.1, 1.5, f64::NAN] {
            assert!(with(wrong).unwrap_err().contains("gate.min_class_share: expected a fraction in [0, 1], got"));
        }
    }

    #[test]
    fn many_images_are_trained_on_for_longer_and_not_for_ever() {
        let photographs = AdaptConfig::for_input([3, 224, 224]);
        let expected = [
            (0, 160, 170),
            (100, 160, 170),
            (880, 165, 170),
            (1000, 188, 188),
            (2817, 480, 510),
            (usize::MAX, 480, 510),
        ];
        for (images, teacher, tune) in expected {
            let config = photographs.clone().for_images(images);
            let steps = [config.teacher.steps, config.mask.steps, config.fine_tune.steps];
            assert_eq!(steps, [teacher, 100, tune], "{images}");
        }
        let digits = AdaptConfig { batch_size: 128, ..AdaptConfig::for_input([1, 28, 28]) }.for_images(10_000);
        assert_eq!((digits.teacher.steps, digits.fine_tune.steps), (469, 469));
    }

    #[test]
    fn absurd_batches_are_refused() {
        let with = |batch_size| {
            let config = AdaptConfig { batch_size, ..AdaptConfig::for_input([1, 28, 28]) };
            config.validate().map_err(|error| error.to_string())
        };
        assert_eq!(with(65_536), Ok(()));
        assert!(with(usize::MAX).unwrap_err().contains("batch_size: expected at most 65536 images, got"));
    }

    #[test]
    fn masks_of_admp_need_updates() {
        let with = |steps| {
            let mut config = AdaptConfig::for_input([1, 28, 28]).with_admp();
            config.mask.steps = steps;
            config.validate().map_err(|error| error.to_string())
        };
        assert_eq!(with(1), Ok(()));
        assert!(with(0).unwrap_err().contains("mask.steps: expected at least 1 with ADMP"));
    }

    #[test]
    fn admp_compares_with_the_teachers_answers() {
        let mut config = AdaptConfig::for_input([1, 28, 28]);
        config.distillation = false;
        assert_eq!(config.validate().map_err(|error| error.to_string()), Ok(()));
        let refused = config.with_admp().validate().unwrap_err().to_string();
        assert!(refused.contains("distillation: expected true with ADMP"), "{refused}");
    }

    #[test]
    fn rounds_take_equal_parts_and_have_updates_between() {
        let with = |steps, rounds| MaskConfig { steps, rounds, ..AdaptConfig::for_input([3, 224, 224]).mask };
        let before = |config: &MaskConfig| -> Vec<(usize, usize)> {
            (0..config.steps).filter_map(|step| Some((step, config.round_before(step)?))).collect()
        };
        assert_eq!(before(&with(100, 6)), [(0, 1), (20, 2), (40, 3), (60, 4), (80, 5)]);
        assert_eq!(before(&with(7, 4)), [(0, 1), (2, 2), (4, 3)]);
        assert_eq!(with(usize::MAX, 6).round_before(usize::MAX / 5), Some(2), "no overflow");
        assert_eq!(before(&with(2, 6)), [(0, 1), (1, 2)], "no round without updates before the next");
        assert!(before(&with(0, 6)).is_empty() && before(&with(50, 1)).is_empty(), "all at once");
        let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-12, "{got} {want}");
        near(with(100, 3).progress(1, 0.125), 0.5 / 0.875);
        near(with(100, 3).progress(2, 0.125), 0.75 / 0.875);
        near(with(100, 3).progress(3, 0.125), 1.0);
        near(with(0, 6).progress(1, 0.4), 1.0);
        near(with(100, 6).progress(1, 1.0), 1.0);
    }
}
