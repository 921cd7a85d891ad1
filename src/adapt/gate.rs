//! The label-free gate: is a candidate safe to put in the place of what it came from?

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::loss;

/// Thresholds of the gate. It catches failures; it does not rank good candidates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateConfig {
    /// Least agreement of student and adapted teacher on held-out images, relative to that teacher's stability: what it is not
    /// sure of itself no student can repeat. One standard error below, at most 0.05, is no reason to refuse. Of a network in
    /// fewer bits just this agreement is asked.
    pub min_agreement: f64,
    /// Least mutual information of the candidate relative to its reference's.
    pub min_information: f64,
    /// The same for a student: distillation leaves it less sure than a teacher that was trained to be, on the same answers.
    pub min_student_information: f64,
    /// Least diversity (entropy of the mean prediction) of the candidate relative to its reference's.
    pub min_diversity: f64,
    /// Least stability of the candidate relative to its reference's. One standard error below is no reason to refuse.
    pub min_stability: f64,
    /// Least agreement of a trained teacher with one of those it comes from, the teacher as it came, or with the target's
    /// statistics, relative to the stability of the steadier one on all images. More is asked if it answers more classes than
    /// that one. One standard error below is no reason to refuse.
    pub min_kinship: f64,
    /// Fewest held-out images that can tell.
    pub min_images: usize,
    /// Least share of the images that seems to be of each class, relative to an even share: see
    /// [`super::Survey::class_shares`].
    pub min_class_share: f64,
    /// Whether the student replaces one that was adapted already: nothing that training repairs of the teacher is a gain then,
    /// and no class may be rare.
    pub replaces_adapted: bool,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self {
            min_agreement: 0.95,
            min_information: 0.9,
            min_student_information: 0.8,
            min_diversity: 0.8,
            min_stability: 0.96,
            min_kinship: 0.7,
            min_images: 4,
            min_class_share: 0.25,
            replaces_adapted: false,
        }
    }
}

/// Label-free signals of one model on one set of images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Signals {
    /// Mean entropy of a prediction, in nats.
    pub entropy: f64,
    /// Entropy of the mean prediction, in nats.
    pub diversity: f64,
    /// Diversity minus entropy: how much the prediction tells, in nats.
    pub information: f64,
    /// Fraction of images whose class a random change, as in training, leaves as it is; `null` if nobody looked.
    #[serde(default)]
    pub stability: Option<f64>,
}

/// What a model says about the held-out images.
#[derive(Debug, Clone)]
pub struct Testimony {
    /// Raw logits `[N, C]`.
    pub logits: Tensor,
    /// See [`Signals::stability`].
    pub stability: Option<f64>,
}

impl From<Tensor> for Testimony {
    /// Of unchanged images only.
    fn from(logits: Tensor) -> Self {
        Self { logits, stability: None }
    }
}

impl Signals {
    /// The signals of a testimony.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if the logits are not a matrix.
    pub fn of(testimony: &Testimony) -> Result<Self> {
        let Testimony { logits, stability } = testimony;
        let entropy = f64::from(loss::entropy(logits)?.mean_all()?.to_scalar::<f32>()?);
        let diversity = f64::from(loss::diversity(logits)?.to_scalar::<f32>()?);
        // Rounding must not make it negative where all answers are the same; what is no number stays none.
        let positive = |value: f64| if value <= 0.0 { 0.0 } else { value };
        let information = positive(diversity - entropy);
        Ok(Self { entropy, diversity: positive(diversity), information, stability: *stability })
    }
}

/// Agreement that is asked of the student of the least stable teacher: ruin is not stable and must not ask for less.
const LEAST_AGREEMENT: f64 = 0.75;
/// Kinship is asked in proportion to this power of the classes gained.
const GAINED_POWER: f64 = 1.5;
/// Most that agreement may lack for being measured on few images: three of them cannot tell, and say nothing good.
const MOST_FORGIVEN: f64 = 0.05;

/// What the gate decided and from what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether the candidate may replace its reference.
    pub accepted: bool,
    /// Why, in one sentence.
    pub reason: String,
    /// Fraction of images on which candidate and reference give the same class.
    pub agreement: f64,
    /// The same with the nearer one of those a trained teacher comes from; `null` for others.
    #[serde(default)]
    pub kinship: Option<f64>,
    /// The candidate's signals.
    pub candidate: Signals,
    /// The reference's signals.
    pub reference: Signals,
    /// Number of held-out images judged.
    pub images: usize,
}

/// Whether a candidate is meant to answer like its reference.
#[derive(Debug, Clone, Copy)]
pub enum Expect<'a> {
    /// A student imitates its teacher: answers must agree.
    SameAnswers,
    /// An adapted teacher may answer differently.
    BetterAnswers,
    /// A trained one too, but it stays akin to what it comes from.
    Kinship(Kin<'a>),
    /// The same network in fewer bits: answers must agree.
    RoundedAnswers,
}

