//! How many images of each class there are, without labels.

use candle_core::Tensor;

use super::calibration::likelihoods;
use super::rows::matrix_dims;
use crate::error::Result;

/// Rounds after which the estimate is taken as it is. Shares of classes that do not come fall towards 0 ever slower.
const MOST_ROUNDS: usize = 200;
/// No share changes by more than this in the last round.
const SETTLED: f64 = 1e-6;

/// The shares of the classes, which sum to 1, under which a classifier's answers are most likely.
///
/// A classifier that was trained on classes in equal shares gives some of every image to every class, the more so the less
/// sure it is, and the mean of its predictions hides that a class does not come. Here each prediction is weighted by the
/// shares found so far before the mean is taken, until they stay: `π_c ← mean_i π_c p_ic / Σ_k π_k p_ik`, from equal ones.
/// That takes the classifier at its word. So its answers are first made as sure as they are right: one temperature makes the
/// mean of the largest probabilities what `accuracy` says, or comes as near as it can.
///
/// # Shapes
/// `logits` `[N, C]`, raw; `accuracy` in 0 to 1, of these answers or an estimate. Returns C shares. NaN gives NaN.
///
/// # Errors
/// [`crate::Error::Shape`] if `logits` are no matrix or empty.
///
/// # Source
/// Saerens, Latinne, Decaestecker 2002, "Adjusting the Outputs of a Classifier to New a Priori Probabilities", Neural
/// Computation 14(1). That it needs a calibrated classifier: Alexandari, Kundaje, Shrikumar 2020, arXiv:1901.06852; they
/// calibrate with labels of the source.
pub fn class_shares(logits: &Tensor, accuracy: f64) -> Result<Vec<f64>> {
    let (images, classes) = matrix_dims("class-share logits", logits)?;
    let rows = likelihoods(logits, accuracy)?;
    let mut shares = vec![1.0 / classes as f64; classes];
    for _ in 0..MOST_ROUNDS {
        let mut sums = vec![0.0; classes];
        for row in rows.chunks_exact(classes) {
            let likely: f64 = row.iter().zip(&shares).map(|(p, share)| f64::from(*p) * share).sum();
            for (sum, p) in sums.iter_mut().zip(row) {
                *sum += f64::from(*p) / likely;
            }
        }
        let next: Vec<f64> = shares.iter().zip(&sums).map(|(share, sum)| share * sum / images as f64).collect();
        let settled = shares.iter().zip(&next).all(|(old, new)| (old - new).abs() <= SETTLED);
        shares = next;
        if settled {
            break;
        }
    }
    Ok(shares)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::testing::matrix;

    /// An image of which the classifier says that its class is `times` as likely as each of the two others.
    fn unsure(class: usize, times: f64) -> [f64; 3] {
        std::array::from_fn(|other| if other == class { times.ln() } else { 0.0 })
    }

    fn shares(classes: &[usize], times: f64, accuracy: f64) -> Vec<f64> {
        let rows: Vec<[f64; 3]> = classes.iter().map(|&class| unsure(class, times)).collect();
        let rows: Vec<&[f64]> = rows.iter().map(|row| &row[..]).collect();
        class_shares(&matrix(&rows).unwrap(), accuracy).unwrap()
    }

    #[test]
    fn even_shares_stay() {
        let even = shares(&[0, 1, 2, 2, 1, 0], 8.0, 0.8);
        assert!(even.iter().all(|share| (share - 1.0 / 3.0).abs() < 1e-4), "{even:?}");
    }

    #[test]
    fn a_class_that_does_not_come_has_no_share_though_every_image_seems_to_be_of_it_a_little() {
        let missing = shares(&[0, 1, 0, 1], 8.0, 0.8);
        assert!(missing[2] < 1e-3, "{missing:?}");
        assert!((missing.iter().sum::<f64>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn how_sure_the_answers_are_does_not_matter_but_how_right() {
        // One answer of nine is class 2: more than the mistakes of a classifier that is right nine times of ten, and less
        // than those of one that is right six times of ten.
        let answers = [0, 1, 0, 1, 0, 1, 0, 1, 2];
        for times in [3.0, 30.0, 300.0] {
            let (right, wrong) = (shares(&answers, times, 0.9)[2], shares(&answers, times, 0.6)[2]);
            assert!((0.05..0.11).contains(&right) && wrong < 1e-3, "{times}: {right} {wrong}");
        }
    }

    #[test]
    fn the_shares_are_the_most_likely_ones() -> Result<()> {
        // Two classes, answers right nine times of ten, seven of ten answers the first: its share π is the one for which
        // that is to be expected, 0.9 π + 0.1 (1 − π) = 0.7.
        let rows: Vec<[f64; 2]> = (0..10).map(|image| if image < 7 { [1.0, 0.0] } else { [0.0, 1.0] }).collect();
        let rows: Vec<&[f64]> = rows.iter().map(|row| &row[..]).collect();
        let found = class_shares(&matrix(&rows)?, 0.9)?;
        assert!((found[0] - 0.75).abs() < 1e-3, "{found:?}");
        Ok(())
    }

    #[test]
    fn certain_answers_are_counted_and_nan_stays() -> Result<()> {
        let certain = matrix(&[&[900.0, 0.0], &[900.0, 0.0], &[900.0, 0.0], &[0.0, 900.0]])?;
        for accuracy in [0.3, 0.9, 1.0] {
            let counted = class_shares(&certain, accuracy)?;
            assert!((counted[0] - 0.75).abs() < 1e-6, "{counted:?}");
        }
        let unknown = class_shares(&matrix(&[&[f64::NAN, 0.0], &[1.0, 0.0]])?, 0.9)?;
        assert!(unknown.iter().all(|share| share.is_nan()), "{unknown:?}");
        assert!(class_shares(&matrix(&[&[1.0, 0.0]])?.get(0)?, 0.9).is_err());
        Ok(())
    }
}
