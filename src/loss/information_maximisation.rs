//! Information maximisation: each prediction sure of itself, all predictions together diverse.

use candle_core::{D, Tensor};

use super::rows::{entropy_of, log_softmax, log_sum_exp, matrix_dims};
use crate::error::Result;

/// Entropy of each prediction, in nats.
///
/// `H_i = −Σ_c p_ic · log p_ic` with `p_i = softmax(logits_i)`.
///
/// # Shapes
/// `logits` `[N, C]`, raw, receive the gradient. Returns `[N]`.
///
/// # Errors
/// [`crate::Error::Shape`] if `logits` are no matrix or empty.
pub fn entropy(logits: &Tensor) -> Result<Tensor> {
    matrix_dims("entropy logits", logits)?;
    entropy_of(&log_softmax(logits)?)
}

/// Mean entropy in which sure predictions count more.
///
/// `mean_i w_i · H_i`, `w_i ∝ exp(−H_i)` with mean 1 and detached: ambiguous images pull less while the model is
/// still wrong about them.
///
/// # Shapes
/// As [`entropy`], but returns a scalar.
///
/// # Errors
/// As [`entropy`].
///
/// # Source
/// The weight is that of Long, Cao, Wang, Jordan 2018, arXiv:1705.10667, on entropy conditioning, without
/// their "1 +".
pub fn weighted_entropy(logits: &Tensor) -> Result<Tensor> {
    let entropies = entropy(logits)?;
    weighted_mean(&entropies, &certainty(&entropies)?)
}

/// Entropy of the mean prediction, in nats: log C when every class is used equally, 0 when all images get one class.
///
/// `H(mean_i p_i)`. The mean is taken in the log domain, so a class that vanishes in f32 gives 0 and not NaN.
///
/// # Shapes
/// As [`entropy`], but returns a scalar.
///
/// # Errors
/// As [`entropy`].
pub fn diversity(logits: &Tensor) -> Result<Tensor> {
    matrix_dims("diversity logits", logits)?;
    diversity_of(&log_softmax(logits)?)
}

/// The information-maximisation loss: [`weighted_entropy`] minus [`diversity`].
///
/// `mean_i w_i · H(p_i) − H(mean_i p_i)`.
///
/// # Shapes
/// As [`entropy`], but returns a scalar.
///
/// # Errors
/// As [`entropy`].
///
/// # Source
/// Liang, Hu, Feng 2020 (SHOT), arXiv:2002.08546, the information-maximisation loss. Theirs has all w_i = 1.
pub fn information_maximisation(logits: &Tensor) -> Result<Tensor> {
    matrix_dims("information-maximisation logits", logits)?;
    let log_probs = log_softmax(logits)?;
    let entropies = entropy_of(&log_probs)?;
    Ok((weighted_mean(&entropies, &certainty(&entropies)?)? - diversity_of(&log_probs)?)?)
}

/// `exp(−H)`, detached.
fn certainty(entropies: &Tensor) -> Result<Tensor> {
    Ok(entropies.detach().neg()?.exp()?)
}

/// `Σ w·H / Σ w`, which is the mean of w·H once w has mean 1.
fn weighted_mean(entropies: &Tensor, weights: &Tensor) -> Result<Tensor> {
    Ok(((weights * entropies)?.sum_all()? / weights.sum_all()?)?)
}

fn diversity_of(log_probs: &Tensor) -> Result<Tensor> {
    let batch = log_probs.dim(0)? as f64;
    let log_mean = (log_sum_exp(&log_probs.t()?.contiguous()?)? - batch.ln())?;
    Ok(entropy_of(&log_mean.t()?)?.squeeze(D::Minus1)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::loss::testing::{
        F32_TOLERANCE, F64_TOLERANCE, assert_close, check_against_fixture, check_gradient, check_gradient_of,
        check_nan, gradient, matrix, sample_logits, value, values,
    };

    #[test]
    fn agrees_with_pytorch() {
        check_against_fixture("entropy", |_, logits| entropy(logits));
        check_against_fixture("weighted_entropy", |_, logits| weighted_entropy(logits));
        check_against_fixture("diversity", |_, logits| diversity(logits));
        check_against_fixture("information_maximisation", |_, logits| information_maximisation(logits));
    }

    #[test]
    fn gradients_agree_with_central_differences() -> Result<()> {
        let logits = sample_logits();
        let weights = certainty(&entropy(&logits)?)?;
        let frozen = |x: &Tensor| weighted_mean(&entropy(x)?, &weights);
        check_gradient("entropy", &logits, entropy);
        check_gradient("diversity", &logits, diversity);
        check_gradient_of("weighted", &logits, weighted_entropy, frozen);
        check_gradient_of("total", &logits, information_maximisation, |x| Ok((frozen(x)? - diversity(x)?)?));
        Ok(())
    }

    #[test]
    fn agrees_with_a_hand_computed_case() -> Result<()> {
        // Probabilities (½, ½) and (¼, ¾): the mean is (⅜, ⅝).
        let logits = matrix(&[&[4.0, 4.0], &[0.0, 3f64.ln()]])?;
        let (h1, h2) = (2f64.ln(), 0.25 * 4f64.ln() + 0.75 * (4.0 / 3.0f64).ln());
        assert_close("entropy", &entropy(&logits)?, &Tensor::new(&[h1, h2], &Device::Cpu)?, F64_TOLERANCE);
        let (w1, w2) = ((-h1).exp(), (-h2).exp());
        let weighted = (w1 * h1 + w2 * h2) / (w1 + w2);
        assert_close("weighted", &weighted_entropy(&logits)?, &Tensor::new(weighted, &Device::Cpu)?, F64_TOLERANCE);
        let diverse = -(0.375 * 0.375f64.ln() + 0.625 * 0.625f64.ln());
        assert_close("diversity", &diversity(&logits)?, &Tensor::new(diverse, &Device::Cpu)?, F64_TOLERANCE);
        let total = Tensor::new(weighted - diverse, &Device::Cpu)?;
        assert_close("total", &information_maximisation(&logits)?, &total, F64_TOLERANCE);
        Ok(())
    }

    #[test]
    fn certain_predictions_give_finite_values_and_gradients() -> Result<()> {
        let logits = Tensor::new(&[[500f32, 0.0, -500.0], [400.0, 0.0, -400.0]], &Device::Cpu)?;
        assert!(value(&information_maximisation(&logits)?).abs() < F32_TOLERANCE);
        assert!(values(&gradient(&logits, &information_maximisation)).iter().all(|v| v.is_finite()));
        Ok(())
    }

    #[test]
    fn nan_in_nan_out() {
        check_nan(entropy);
        check_nan(weighted_entropy);
        check_nan(diversity);
        check_nan(information_maximisation);
    }
}
