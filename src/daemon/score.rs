//! What a model's answers tell without labels.

use serde::{Deserialize, Serialize};

/// Label-free signals of a model's answers to some images.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Scores {
    /// How many images.
    pub images: usize,
    /// Mean probability of the likeliest class.
    pub confidence: f64,
    /// Mean entropy of a prediction, in nats.
    pub entropy: f64,
    /// Entropy of the mean prediction, in nats.
    pub diversity: f64,
    /// How often each class was the likeliest.
    pub classes: Vec<u32>,
    /// Mean of each logit. Logits are linear in the penultimate features, so their statistics stand for the features'.
    pub logit_mean: Vec<f32>,
    /// Standard deviation of each logit.
    pub logit_std: Vec<f32>,
}

/// How far answers have moved from earlier ones. What chance alone moves is subtracted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Drift {
    /// How much mean confidence has fallen.
    pub confidence: f64,
    /// Population stability index of the classes, Σ (p − q) ln(p/q).
    pub classes: f64,
    /// Root mean square of the shifts of the logits' means, in standard deviations.
    pub features: f64,
}

impl Scores {
    /// The signals of rows of logits, all equally long.
    pub fn of<'a>(rows: impl IntoIterator<Item = &'a [f32]>) -> Self {
        let (mut images, mut confidence, mut entropy) = (0usize, 0.0, 0.0);
        let (mut mean_p, mut sums, mut classes) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            mean_p.resize(row.len(), 0.0);
            sums.resize(row.len(), (0.0, 0.0));
            classes.resize(row.len(), 0u32);
            images += 1;
            let probabilities = softmax(row);
            for (sum, p) in mean_p.iter_mut().zip(&probabilities) {
                entropy += surprise(*p);
                *sum += p;
            }
            if let Some((class, p)) = probabilities.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)) {
                confidence += p;
                classes[class] += 1;
            }
            for ((sum, squares), x) in sums.iter_mut().zip(row) {
                *sum += f64::from(*x);
                *squares += f64::from(*x) * f64::from(*x);
            }
        }
        let n = images.max(1) as f64;
        let moments = |(sum, squares): &(f64, f64)| {
            let mean = sum / n;
            (mean as f32, (squares / n - mean * mean).max(0.0).sqrt() as f32)
        };
        let (logit_mean, logit_std) = sums.iter().map(moments).unzip();
        Self {
            images,
            confidence: confidence / n,
            entropy: entropy / n,
            diversity: mean_p.iter().map(|sum| surprise(sum / n)).sum(),
            classes,
            logit_mean,
            logit_std,
        }
    }

    /// How much the predictions tell: diversity less entropy, in nats.
    pub fn information(&self) -> f64 {
        self.diversity - self.entropy
    }

    /// How far `later` answers have moved from these.
    pub fn drift(&self, later: &Self) -> Drift {
        let chance = 1.0 / self.images.max(1) as f64 + 1.0 / later.images.max(1) as f64;
        let shifts: Vec<f64> = (self.logit_mean.iter().zip(&self.logit_std).zip(&later.logit_mean))
            .filter(|((_, std), _)| **std > 0.0)
            .map(|((mean, std), now)| f64::from((now - mean) / std).powi(2))
            .collect();
        let square = shifts.iter().sum::<f64>() / shifts.len().max(1) as f64;
        Drift {
            confidence: self.confidence - later.confidence,
            classes: stability(&self.classes, &later.classes, chance),
            features: (square - chance).max(0.0).sqrt(),
        }
    }
}

fn softmax(row: &[f32]) -> Vec<f64> {
    let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f64> = row.iter().map(|x| f64::from(x - highest).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|e| e / sum).collect()
}

/// −p ln p.
fn surprise(p: f64) -> f64 {
    if p > 0.0 { -p * p.ln() } else { 0.0 }
}

/// The population stability index of two histograms less its expectation, (k − 1)(1/n + 1/m) for k classes that occur.
/// Half a count is added to each, so that a class that is missing on one side does not make it infinite.
fn stability(before: &[u32], after: &[u32], chance: f64) -> f64 {
    let pairs: Vec<(f64, f64)> = before
        .iter()
        .zip(after)
        .filter(|(a, b)| **a + **b > 0)
        .map(|(a, b)| (f64::from(*a) + 0.5, f64::from(*b) + 0.5))
        .collect();
    let (n, m) = pairs.iter().fold((0.0, 0.0), |(n, m), (a, b)| (n + a, m + b));
    let index: f64 = pairs.iter().map(|(a, b)| (a / n - b / m) * ((a / n) / (b / m)).ln()).sum();
    (index - pairs.len().saturating_sub(1) as f64 * chance).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn scores(rows: &[Vec<f32>]) -> Scores {
        Scores::of(rows.iter().map(Vec::as_slice))
    }

    /// Confident answers, every class as often.
    fn answers(count: usize, classes: usize, rng: &mut Rng) -> Vec<Vec<f32>> {
        let row = |_| {
            let mut row: Vec<f32> = (0..classes).map(|_| rng.normal()).collect();
            row[rng.below(classes)] += 8.0;
            row
        };
        (0..count).map(row).collect()
    }

    #[test]
    fn signals_are_those_of_hand() {
        let even = scores(&[vec![0.0, 0.0], vec![0.0, 0.0]]);
        let ln2 = 2f64.ln();
        assert!((even.entropy - ln2).abs() < 1e-6 && even.information().abs() < 1e-6 && even.confidence == 0.5);
        let sure = scores(&[vec![50.0, 0.0], vec![0.0, 50.0]]);
        assert!(sure.entropy < 1e-6 && (sure.information() - ln2).abs() < 1e-6);
        assert_eq!((sure.classes.clone(), sure.logit_mean, sure.logit_std), (vec![1, 1], vec![25.0; 2], vec![25.0; 2]));
        assert_eq!(scores(&[]), Scores::default());
    }

    #[test]
    fn chance_is_no_drift_and_a_changed_world_is() {
        let mut rng = Rng::new(4);
        let base = scores(&answers(200, 10, &mut rng));
        let same = base.drift(&scores(&answers(200, 10, &mut rng)));
        assert!(same.classes < 0.1 && same.features < 0.15 && same.confidence.abs() < 0.05, "{same:?}");
        let few: Vec<_> = answers(200, 10, &mut rng).into_iter().map(|row| [&row[..3], &[0.0; 7]].concat()).collect();
        let moved = base.drift(&scores(&few));
        assert!(moved.classes > 0.5 && moved.features > 0.2, "{moved:?}");
        let faint: Vec<_> =
            answers(200, 10, &mut rng).iter().map(|row| row.iter().map(|x| x / 8.0).collect()).collect();
        assert!(base.drift(&scores(&faint)).confidence > 0.3);
    }
}
