//! Labels for unlabelled images and how far to trust them. Nothing here has a gradient.

use candle_core::{D, DType, Tensor};

use super::rows::{l2_normalise, matrix_dims, softmax};
use crate::error::{Error, Result};

/// One label per image from the nearest class centroid, with what the classifier itself thinks of it.
#[derive(Debug, Clone, PartialEq)]
pub struct PseudoLabels {
    /// The class whose centroid is nearest.
    pub labels: Vec<u32>,
    /// Whether the classifier's own argmax is the same class.
    pub agree: Vec<bool>,
    /// The classifier's probability of the label, `p_i(y_i)`.
    pub confidence: Vec<f32>,
}

impl PseudoLabels {
    /// How much each label should count in a cross-entropy, in {0, ½, 1}.
    ///
    /// `c_i = 1[p_i(y_i) > 1/C] · (1 if argmax p_i = y_i else ½)` for `classes` = C: a label the classifier finds less
    /// likely than chance is dropped, one that it only doubts counts half.
    pub fn confidence_weights(&self, classes: usize) -> Vec<f32> {
        let chance = 1.0 / classes as f32;
        let weight = |(&confidence, &agree): (&f32, &bool)| match (confidence > chance, agree) {
            (false, _) => 0.0,
            (true, true) => 1.0,
            (true, false) => 0.5,
        };
        self.confidence.iter().zip(&self.agree).map(weight).collect()
    }
}

/// Labels every image with the class whose soft centroid is nearest by cosine, re-estimated once with hard labels.
///
/// Features are stretched to unit length. The first centroids are the means weighted by the classifier's
/// probabilities, over classes that are the argmax of some image; the second are the means of the images of each
/// label, over labels in use. Ties go to the lower class.
///
/// # Shapes
/// `features` `[N, F]`, the classifier's input, raw; `logits` `[N, C]`, raw; any float dtype, computed in f32. Neither
/// receives a gradient.
///
/// # Errors
/// [`Error::Shape`] if the two disagree in N or are empty; [`Error::Numeric`] for NaN or infinity in either.
///
/// # Source
/// Liang, Hu, Feng 2020 (SHOT), arXiv:2002.08546, self-supervised pseudo-labelling. Their published code appends a
/// constant 1 to the features before normalising; we do not.
pub fn pseudo_labels(features: &Tensor, logits: &Tensor) -> Result<PseudoLabels> {
    let (batch, classes) = matrix_dims("pseudo-label logits", logits)?;
    let (rows, _) = matrix_dims("pseudo-label features", features)?;
    if rows != batch {
        return Err(Error::Shape(format!("pseudo labels: expected features of {batch} images, got {rows}")));
    }
    let unit = l2_normalise(&finite_f32("features", features)?)?;
    let probs = softmax(&finite_f32("logits", logits)?)?;
    let predicted: Vec<u32> = probs.argmax(D::Minus1)?.to_vec1()?;

    let soft = nearest_centroid(&unit, &probs, &predicted)?;
    let assigned = Tensor::from_vec(soft.clone(), batch, unit.device())?;
    let hard = one_hot(&assigned, classes)?;
    let labels = nearest_centroid(&unit, &hard, &soft)?;

    let index = Tensor::from_vec(labels.clone(), (batch, 1), unit.device())?;
    let confidence = probs.gather(&index, 1)?.squeeze(1)?.to_vec1()?;
    let agree = labels.iter().zip(&predicted).map(|(label, argmax)| label == argmax).collect();
    Ok(PseudoLabels { labels, agree, confidence })
}

/// The teacher's argmax labels `[N]` (u32) and their weights `ω_i = (max p_i − 1/C) / (1 − 1/C)` `[N]`.
///
/// The weight is 0 for a uniform prediction and 1 for a certain one; with one class it is 1.
///
/// # Shapes
/// `teacher_logits` `[N, C]`, raw. Both results are detached; the weights have the dtype of the logits.
///
/// # Errors
/// [`Error::Shape`] if `teacher_logits` are no matrix or empty.
///
/// # Source
/// Our reading of the pseudo labels of Feng, Yuan, Wang, Liu 2020 (ADMP), arXiv:2006.04127; the weight is our own.
pub fn teacher_labels(teacher_logits: &Tensor) -> Result<(Tensor, Tensor)> {
    let (_, classes) = matrix_dims("teacher logits", teacher_logits)?;
    let probs = softmax(&teacher_logits.detach())?;
    let labels = probs.argmax(D::Minus1)?;
    if classes == 1 {
        return Ok((labels, probs.squeeze(1)?));
    }
    let chance = 1.0 / classes as f64;
    let scale = 1.0 / (1.0 - chance);
    // Rounding may put the largest probability a hair below chance; a weight must not be negative.
    let weights = probs.max(D::Minus1)?.affine(scale, -chance * scale)?.maximum(0.0)?;
    Ok((labels, weights))
}

