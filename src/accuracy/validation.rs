//! What the gate, which sees no labels, is worth beside what labels say.

use crate::adapt::gate::Verdict;

/// A candidate this many points below its reference should have been refused, any other accepted.
pub const TOLERANCE_POINTS: f64 = 1.0;

/// Fewer runs have no rank correlation worth a figure.
const FEWEST_RANKED: usize = 4;

/// A verdict, and the points that the candidate truly lies above its reference.
#[derive(Debug, Clone, Copy)]
pub struct Judged<'a> {
    /// The gate's verdict.
    pub verdict: &'a Verdict,
    /// Candidate minus reference, in points of accuracy.
    pub gain: f64,
}

/// The gate's signals and verdicts beside true gains.
#[derive(Debug, Clone, PartialEq)]
pub struct Validation {
    /// Candidates.
    pub runs: usize,
    /// Rank correlation of stability relative to the reference's and gain, where both were looked for; `None` if one of them is
    /// constant, or of fewer than four runs.
    pub stability: Option<f64>,
    /// The same of agreement.
    pub agreement: Option<f64>,
    /// The same of mutual information relative to the reference's.
    pub information: Option<f64>,
    /// The same of diversity relative to the reference's.
    pub diversity: Option<f64>,
    /// Accepted candidates.
    pub accepted: usize,
    /// Accepted ones that lose more than [`TOLERANCE_POINTS`].
    pub false_accepts: usize,
    /// Refused ones that do not.
    pub false_rejects: usize,
}

impl Validation {
    /// Counts and correlates.
    pub fn of(judged: &[Judged]) -> Self {
        let with = |signal: fn(&Verdict) -> Option<f64>| {
            let known = judged.iter().filter_map(|j| Some((signal(j.verdict)?, j.gain)));
            let (values, gains): (Vec<f64>, Vec<f64>) = known.unzip();
            if values.len() < FEWEST_RANKED { None } else { rank_correlation(&values, &gains) }
        };
        let good = |j: &Judged| j.gain >= -TOLERANCE_POINTS;
        Self {
            runs: judged.len(),
            stability: with(|v| Some(v.candidate.stability? / v.reference.stability?)),
            agreement: with(|v| Some(v.agreement)),
            information: with(|v| Some(v.candidate.information / v.reference.information)),
            diversity: with(|v| Some(v.candidate.diversity / v.reference.diversity)),
            accepted: judged.iter().filter(|j| j.verdict.accepted).count(),
            false_accepts: judged.iter().filter(|j| j.verdict.accepted && !good(j)).count(),
            false_rejects: judged.iter().filter(|j| !j.verdict.accepted && good(j)).count(),
        }
    }

    /// Header of [`Validation::cells`].
    pub(super) const HEADER: [&'static str; 9] = [
        "gate on",
        "runs",
        "ρ stability",
        "ρ agreement",
        "ρ information",
        "ρ diversity",
        "accepted",
        "of these > 1 point worse",
        "refused though not",
    ];

    /// A row of a table.
    pub(super) fn cells(&self, name: &str) -> Vec<String> {
        let signal = |rho: Option<f64>| rho.map_or("–".to_string(), |rho| format!("{rho:+.2}"));
        vec![
            name.to_string(),
            self.runs.to_string(),
            signal(self.stability),
            signal(self.agreement),
            signal(self.information),
            signal(self.diversity),
            self.accepted.to_string(),
            self.false_accepts.to_string(),
            self.false_rejects.to_string(),
        ]
    }
}

/// Spearman's ρ: Pearson's correlation of ranks, ties at their mean rank; `None` if one side is constant.
fn rank_correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() as f64 - 1.0) / 2.0;
    let covariance = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    let scale = (covariance(&a, &a) * covariance(&b, &b)).sqrt();
    (scale > 0.0).then(|| covariance(&a, &b) / scale)
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let rank = |value: &f64| {
        let below = values.iter().filter(|other| other.total_cmp(value).is_lt()).count();
        let equal = values.iter().filter(|other| other.total_cmp(value).is_eq()).count();
        below as f64 + (equal as f64 - 1.0) / 2.0
    };
    values.iter().map(rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapt::gate::Signals;

    fn verdict(accepted: bool, agreement: f64) -> Verdict {
        let signals = Signals { entropy: 0.0, diversity: 1.0, information: 1.0, stability: None };
        Verdict {
            accepted,
            reason: String::new(),
            agreement,
            kinship: None,
            candidate: signals,
            reference: signals,
            images: 10,
        }
    }

    #[test]
    fn mistakes_of_both_kinds_are_counted() {
        let mut verdicts = [verdict(true, 0.9), verdict(true, 0.8), verdict(false, 0.7), verdict(false, 0.6)];
        let gains = [0.5, -1.5, -1.0, -9.0];
        let judged: Vec<Judged> = verdicts.iter().zip(gains).map(|(verdict, gain)| Judged { verdict, gain }).collect();
        let found = Validation::of(&judged);
        assert_eq!((found.runs, found.accepted, found.false_accepts, found.false_rejects), (4, 2, 1, 1));
        assert!((found.agreement.unwrap() - 0.8).abs() < 1e-12, "{found:?}");
        assert_eq!(found.information, None, "a constant ranks nothing");
        assert_eq!(found.stability, None, "nobody looked");
        assert_eq!(Validation::of(&judged[..3]).agreement, None, "three runs rank nothing");
        for (verdict, stability) in verdicts.iter_mut().zip([0.9, 0.8, 0.85, 0.3]) {
            (verdict.candidate.stability, verdict.reference.stability) = (Some(stability), Some(0.9));
        }
        let judged: Vec<Judged> = verdicts.iter().zip(gains).map(|(verdict, gain)| Judged { verdict, gain }).collect();
        assert_eq!(Validation::of(&judged).stability, Some(1.0));
    }

    #[test]
    fn ties_share_their_rank() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [2.5, 0.0, 2.5, 1.0]);
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[30.0, 20.0, 10.0]), Some(-1.0));
    }
}
