//! Minimum class confusion.

use candle_core::{D, Tensor};

use super::rows::{check_temperature, entropy_of, log_softmax, matrix_dims};
use crate::error::Result;

/// Expected count of a class below which its row of the confusion matrix is not stretched to sum 1.
const SMALLEST_CLASS: f64 = 1e-12;

/// How much the predictions of a batch confuse one class with another, between 0 and 1.
///
/// With `p_i = softmax(logits_i / T)` and `w_i = N·(1 + exp(−H(p_i))) / Σ_j (1 + exp(−H(p_j)))`, detached, the
/// confusion matrix is `K = Σ_i w_i·p_i·p_iᵀ`; its rows are scaled to sum 1, and the loss is the sum off the diagonal
/// divided by C.
///
/// # Shapes
/// `logits` `[N, C]`, raw, receive the gradient. Returns a scalar.
///
/// # Errors
/// [`crate::Error::Shape`] if `logits` are no matrix or empty; [`crate::Error::Config`] for a temperature that is not
/// above 0.
///
/// # Source
/// Jin, Wang, Long, Wang 2020, arXiv:1912.03699; temperatures of 2 to 3 are usual.
pub fn mcc(logits: &Tensor, temperature: f64) -> Result<Tensor> {
    matrix_dims("mcc logits", logits)?;
    check_temperature(temperature)?;
    let log_probs = log_softmax(&(logits / temperature)?)?;
    class_confusion(&log_probs.exp()?, &certainty(&log_probs)?)
}

/// The weights `w`, `[N]`, detached.
fn certainty(log_probs: &Tensor) -> Result<Tensor> {
    let log_probs = log_probs.detach();
    let certainty = (entropy_of(&log_probs)?.neg()?.exp()? + 1.0)?;
    Ok((certainty.broadcast_div(&certainty.sum_all()?)? * log_probs.dim(0)? as f64)?)
}

fn class_confusion(probs: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let classes = probs.dim(1)?;
    let confusion = probs.t()?.matmul(&probs.broadcast_mul(&weights.unsqueeze(1)?)?)?;
    let totals = confusion.sum_keepdim(D::Minus1)?.maximum(SMALLEST_CLASS)?;
    let off_diagonal = (1.0 - Tensor::eye(classes, probs.dtype(), probs.device())?)?;
    Ok(((confusion.broadcast_div(&totals)? * off_diagonal)?.sum_all()? / classes as f64)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::rows::softmax;
    use super::*;
    use crate::loss::testing::{
        F32_TOLERANCE, F64_TOLERANCE, assert_close, check_against_fixture, check_gradient_of, check_nan, gradient,
        matrix, sample_logits, value, values,
    };

    const TEMPERATURE: f64 = 2.5;

    #[test]
    fn agrees_with_pytorch() {
        check_against_fixture("mcc", |_, logits| mcc(logits, TEMPERATURE));
    }

    #[test]
    fn gradient_agrees_with_central_differences() -> Result<()> {
        let logits = sample_logits();
        let weights = certainty(&log_softmax(&(&logits / TEMPERATURE)?)?)?;
        let frozen = |x: &Tensor| class_confusion(&softmax(&(x / TEMPERATURE)?)?, &weights);
        check_gradient_of("mcc", &logits, |x| mcc(x, TEMPERATURE), frozen);
        Ok(())
    }

    #[test]
    fn agrees_with_a_hand_computed_case() -> Result<()> {
        // (¼, ¾) and (¾, ¼) are equally sure: w = 1, K = [[⅝, ⅜], [⅜, ⅝]], row sums 1, off the diagonal ¾ over 2.
        let logits = matrix(&[&[0.0, 2.0 * 3f64.ln()], &[2.0 * 3f64.ln(), 0.0]])?;
        assert_close("loss", &mcc(&logits, 2.0)?, &Tensor::new(0.375, &Device::Cpu)?, F64_TOLERANCE);
        Ok(())
    }

    #[test]
    fn a_class_that_vanishes_gives_finite_values_and_gradients() -> Result<()> {
        let logits = Tensor::new(&[[600f32, 0.0, -600.0], [0.0, 600.0, -600.0]], &Device::Cpu)?;
        assert!(value(&mcc(&logits, 1.0)?).abs() < F32_TOLERANCE);
        assert!(values(&gradient(&logits, &|x: &Tensor| mcc(x, 1.0))).iter().all(|v| v.is_finite()));
        Ok(())
    }

    #[test]
    fn nan_in_nan_out() {
        check_nan(|logits| mcc(logits, TEMPERATURE));
    }
}
