//! The label-free gate: is a candidate safe to put in the place of what it came from?

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::loss;

/// Thresholds of the gate. It catches failures; it does not rank good candidates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateConfig {
    /// Least agreement of student and adapted teacher on held-out images.
    pub min_agreement: f64,
    /// Least mutual information of the candidate relative to its reference's.
    pub min_information: f64,
    /// Least diversity (entropy of the mean prediction) of the candidate relative to its reference's.
    pub min_diversity: f64,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self { min_agreement: 0.85, min_information: 0.9, min_diversity: 0.8 }
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
}

impl Signals {
    /// The signals of raw logits `[N, C]`.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if `logits` is not a matrix.
    pub fn of(logits: &Tensor) -> Result<Self> {
        let entropy = f64::from(loss::entropy(logits)?.mean_all()?.to_scalar::<f32>()?);
        let diversity = f64::from(loss::diversity(logits)?.to_scalar::<f32>()?);
        Ok(Self { entropy, diversity, information: diversity - entropy })
    }
}

/// What the gate decided and from what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether the candidate may replace its reference.
    pub accepted: bool,
    /// Why, in one sentence.
    pub reason: String,
    /// Fraction of images on which candidate and reference give the same class.
    pub agreement: f64,
    /// The candidate's signals.
    pub candidate: Signals,
    /// The reference's signals.
    pub reference: Signals,
    /// Number of held-out images judged.
    pub images: usize,
}

/// Whether a candidate is meant to answer like its reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// A student imitates its teacher: answers must agree.
    SameAnswers,
    /// An adapted teacher may answer differently.
    BetterAnswers,
    /// The same network in fewer bits: answers must agree.
    RoundedAnswers,
}

/// Judges `candidate` against `reference`, raw logits `[N, C]` on the same held-out images.
///
/// # Errors
/// [`crate::Error::Shape`] if the two differ in shape.
pub fn judge(config: &GateConfig, expect: Expect, candidate: &Tensor, reference: &Tensor) -> Result<Verdict> {
    let agreement = loss::agreement(candidate, reference)?;
    let (new, old) = (Signals::of(candidate)?, Signals::of(reference)?);
    let mut reasons = Vec::new();
    let mut demand = |what: &str, got: f64, least: f64| {
        // A NaN on either side refuses too.
        if got.is_nan() || least.is_nan() || got < least {
            reasons.push(format!("{what} is {got:.3}, expected at least {least:.3}"));
        }
    };
    match expect {
        Expect::SameAnswers => demand("agreement with the adapted teacher", agreement, config.min_agreement),
        Expect::RoundedAnswers => demand("agreement with f32", agreement, config.min_agreement),
        Expect::BetterAnswers => {}
    }
    demand("mutual information", new.information, config.min_information * old.information);
    demand("diversity of the predictions", new.diversity, config.min_diversity * old.diversity);
    let images = candidate.dim(0)?;
    let accepted = reasons.is_empty();
    let reason = if accepted {
        format!(
            "agreement {agreement:.3}, mutual information {:.3} (reference {:.3}), diversity {:.3} (reference {:.3})",
            new.information, old.information, new.diversity, old.diversity
        )
    } else {
        reasons.join("; ")
    };
    let reason = format!("{reason} (on {images} images)");
    Ok(Verdict { accepted, reason, agreement, candidate: new, reference: old, images })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn logits(rows: &[[f32; 3]]) -> Tensor {
        Tensor::from_vec(rows.concat(), (rows.len(), 3), &Device::Cpu).unwrap()
    }

    fn sure() -> Tensor {
        logits(&[[9., 0., 0.], [0., 9., 0.], [0., 0., 9.], [9., 0., 0.]])
    }

    #[test]
    fn an_equal_student_is_accepted() {
        let verdict = judge(&GateConfig::default(), Expect::SameAnswers, &sure(), &sure()).unwrap();
        assert!(verdict.accepted, "{}", verdict.reason);
        assert_eq!(verdict.agreement, 1.0);
    }

    #[test]
    fn a_collapsed_student_is_refused_with_reasons() {
        let collapsed = logits(&[[9., 0., 0.]; 4]);
        for expect in [Expect::SameAnswers, Expect::BetterAnswers] {
            let verdict = judge(&GateConfig::default(), expect, &collapsed, &sure()).unwrap();
            assert!(!verdict.accepted);
            assert!(verdict.reason.contains("mutual information"), "{}", verdict.reason);
        }
    }

    #[test]
    fn nan_logits_are_refused() {
        let broken = logits(&[[f32::NAN, 0., 0.], [0., 9., 0.], [0., 0., 9.], [9., 0., 0.]]);
        assert!(!judge(&GateConfig::default(), Expect::BetterAnswers, &broken, &sure()).unwrap().accepted);
    }
}
