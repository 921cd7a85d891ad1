//! The distance between two classifiers' outputs.

use candle_core::{D, Tensor};

use super::rows::{same_matrix_dims, softmax};
use crate::error::Result;

/// The L1 distance of two outputs as probabilities, between 0 and 2.
///
/// `mean_i Σ_c |softmax(p_i)_c − softmax(q_i)_c|`.
///
/// # Shapes
/// Both logits `[N, C]`, raw; both receive a gradient: detach the side that must not move. Returns a scalar.
///
/// # Errors
/// [`crate::Error::Shape`] if the shapes differ.
///
/// # Source
/// Saito, Watanabe, Ushiku, Harada 2018, arXiv:1712.02560, the discrepancy loss. The paper divides by the number of
/// classes; we sum over them, so the size does not depend on it.
pub fn discrepancy(p_logits: &Tensor, q_logits: &Tensor) -> Result<Tensor> {
    same_matrix_dims("discrepancy logits", p_logits, q_logits)?;
    Ok((softmax(p_logits)? - softmax(q_logits)?)?.abs()?.sum(D::Minus1)?.mean_all()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::loss::testing::{
        F64_TOLERANCE, assert_close, check_against_fixture, check_gradient, check_nan, gradient, matrix, value,
    };

    #[test]
    fn agrees_with_pytorch() {
        check_against_fixture("discrepancy", |given, logits| discrepancy(logits, &given["other"]));
    }

    #[test]
    fn both_sides_receive_a_gradient() -> Result<()> {
        let p = matrix(&[&[0.2, 1.0, -0.7], &[2.0, 0.0, 0.5]])?;
        let q = matrix(&[&[1.2, -0.3, 0.1], &[0.4, 0.9, -1.0]])?;
        check_gradient("p", &p, |p| discrepancy(p, &q));
        check_gradient("q", &q, |q| discrepancy(&p, q));
        Ok(())
    }

    #[test]
    fn agrees_with_a_hand_computed_case() -> Result<()> {
        // (¼, ¾) against (½, ½) in the first row, opposite certainties in the second.
        let p = matrix(&[&[0.0, 3f64.ln()], &[900.0, 0.0]])?;
        let q = matrix(&[&[0.0, 0.0], &[0.0, 900.0]])?;
        let want = Tensor::new((0.5 + 2.0) / 2.0, &Device::Cpu)?;
        assert_close("loss", &discrepancy(&p, &q)?, &want, F64_TOLERANCE);
        Ok(())
    }

    #[test]
    fn equal_outputs_have_no_distance_and_no_gradient() -> Result<()> {
        let p = matrix(&[&[0.2, 1.0, -0.7]])?;
        assert_eq!(value(&discrepancy(&p, &p.copy()?)?), 0.0);
        let slope = gradient(&p, &|x: &Tensor| discrepancy(x, &p));
        assert_close("gradient", &slope, &p.zeros_like()?, F64_TOLERANCE);
        Ok(())
    }

    #[test]
    fn nan_in_nan_out() -> Result<()> {
        let q = matrix(&[&[0.0, 1.0, 2.0], &[0.0, 0.0, 0.0]])?;
        check_nan(|logits| discrepancy(logits, &q));
        Ok(())
    }
}