/// What a trained teacher comes from, beside the reference, which is the teacher as it came.
#[derive(Debug, Clone, Copy)]
pub struct Kin<'a> {
    /// The reference with the target's batch-norm statistics.
    pub statistics: &'a Testimony,
    /// Whether that one is the steadier of the two.
    pub steadier: bool,
    /// Stability of the steadier one on all images: [`super::Survey::stability`].
    pub stability: f64,
}

/// Judges `candidate` against `reference`, on the same held-out images.
///
/// # Errors
/// [`crate::Error::Shape`] if the two differ in shape.
pub fn judge(config: &GateConfig, expect: Expect, candidate: &Testimony, reference: &Testimony) -> Result<Verdict> {
    let agreement = loss::agreement(&candidate.logits, &reference.logits)?;
    let kinship = match expect {
        Expect::Kinship(kin) => Some(agreement.max(loss::agreement(&candidate.logits, &kin.statistics.logits)?)),
        _ => None,
    };
    let images = candidate.logits.dim(0)?;
    let (new, old) = (Signals::of(candidate)?, Signals::of(reference)?);
    let mut reasons = Vec::new();
    let mut demand = |what: &str, got: f64, least: f64| {
        // A NaN on either side refuses too.
        if got.is_nan() || least.is_nan() || got < least {
            let (got, least) = told_apart(got, least);
            reasons.push(format!("{what} is {got}, expected at least {least}"));
        }
    };
    match expect {
        Expect::SameAnswers => {
            let forgiven = standard_error(agreement, images).min(MOST_FORGIVEN);
            let own = (config.min_agreement * old.stability.unwrap_or(1.0)).max(LEAST_AGREEMENT);
            let least = own - forgiven;
            demand("agreement with the adapted teacher", agreement, least);
        }
        Expect::RoundedAnswers => demand("agreement with f32", agreement, config.min_agreement),
        Expect::BetterAnswers => {}
        Expect::Kinship(kin) => {
            let kinship = kinship.unwrap_or(f64::NAN);
            let steadier = if kin.steadier { Signals::of(kin.statistics)? } else { old };
            let own = config.min_kinship * kin.stability * classes_gained(&new, &steadier).powf(GAINED_POWER);
            let least = own.min(1.0) - standard_error(kinship, images);
            demand("agreement with what it was trained from", kinship, least);
        }
    }
    let share = match expect {
        Expect::SameAnswers => config.min_student_information,
        Expect::BetterAnswers | Expect::Kinship(..) | Expect::RoundedAnswers => config.min_information,
    };
    demand("mutual information", new.information, share * old.information);
    demand("diversity of the predictions", new.diversity, config.min_diversity * old.diversity);
    if let (Some(new), Some(old)) = (new.stability, old.stability) {
        let least = config.min_stability * old - standard_error(new, images);
        demand("stability under changes of the image", new, least);
    }
    if images < config.min_images {
        let least = config.min_images;
        reasons
            .push(format!("too few held-out images to tell, expected at least {least}: bring more (or see --holdout)"));
    }
    let accepted = reasons.is_empty();
    let reason = if accepted {
        format!(
            "agreement {agreement:.3}, mutual information {:.3} (reference {:.3}), diversity {:.3} (reference {:.3})",
            new.information, old.information, new.diversity, old.diversity
        )
    } else {
        reasons.join("; ")
    };
    let reason = format!("{reason} (on {images} {})", if images == 1 { "image" } else { "images" });
    Ok(Verdict { accepted, reason, agreement, kinship, candidate: new, reference: old, images })
}

/// How many times as many classes, e to their entropy, a candidate answers as what it comes from, at least once: training
/// for information divides the few classes of a one-sided sample until there are enough. Of two that it comes from the
/// steadier one tells how many there are: see [`super::Survey::class_shares`].
fn classes_gained(candidate: &Signals, from: &Signals) -> f64 {
    (candidate.diversity - from.diversity).exp().max(1.0)
}

/// Both with three decimals, or as many as it takes to see that they differ.
fn told_apart(a: f64, b: f64) -> (String, String) {
    let rounded = |digits: usize| (format!("{a:.digits$}"), format!("{b:.digits$}"));
    (3..9).map(rounded).find(|(a, b)| a != b).unwrap_or_else(|| rounded(9))
}

