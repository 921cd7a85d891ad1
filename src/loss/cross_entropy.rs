//! Cross-entropy with a weight per example.

use candle_core::{DType, Tensor};

use super::rows::{check_vector, log_softmax, matrix_dims};
use crate::error::{Error, Result};

/// Cross-entropy of labels under the softmax of logits, each example scaled by its weight.
///
/// `mean_i w_i · (−log softmax(logits_i)[labels_i])`: the mean is over the N examples, not over the sum of the
/// weights, so a batch of doubtful pseudo labels pulls less than a batch of sure ones.
///
/// # Shapes
/// `logits` `[N, C]`, raw, receive the gradient; `labels` `[N]` u32; `weights` `[N]`, detached, 1 if absent. Returns
/// a scalar.
///
/// # Errors
/// [`Error::Shape`] for other shapes or labels of another dtype; [`Error::Tensor`] for a label outside 0..C.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
    let (batch, _) = matrix_dims("cross-entropy logits", logits)?;
    check_vector("cross-entropy labels", labels, batch)?;
    if labels.dtype() != DType::U32 {
        return Err(Error::Shape(format!("cross-entropy labels: expected u32, got {:?}", labels.dtype())));
    }
    let losses = log_softmax(logits)?.gather(&labels.unsqueeze(1)?, 1)?.squeeze(1)?.neg()?;
    let Some(weights) = weights else { return Ok(losses.mean_all()?) };
    check_vector("cross-entropy weights", weights, batch)?;
    Ok((losses * weights.detach().to_dtype(logits.dtype())?)?.mean_all()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::loss::testing::{
        F64_TOLERANCE, assert_close, check_against_fixture, check_gradient, check_nan, matrix, sample_logits,
    };

    #[test]
    fn agrees_with_pytorch() {
        check_against_fixture("cross_entropy", |given, logits| cross_entropy(logits, &given["labels"], None));
        check_against_fixture("cross_entropy_weighted", |given, logits| {
            cross_entropy(logits, &given["labels"], Some(&given["weights"]))
        });
    }

    #[test]
    fn gradient_agrees_with_central_differences() -> Result<()> {
        let labels = Tensor::new(&[0u32, 4, 2, 2, 1, 3], &Device::Cpu)?;
        let weights = Tensor::new(&[1f64, 0.5, 0.0, 1.0, 2.0, 0.1], &Device::Cpu)?;
        check_gradient("cross-entropy", &sample_logits(), |x| cross_entropy(x, &labels, Some(&weights)));
        Ok(())
    }

    #[test]
    fn agrees_with_a_hand_computed_case() -> Result<()> {
        // Probabilities (¼, ¾) and (½, ½), labels 0 and 1, weights 1 and ½.
        let logits = matrix(&[&[0.0, 3f64.ln()], &[7.0, 7.0]])?;
        let labels = Tensor::new(&[0u32, 1], &Device::Cpu)?;
        let weights = Tensor::new(&[1f64, 0.5], &Device::Cpu)?;
        let want = Tensor::new((4f64.ln() + 0.5 * 2f64.ln()) / 2.0, &Device::Cpu)?;
        assert_close("loss", &cross_entropy(&logits, &labels, Some(&weights))?, &want, F64_TOLERANCE);
        Ok(())
    }

    #[test]
    fn nan_in_nan_out() -> Result<()> {
        let labels = Tensor::new(&[0u32, 1], &Device::Cpu)?;
        check_nan(|logits| cross_entropy(logits, &labels, None));
        Ok(())
    }

    #[test]
    fn bad_labels_are_refused() -> Result<()> {
        let logits = matrix(&[&[0.0, 1.0], &[1.0, 0.0]])?;
        let short = Tensor::new(&[0u32], &Device::Cpu)?;
        assert!(matches!(cross_entropy(&logits, &short, None), Err(Error::Shape(_))));
        let signed = Tensor::new(&[0i64, 1], &Device::Cpu)?;
        assert!(matches!(cross_entropy(&logits, &signed, None), Err(Error::Shape(_))));
        let outside = Tensor::new(&[0u32, 2], &Device::Cpu)?;
        assert!(matches!(cross_entropy(&logits, &outside, None), Err(Error::Tensor(_))));
        Ok(())
    }
}
