//! Label-free signals the gate compares models by. Nothing here has a gradient.

use candle_core::{DType, Tensor};

use super::rows::{entropy_of, l2_normalise, log_softmax, matrix_dims, same_matrix_dims};
use crate::error::{Error, Result};

/// Softmax temperature of the neighbourhood density (Saito et al. 2021).
const NEIGHBOUR_TEMPERATURE: f64 = 0.05;
/// Rows compared with all others at once: bounds the memory to this many rows of similarities.
const BLOCK_ROWS: usize = 256;
/// Added to the similarity of a row with itself: its probability underflows to 0 and stays finite in the logarithm.
const EXCLUDED: f32 = -1e4;

/// Mutual information between image and predicted class, in nats: 0 after a collapse, at most log C.
///
/// `H(mean_i p_i) − mean_i H(p_i)`.
///
/// # Shapes
/// `probs` `[N, C]`, rows that sum to 1. NaN gives NaN.
///
/// # Errors
/// [`Error::Shape`] if `probs` are no matrix or empty.
pub fn mutual_information(probs: &Tensor) -> Result<f64> {
    let (batch, classes) = matrix_dims("mutual-information probabilities", probs)?;
    let rows: Vec<Vec<f64>> = probs.detach().to_dtype(DType::F64)?.to_vec2()?;
    let mut mean = vec![0.0; classes];
    for row in &rows {
        for (sum, p) in mean.iter_mut().zip(row) {
            *sum += p / batch as f64;
        }
    }
    let mean_entropy = rows.iter().map(|row| shannon(row)).sum::<f64>() / batch as f64;
    Ok(shannon(&mean) - mean_entropy)
}

/// The fraction of images to which two models give the same class. A row with NaN agrees with nothing.
///
/// # Shapes
/// Both logits (or probabilities) `[N, C]`.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ.
pub fn agreement(logits_a: &Tensor, logits_b: &Tensor) -> Result<f64> {
    let (batch, _) = same_matrix_dims("agreement logits", logits_a, logits_b)?;
    let host = |logits: &Tensor| Ok::<Vec<Vec<f32>>, Error>(logits.detach().to_dtype(DType::F32)?.to_vec2()?);
    let (a, b) = (host(logits_a)?, host(logits_b)?);
    let same = a.iter().zip(&b).filter(|(a, b)| matches!((argmax(a), argmax(b)), (Some(a), Some(b)) if a == b));
    Ok(same.count() as f64 / batch as f64)
}

/// How densely images lie among their neighbours, in nats: the mean entropy of each image's softmax over its cosine
/// similarities to all others, at temperature 0.05.
///
/// # Shapes
/// `features` `[N, F]` with N ≥ 2, raw. NaN gives NaN.
///
/// # Errors
/// [`Error::Shape`] if there are fewer than two rows.
///
/// # Source
/// Saito, Kim, Teterwak, Sclaroff, Darrell, Saenko 2021, arXiv:2108.10860. They take the classifier's
/// softmax output as features; any rows will do. Their published code gives the image itself similarity −1; we leave
/// it out altogether.
pub fn soft_neighbourhood_density(features: &Tensor) -> Result<f64> {
    let (count, _) = matrix_dims("neighbourhood features", features)?;
    if count < 2 {
        return Err(Error::Shape("neighbourhood features: expected at least two rows, got one".into()));
    }
    let unit = l2_normalise(&features.detach().to_dtype(DType::F32)?)?;
    let mut total = 0.0;
    for start in (0..count).step_by(BLOCK_ROWS) {
        let rows = BLOCK_ROWS.min(count - start);
        let own: Vec<f32> =
            (0..rows * count).map(|i| if i % count == start + i / count { EXCLUDED } else { 0.0 }).collect();
        let own = Tensor::from_vec(own, (rows, count), unit.device())?;
        let similarity = (unit.narrow(0, start, rows)?.matmul(&unit.t()?)? / NEIGHBOUR_TEMPERATURE)?;
        let entropies = entropy_of(&log_softmax(&(similarity + own)?)?)?;
        total += entropies.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
    }
    Ok(total / count as f64)
}

