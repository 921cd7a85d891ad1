//! What the losses share: shape checks, and softmax and normalisation along the rows of a matrix.

use candle_core::{D, Tensor};

use crate::error::{Error, Result};

/// Rows shorter than this are not stretched to unit length: they stay near zero.
const SMALLEST_NORM: f64 = 1e-12;

/// The two sizes of a matrix that is not empty; `what` names it in the error.
pub(super) fn matrix_dims(what: &str, matrix: &Tensor) -> Result<(usize, usize)> {
    match matrix.dims() {
        &[rows, columns] if rows > 0 && columns > 0 => Ok((rows, columns)),
        dims => Err(Error::Shape(format!("{what}: expected [N, C] with N and C above 0, got {dims:?}"))),
    }
}

/// Checks that two matrices of logits have one shape, and returns it.
pub(super) fn same_matrix_dims(what: &str, a: &Tensor, b: &Tensor) -> Result<(usize, usize)> {
    let dims = matrix_dims(what, a)?;
    if a.dims() == b.dims() {
        return Ok(dims);
    }
    Err(Error::Shape(format!("{what}: expected two tensors of one shape, got {:?} and {:?}", a.dims(), b.dims())))
}

/// Checks that `vector` has shape `[rows]`.
pub(super) fn check_vector(what: &str, vector: &Tensor, rows: usize) -> Result<()> {
    if vector.dims() == [rows] {
        return Ok(());
    }
    Err(Error::Shape(format!("{what}: expected [{rows}], got {:?}", vector.dims())))
}

/// Checks that a softmax temperature is finite and above 0.
pub(super) fn check_temperature(temperature: f64) -> Result<()> {
    if temperature.is_finite() && temperature > 0.0 {
        return Ok(());
    }
    Err(Error::Config(format!("temperature: expected a finite number above 0, got {temperature}")))
}

/// `log Σ_c exp(x_c)` of each row, `[N, C]` to `[N, 1]`.
///
/// The maximum is only a shift that cancels, so it is detached: its gradient is zero in exact arithmetic.
pub(super) fn log_sum_exp(rows: &Tensor) -> Result<Tensor> {
    let max = rows.max_keepdim(D::Minus1)?.detach();
    let sum = rows.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?;
    Ok((sum.log()? + max)?)
}

/// `log softmax` of each row. Finite for finite logits, so `p·log p` of a vanishing p is 0 and not NaN.
pub(super) fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}

/// Softmax of each row.
pub(super) fn softmax(logits: &Tensor) -> Result<Tensor> {
    Ok(log_softmax(logits)?.exp()?)
}

/// Entropy in nats of each row of log-probabilities, `[N, C]` to `[N]`.
pub(super) fn entropy_of(log_probs: &Tensor) -> Result<Tensor> {
    Ok((log_probs.exp()? * log_probs)?.sum(D::Minus1)?.neg()?)
}

/// Each row divided by its Euclidean length.
pub(super) fn l2_normalise(rows: &Tensor) -> Result<Tensor> {
    let norm = rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(SMALLEST_NORM)?;
    Ok(rows.broadcast_div(&norm)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::loss::testing::{F64_TOLERANCE, assert_close, matrix};

    #[test]
    fn log_softmax_survives_large_logits() -> Result<()> {
        let logits = Tensor::new(&[[1e4f32, 0.0, -1e4]], &Device::Cpu)?;
        let expected = Tensor::new(&[[0f32, -1e4, -2e4]], &Device::Cpu)?;
        assert_close("log_softmax", &log_softmax(&logits)?, &expected, F64_TOLERANCE);
        assert_close("entropy", &entropy_of(&log_softmax(&logits)?)?, &Tensor::new(&[0f32], &Device::Cpu)?, 0.0);
        Ok(())
    }

    #[test]
    fn log_sum_exp_adds_the_shift_back() -> Result<()> {
        let rows = matrix(&[&[1000.0, 1000.0], &[0.0, 3f64.ln()]])?;
        let expected = matrix(&[&[1000.0 + 2f64.ln()], &[4f64.ln()]])?;
        assert_close("log_sum_exp", &log_sum_exp(&rows)?, &expected, F64_TOLERANCE);
        Ok(())
    }

    #[test]
    fn l2_normalise_leaves_zero_rows_zero() -> Result<()> {
        let unit = l2_normalise(&matrix(&[&[3.0, -4.0], &[0.0, 0.0]])?)?;
        assert_close("unit", &unit, &matrix(&[&[0.6, -0.8], &[0.0, 0.0]])?, F64_TOLERANCE);
        Ok(())
    }

    #[test]
    fn wrong_shapes_are_refused() -> Result<()> {
        let (a, b) = (matrix(&[&[1.0, 2.0]])?, matrix(&[&[1.0], &[2.0]])?);
        assert!(matches!(matrix_dims("logits", &a.flatten_all()?), Err(Error::Shape(_))));
        assert!(matches!(matrix_dims("logits", &a.narrow(0, 0, 0)?), Err(Error::Shape(_))));
        assert!(matches!(same_matrix_dims("logits", &a, &b), Err(Error::Shape(_))));
        assert!(matches!(check_vector("labels", &a, 1), Err(Error::Shape(_))));
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(check_temperature(bad), Err(Error::Config(_))));
        }
        Ok(())
    }
}