/// Of a share of so many images.
fn standard_error(share: f64, images: usize) -> f64 {
    (share * (1.0 - share) / images as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn logits(rows: &[[f32; 3]]) -> Testimony {
        Tensor::from_vec(rows.concat(), (rows.len(), 3), &Device::Cpu).unwrap().into()
    }

    fn akin_to(statistics: &Testimony, stability: f64) -> Expect<'_> {
        Expect::Kinship(Kin { statistics, steadier: false, stability })
    }

    fn sure() -> Testimony {
        logits(&[[9., 0., 0.], [0., 9., 0.], [0., 0., 9.], [9., 0., 0.]])
    }

    /// All demands, for the handful of images above.
    fn few() -> GateConfig {
        GateConfig { min_images: 4, ..GateConfig::default() }
    }

    #[test]
    fn an_equal_student_is_accepted() {
        let verdict = judge(&few(), Expect::SameAnswers, &sure(), &sure()).unwrap();
        assert!(verdict.accepted, "{}", verdict.reason);
        assert_eq!(verdict.agreement, 1.0);
    }

    #[test]
    fn a_collapsed_student_is_refused_with_reasons() {
        let collapsed = logits(&[[9., 0., 0.]; 4]);
        for expect in [Expect::SameAnswers, Expect::BetterAnswers] {
            let verdict = judge(&few(), expect, &collapsed, &sure()).unwrap();
            assert!(!verdict.accepted);
            assert!(verdict.reason.contains("mutual information"), "{}", verdict.reason);
        }
    }

    #[test]
    fn a_student_may_be_less_sure_but_not_unsure() {
        let informed = |scale: f32| logits(&[[scale, 0., 0.], [0., scale, 0.], [0., 0., scale], [scale, 0., 0.]]);
        let judged = |expect, scale| judge(&few(), expect, &informed(scale), &sure()).unwrap();
        let (softer, soft) = (judged(Expect::SameAnswers, 4.2), judged(Expect::SameAnswers, 2.5));
        let kept = softer.candidate.information / softer.reference.information;
        assert!((0.8..0.9).contains(&kept) && softer.accepted, "{kept} {}", softer.reason);
        assert!(!judged(Expect::BetterAnswers, 4.2).accepted && !soft.accepted, "{}", soft.reason);
    }

    #[test]
    fn images_that_are_all_alike_change_nothing() {
        for sure in [0.3, 3.0, 30.0] {
            let same = logits(&[[sure, 0., -1.]; 7]);
            let verdict = judge(&few(), Expect::BetterAnswers, &same, &same).unwrap();
            assert!(verdict.accepted, "{}", verdict.reason);
        }
    }

    #[test]
    fn what_is_refused_by_little_is_told_apart() {
        assert_eq!(told_apart(0.5, 0.75), ("0.500".into(), "0.750".into()));
        assert_eq!(told_apart(0.0, 0.00012), ("0.0000".into(), "0.0001".into()));
        assert_eq!(told_apart(f64::NAN, 0.75), ("NaN".into(), "0.750".into()));
        assert_eq!(told_apart(0.0, 1e-12).0, "0.000000000");
    }

    #[test]
    fn nan_logits_are_refused() {
        let broken = logits(&[[f32::NAN, 0., 0.], [0., 9., 0.], [0., 0., 9.], [9., 0., 0.]]);
        assert!(!judge(&few(), Expect::BetterAnswers, &broken, &sure()).unwrap().accepted);
    }

    #[test]
    fn a_trained_teacher_unlike_all_it_comes_from_is_refused() {
        let turned = logits(&[[0., 9., 0.], [0., 0., 9.], [9., 0., 0.], [0., 9., 0.]]);
        let verdict = judge(&few(), akin_to(&sure(), 1.0), &turned, &sure()).unwrap();
        assert!(!verdict.accepted && verdict.reason.contains("trained from"), "{}", verdict.reason);
        let verdict = judge(&few(), akin_to(&turned, 1.0), &turned, &sure()).unwrap();
        assert_eq!((verdict.accepted, verdict.agreement, verdict.kinship), (true, 0.0, Some(1.0)), "one kin is enough");
    }

    #[test]
    fn kinship_a_standard_error_short_is_forgiven() {
        let judged = |kin: usize, images: usize| {
            let (start, trained) = (in_turn(images, 0), in_turn(images, images - kin));
            judge(&GateConfig::default(), akin_to(&start, 1.0), &trained, &start)
        };
        // 0.68 of 100: the standard error is 0.047, of 1000: 0.015.
        for (kin, images, accepted) in [(68, 100, true), (64, 100, false), (680, 1000, false), (700, 1000, true)] {
            let verdict = judged(kin, images).unwrap();
            assert_eq!(verdict.accepted, accepted, "{kin} of {images}: {}", verdict.reason);
        }
    }

    #[test]
    fn who_answers_more_classes_has_to_agree_on_more() {
        // Images of each class before and after.
        let rows = |shares: [usize; 3]| -> Vec<[f32; 3]> {
            let row = |class: usize| std::array::from_fn(|i| if i == class { 9.0 } else { 0.0 });
            shares.iter().enumerate().flat_map(|(class, &count)| std::iter::repeat_n(row(class), count)).collect()
        };
        let judged = |from: [usize; 3], to: [usize; 3]| {
            let start = logits(&rows(from));
            judge(&GateConfig::default(), akin_to(&start, 1.0), &logits(&rows(to)), &start).unwrap()
        };
        let same = judged([50, 50, 0], [48, 47, 5]);
        assert!(same.accepted, "{}", same.reason);
        let divided = judged([98, 2, 0], [65, 2, 33]);
        assert!(divided.kinship > Some(0.6) && !divided.accepted, "{}", divided.reason);
        assert!(divided.reason.contains("trained from"), "{}", divided.reason);
        // Where the target's statistics are steadier, those tell how many classes there are.
        let [source, statistics, trained] = [[98, 2, 0], [60, 5, 35], [65, 2, 33]].map(|shares| logits(&rows(shares)));
        for (steadier, accepted) in [(false, false), (true, true)] {
            let kin = Expect::Kinship(Kin { statistics: &statistics, steadier, stability: 0.9 });
            let verdict = judge(&GateConfig::default(), kin, &trained, &source).unwrap();
            assert_eq!(verdict.accepted, accepted, "{}", verdict.reason);
        }
    }

    #[test]
    fn answers_that_change_with_the_view_are_refused() {
        let many = logits(&[[9., 0., 0.], [0., 9., 0.], [0., 0., 9.], [9., 0., 0.]].repeat(25));
        // The standard errors are 0.022 and 0.027.
        let [firm, less, shaky] =
            [1.0, 0.95, 0.92].map(|stability| Testimony { stability: Some(stability), ..many.clone() });
        assert!(judge(&few(), Expect::BetterAnswers, &less, &firm).unwrap().accepted);
        for expect in [Expect::BetterAnswers, Expect::SameAnswers] {
            let verdict = judge(&few(), expect, &shaky, &firm).unwrap();
            assert!(!verdict.accepted && verdict.reason.contains("stability"), "{}", verdict.reason);
        }
        assert!(judge(&few(), Expect::BetterAnswers, &firm, &shaky).unwrap().accepted);
    }

    /// So many images of three classes in turn, the first `turned` of them answered with the next class.
    fn in_turn(images: usize, turned: usize) -> Testimony {
        let row = |i: usize| [[9., 0., 0.], [0., 9., 0.], [0., 0., 9.]][(i + usize::from(i < turned)) % 3];
        logits(&(0..images).map(row).collect::<Vec<_>>())
    }

    #[test]
    fn what_a_teacher_is_not_sure_of_no_student_has_to_repeat() {
        let judged = |own: Option<f64>, turned: usize| {
            let teacher = Testimony { stability: own, ..in_turn(1000, 0) };
            let student = Testimony { stability: own, ..in_turn(1000, turned) };
            judge(&GateConfig::default(), Expect::SameAnswers, &student, &teacher).unwrap()
        };
        // A standard error is 0.007 to 0.014. Of a teacher with a stability of 0.8, 0.76 are asked.
        for (own, turned, accepted) in [
            (None, 50, true),
            (None, 70, false),
            (Some(1.0), 70, false),
            (Some(0.8), 240, true),
            (Some(0.8), 300, false),
        ] {
            let verdict = judged(own, turned);
            assert_eq!(verdict.accepted, accepted, "{own:?} {turned}: {}", verdict.reason);
        }
    }

    #[test]
    fn a_few_images_excuse_little() {
        let judged = |images, turned| {
            let (teacher, student) = (in_turn(images, 0), in_turn(images, turned));
            judge(&GateConfig::default(), Expect::SameAnswers, &student, &teacher).unwrap().reason
        };
        assert!(judged(3, 1).contains("expected at least 0.900"), "{}", judged(3, 1));
        assert!(!judged(10, 1).contains("expected"), "{}", judged(10, 1));
    }

    #[test]
    fn kinship_is_asked_as_far_as_the_source_is_sure() {
        let judged = |stability| {
            let (source, trained) = (in_turn(1000, 0), in_turn(1000, 450));
            judge(&GateConfig::default(), akin_to(&source, stability), &trained, &source).unwrap()
        };
        let (sure, unsure) = (judged(1.0), judged(0.7));
        assert!(!sure.accepted && unsure.accepted, "{} / {}", sure.reason, unsure.reason);
    }

    #[test]
    fn a_handful_of_images_tells_nothing() {
        let verdict = judge(&GateConfig { min_images: 5, ..few() }, Expect::SameAnswers, &sure(), &sure()).unwrap();
        assert!(!verdict.accepted && verdict.reason.contains("too few held-out images"), "{}", verdict.reason);
    }
}