/// Entropy in nats, with 0·log 0 = 0.
fn shannon(probs: &[f64]) -> f64 {
    probs.iter().map(|&p| if p == 0.0 { 0.0 } else { -p * p.ln() }).sum()
}

/// The first index of the largest value; none if any value is NaN.
fn argmax(row: &[f32]) -> Option<usize> {
    if row.iter().any(|value| value.is_nan()) {
        return None;
    }
    (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]))
}

#[cfg(test)]
mod tests {
    use super::super::rows::softmax;
    use super::*;
    use crate::loss::testing::{F32_TOLERANCE, F64_TOLERANCE, fixture, matrix, value};

    #[test]
    fn agree_with_the_reference() -> Result<()> {
        let given = fixture("loss/loss");
        let near = |got: f64, name: &str| {
            let want = value(&given[name]);
            assert!((got - want).abs() <= F32_TOLERANCE * (1.0 + want.abs()), "{name}: got {got}, want {want}");
        };
        near(mutual_information(&softmax(&given["cluster.logits"])?)?, "cluster.mutual_information");
        near(soft_neighbourhood_density(&given["cluster.features"])?, "cluster.soft_neighbourhood_density");
        Ok(())
    }

    #[test]
    fn mutual_information_is_zero_for_a_collapse_and_log_c_for_a_partition() -> Result<()> {
        let collapsed = matrix(&[&[0.7, 0.3], &[0.7, 0.3], &[0.7, 0.3]])?;
        assert!(mutual_information(&collapsed)?.abs() < F64_TOLERANCE);
        let partition = matrix(&[&[1.0, 0.0], &[0.0, 1.0]])?;
        assert!((mutual_information(&partition)? - 2f64.ln()).abs() < F64_TOLERANCE);
        assert!(mutual_information(&matrix(&[&[f64::NAN, 0.5], &[0.5, 0.5]])?)?.is_nan());
        Ok(())
    }

    #[test]
    fn agreement_counts_equal_classes_and_never_nan() -> Result<()> {
        let a = matrix(&[&[1.0, 0.0], &[0.0, 1.0], &[f64::NAN, 1.0], &[2.0, 2.0]])?;
        let b = matrix(&[&[5.0, 4.0], &[3.0, 1.0], &[f64::NAN, 1.0], &[1.0, 0.0]])?;
        assert_eq!(agreement(&a, &b)?, 0.5);
        assert!(matches!(agreement(&a, &a.narrow(0, 0, 2)?), Err(Error::Shape(_))));
        Ok(())
    }

    #[test]
    fn density_of_a_hand_computed_case() -> Result<()> {
        // Three right angles: all similarities equal, so each row is uniform over its two neighbours.
        let corners = matrix(&[&[2.0, 0.0, 0.0], &[0.0, 0.5, 0.0], &[0.0, 0.0, 1.0]])?;
        assert!((soft_neighbourhood_density(&corners)? - 2f64.ln()).abs() < F32_TOLERANCE);
        // Two pairs far apart: one neighbour each.
        let pairs = matrix(&[&[1.0, 0.0], &[1.0, 0.0], &[-1.0, 0.0], &[-1.0, 0.0]])?;
        assert!(soft_neighbourhood_density(&pairs)?.abs() < F32_TOLERANCE);
        assert!(soft_neighbourhood_density(&matrix(&[&[f64::NAN, 0.0], &[1.0, 0.0]])?)?.is_nan());
        assert!(matches!(soft_neighbourhood_density(&matrix(&[&[1.0]])?), Err(Error::Shape(_))));
        Ok(())
    }

    #[test]
    fn density_does_not_depend_on_the_blocks() -> Result<()> {
        // 300 copies of one row: uniform over 299 neighbours, in two blocks.
        let rows = matrix(&[&[0.3, -0.4]])?.repeat((BLOCK_ROWS + 44, 1))?;
        let want = ((BLOCK_ROWS + 43) as f64).ln();
        let got = soft_neighbourhood_density(&rows)?;
        assert!((got - want).abs() < 1e-4, "got {got}, want {want}");
        Ok(())
    }
}
