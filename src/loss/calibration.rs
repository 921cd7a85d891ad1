//! Answers made as sure as they are right, without labels of the images.

use candle_core::{DType, Tensor};

use super::rows::matrix_dims;
use crate::error::Result;

/// Sharpest and softest that answers are made.
const TEMPERATURES: [f64; 2] = [0.05, 20.0];
/// Halvings of the interval between them, on a logarithmic scale.
const HALVINGS: usize = 16;

/// How sure each answer is once one temperature has made all together as sure as they are right: the largest probability of
/// each image, whose mean is `accuracy` or as near to it as it can come.
///
/// # Shapes
/// `logits` `[N, C]`, raw; `accuracy` in 0 to 1, of these answers or an estimate. Returns N probabilities. NaN gives NaN.
///
/// # Errors
/// [`crate::Error::Shape`] if `logits` are no matrix or empty.
///
/// # Source
/// Temperature scaling: Guo, Pleiss, Sun, Weinberger 2017, arXiv:1706.04599. They fit the temperature to labels.
pub fn calibrated_confidences(logits: &Tensor, accuracy: f64) -> Result<Vec<f64>> {
    let (_, classes) = matrix_dims("confidence logits", logits)?;
    let rows = likelihoods(logits, accuracy)?;
    // The largest of a row is 1.
    Ok(rows.chunks_exact(classes).map(|row| 1.0 / row.iter().map(|p| f64::from(*p)).sum::<f64>()).collect())
}

/// Probabilities at that temperature, row by row, each row relative to its largest.
pub(super) fn likelihoods(logits: &Tensor, accuracy: f64) -> Result<Vec<f32>> {
    let (_, classes) = matrix_dims("logits to calibrate", logits)?;
    let logits = logits.detach().to_dtype(DType::F32)?;
    let mut rows: Vec<f32> = logits.broadcast_sub(&logits.max_keepdim(1)?)?.flatten_all()?.to_vec1()?;
    let temperature = temperature(&rows, classes, accuracy) as f32;
    rows.iter_mut().for_each(|logit| *logit = (*logit / temperature).exp());
    Ok(rows)
}

/// That at which the mean of the largest probabilities is `accuracy`; `rows` are logits with their maximum at 0.
fn temperature(rows: &[f32], classes: usize, accuracy: f64) -> f64 {
    let images = rows.len() / classes;
    let confidence = |temperature: f64| {
        let largest = |row: &[f32]| 1.0 / row.iter().map(|logit| (f64::from(*logit) / temperature).exp()).sum::<f64>();
        rows.chunks_exact(classes).map(largest).sum::<f64>() / images as f64
    };
    let [mut sharp, mut soft] = TEMPERATURES;
    for _ in 0..HALVINGS {
        let middle = (sharp * soft).sqrt();
        if confidence(middle) > accuracy {
            sharp = middle;
        } else {
            soft = middle;
        }
    }
    (sharp * soft).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::testing::matrix;

    #[test]
    fn all_together_are_as_sure_as_they_are_right_and_keep_their_order() -> Result<()> {
        let logits = matrix(&[&[4.0, 0.0, 0.0], &[0.0, 2.0, 1.0], &[1.0, 0.0, 9.0]])?;
        for accuracy in [0.5, 0.7, 0.9] {
            let sure = calibrated_confidences(&logits, accuracy)?;
            assert!((sure.iter().sum::<f64>() / 3.0 - accuracy).abs() < 1e-3, "{accuracy}: {sure:?}");
            assert!(sure[1] < sure[0] && sure[0] < sure[2], "{sure:?}");
        }
        Ok(())
    }

    #[test]
    fn what_cannot_be_reached_is_come_near_to() -> Result<()> {
        let even = calibrated_confidences(&matrix(&[&[0.0, 0.0]])?, 0.9)?;
        assert!((even[0] - 0.5).abs() < 1e-9, "{even:?}");
        let certain = calibrated_confidences(&matrix(&[&[9e9, 0.0]])?, 0.6)?;
        assert!((certain[0] - 1.0).abs() < 1e-9, "{certain:?}");
        assert!(calibrated_confidences(&matrix(&[&[f64::NAN, 0.0]])?, 0.6)?[0].is_nan());
        assert!(calibrated_confidences(&matrix(&[&[1.0, 0.0]])?.get(0)?, 0.9).is_err());
        Ok(())
    }
}