/// The class of the centroid with the largest cosine to each unit row, among the classes in `members`.
///
/// A centroid is the mean of the rows weighted by its column of `memberships` `[N, C]`; its length does not matter.
fn nearest_centroid(unit: &Tensor, memberships: &Tensor, members: &[u32]) -> Result<Vec<u32>> {
    let mut excluded = vec![f32::NEG_INFINITY; memberships.dim(1)?];
    for &class in members {
        if let Some(entry) = excluded.get_mut(class as usize) {
            *entry = 0.0;
        }
    }
    let excluded = Tensor::new(excluded, unit.device())?;
    let centroids = l2_normalise(&memberships.t()?.matmul(unit)?)?;
    let cosine = unit.matmul(&centroids.t()?)?.broadcast_add(&excluded)?;
    Ok(cosine.argmax(D::Minus1)?.to_vec1()?)
}

/// The rows of the identity matrix that `labels` name: `[N, classes]` f32.
fn one_hot(labels: &Tensor, classes: usize) -> Result<Tensor> {
    Ok(Tensor::eye(classes, DType::F32, labels.device())?.index_select(labels, 0)?)
}

/// A detached f32 copy without NaN or infinity.
fn finite_f32(what: &str, tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.detach().to_dtype(DType::F32)?;
    // 0·x is NaN exactly where x is not finite.
    let probe: f32 = (&tensor * 0.0)?.sum_all()?.to_scalar()?;
    if probe == 0.0 {
        return Ok(tensor);
    }
    Err(Error::Numeric(format!("pseudo labels: {what} contain NaN or infinity")))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::loss::testing::{F32_TOLERANCE, assert_close, fixture, matrix};

    #[test]
    fn agree_with_the_reference() -> Result<()> {
        let given = fixture("loss/loss");
        let got = pseudo_labels(&given["cluster.features"], &given["cluster.logits"])?;
        let labels: Vec<i64> = given["cluster.labels"].to_vec1()?;
        assert_eq!(got.labels.iter().map(|&l| i64::from(l)).collect::<Vec<_>>(), labels);
        let agree: Vec<u8> = given["cluster.agree"].to_vec1()?;
        assert_eq!(got.agree.iter().map(|&a| u8::from(a)).collect::<Vec<_>>(), agree);
        let weights = Tensor::new(got.confidence_weights(4), &Device::Cpu)?;
        assert_close("weights", &weights, &given["cluster.weights"], 0.0);
        let confidence = Tensor::new(got.confidence, &Device::Cpu)?;
        assert_close("confidence", &confidence, &given["cluster.confidence"], F32_TOLERANCE);
        Ok(())
    }

    #[test]
    fn a_wrong_argmax_is_corrected_by_its_neighbours() -> Result<()> {
        // Two directions; the last image lies with the second but is called class 0, and nobody is ever class 2.
        let features = matrix(&[&[1.0, 0.1], &[5.0, 0.0], &[0.1, 1.0], &[0.0, 3.0], &[0.2, 2.0]])?;
        let logits =
            matrix(&[&[4.0, 0.0, 0.0], &[4.0, 0.0, 0.0], &[0.0, 4.0, 0.0], &[0.0, 4.0, 0.0], &[1.0, 0.8, 0.9]])?;
        let got = pseudo_labels(&features, &logits)?;
        assert_eq!(got.labels, [0, 0, 1, 1, 1]);
        assert_eq!(got.agree, [true, true, true, true, false]);
        // Class 1 has probability 0.30 in the last row, below chance.
        assert_eq!(got.confidence_weights(3), [1.0, 1.0, 1.0, 1.0, 0.0]);
        Ok(())
    }

    #[test]
    fn confidence_weights_halve_doubted_labels() {
        let labels =
            PseudoLabels { labels: vec![0; 3], agree: vec![true, false, false], confidence: vec![0.9, 0.4, 0.25] };
        assert_eq!(labels.confidence_weights(4), [1.0, 0.5, 0.0]);
    }

    #[test]
    fn teacher_weights_run_from_chance_to_certainty() -> Result<()> {
        let logits = matrix(&[&[0.0, 0.0], &[0.0, 3f64.ln()], &[900.0, 0.0]])?;
        let (labels, weights) = teacher_labels(&logits)?;
        assert_eq!(labels.to_vec1::<u32>()?, [0, 1, 0]);
        assert_close("weights", &weights, &Tensor::new(&[0f64, 0.5, 1.0], &Device::Cpu)?, F32_TOLERANCE);
        let given = fixture("loss/loss");
        let (_, weights) = teacher_labels(&given["cluster.logits"])?;
        assert_close("fixture", &weights, &given["cluster.normalised_confidence"], F32_TOLERANCE);
        let (labels, weights) = teacher_labels(&matrix(&[&[0.3]])?)?;
        assert_eq!((labels.to_vec1::<u32>()?, weights.to_vec1::<f64>()?), (vec![0], vec![1.0]));
        Ok(())
    }

    #[test]
    fn unusable_inputs_are_refused() -> Result<()> {
        let (two, one) = (matrix(&[&[1.0, 0.0], &[0.0, 1.0]])?, matrix(&[&[1.0, 0.0]])?);
        assert!(matches!(pseudo_labels(&one, &two), Err(Error::Shape(_))));
        for bad in [f64::NAN, f64::INFINITY] {
            let bad = matrix(&[&[1.0, bad], &[0.0, 1.0]])?;
            assert!(matches!(pseudo_labels(&bad, &two), Err(Error::Numeric(_))));
            assert!(matches!(pseudo_labels(&two, &bad), Err(Error::Numeric(_))));
        }
        Ok(())
    }
}
