//! Knowledge distillation on softened outputs.

use candle_core::{D, Tensor};

use super::rows::{check_temperature, log_softmax, same_matrix_dims};
use crate::error::Result;

/// Kullback–Leibler divergence of the student's softened output from the teacher's, scaled by T².
///
/// `T² · mean_i KL(softmax(t_i/T) ‖ softmax(s_i/T))`; T² keeps the size of the gradient when T changes.
///
/// # Shapes
/// Both logits `[N, C]`, raw; only `student_logits` receive a gradient, the teacher's are detached. Returns a
/// scalar.
///
/// # Errors
/// [`crate::Error::Shape`] if the shapes differ; [`crate::Error::Config`] for a temperature that is not above 0.
///
/// # Source
/// Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2. Theirs is the cross-entropy with the soft targets; it
/// differs by the teacher's entropy, which has no gradient.
pub fn distillation(student_logits: &Tensor, teacher_logits: &Tensor, temperature: f64) -> Result<Tensor> {
    same_matrix_dims("distillation logits", student_logits, teacher_logits)?;
    check_temperature(temperature)?;
    let student = log_softmax(&(student_logits / temperature)?)?;
    let teacher = log_softmax(&(teacher_logits.detach() / temperature)?)?;
    let divergence = (teacher.exp()? * (teacher - student)?)?.sum(D::Minus1)?.mean_all()?;
    Ok((divergence * (temperature * temperature))?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::loss::testing::{
        F64_TOLERANCE, assert_close, check_against_fixture, check_gradient, check_nan, matrix, sample_logits, value,
    };

    #[test]
    fn agrees_with_pytorch() {
        check_against_fixture("distillation", |given, logits| distillation(logits, &given["other"], 2.5));
    }

    #[test]
    fn gradient_agrees_with_central_differences() -> Result<()> {
        let teacher = sample_logits().affine(-0.5, 0.3)?;
        check_gradient("distillation", &sample_logits(), |x| distillation(x, &teacher, 4.0));
        Ok(())
    }

    #[test]
    fn agrees_with_a_hand_computed_case() -> Result<()> {
        // At T = 2 the teacher is (¾, ¼) and the student (½, ½).
        let teacher = matrix(&[&[2.0 * 3f64.ln(), 0.0]])?;
        let student = matrix(&[&[1.0, 1.0]])?;
        let want = 4.0 * (0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln());
        let got = distillation(&student, &teacher, 2.0)?;
        assert_close("loss", &got, &Tensor::new(want, &Device::Cpu)?, F64_TOLERANCE);
        assert_eq!(value(&distillation(&teacher, &teacher, 2.0)?), 0.0);
        Ok(())
    }

    #[test]
    fn the_teacher_gets_no_gradient() -> Result<()> {
        let student = Var::new(&[[0.3f64, -1.0]], &Device::Cpu)?;
        let teacher = Var::new(&[[0.5f64, 2.0]], &Device::Cpu)?;
        let grads = distillation(&student, &teacher, 2.0)?.backward()?;
        assert!(grads.get(&student).is_some() && grads.get(&teacher).is_none());
        Ok(())
    }

    #[test]
    fn nan_in_nan_out() -> Result<()> {
        let teacher = matrix(&[&[0.0, 1.0, 2.0], &[0.0, 0.0, 0.0]])?;
        check_nan(|logits| distillation(logits, &teacher, 2.0));
        Ok(())
    }
}
