//! Gradient clipping by the norm of all gradients together.

use candle_core::{CpuStorage, DType, Storage, Tensor};
use rayon::prelude::*;

use super::Grads;
use crate::error::Result;

/// Keeps the quotient finite for a zero norm; PyTorch's value.
const EPSILON: f64 = 1e-6;
/// Elements per partial sum.
const CHUNK: usize = 1 << 15;
/// Partial sums kept side by side, so that one addition need not wait for the last.
const LANES: usize = 8;

/// Scales all gradients by one factor so that their joint Euclidean norm is at most `max_norm`; returns the norm
/// before.
///
/// The factor is `max_norm / (norm + 1e-6)` if that is below 1. A norm of NaN or infinity leaves the gradients as they
/// are: check it and roll back.
///
/// # Errors
/// [`crate::Error::Tensor`] if a gradient cannot be read.
///
/// # Source
/// `torch.nn.utils.clip_grad_norm_`; there a norm that is not finite spoils every gradient.
pub fn clip_grad_norm(grads: &mut Grads, max_norm: f64) -> Result<f64> {
    let mut sum = 0.0;
    for grad in grads.values() {
        sum += sum_of_squares(grad)?;
    }
    let norm = sum.sqrt();
    let factor = max_norm / (norm + EPSILON);
    if norm.is_finite() && factor < 1.0 {
        for grad in grads.values_mut() {
            // A new tensor: two parameters may share one gradient's storage.
            *grad = (grad.detach() * factor)?;
        }
    }
    Ok(norm)
}

fn sum_of_squares(grad: &Tensor) -> Result<f64> {
    {
        let (storage, layout) = grad.storage_and_layout();
        if let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) = (&*storage, layout.contiguous_offsets())
            && let Some(values) = values.get(start..end)
        {
            return Ok(sum_of_squares_f32(values));
        }
    }
    Ok(grad.detach().to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar()?)
}

/// In f64, over pieces that do not depend on the number of threads.
fn sum_of_squares_f32(values: &[f32]) -> f64 {
    let piece = |values: &[f32]| {
        let mut lanes = [0f64; LANES];
        for block in values.chunks(LANES) {
            for (lane, &value) in lanes.iter_mut().zip(block) {
                *lane += f64::from(value) * f64::from(value);
            }
        }
        lanes.iter().sum::<f64>()
    };
    if values.len() <= CHUNK {
        return piece(values);
    }
    let sums: Vec<f64> = values.par_chunks(CHUNK).map(piece).collect();
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::loss::testing::{F32_TOLERANCE, F64_TOLERANCE, assert_close, fixture};

    #[test]
    fn agrees_with_pytorch() -> Result<()> {
        let given = fixture("optim/optim");
        for (dtype, tolerance) in [(DType::F64, F64_TOLERANCE), (DType::F32, F32_TOLERANCE)] {
            let mut grads = Grads::new();
            for name in ["weight", "bias"] {
                grads.insert(name.into(), given[&format!("grad.{name}")].get(0)?.to_dtype(dtype)?);
            }
            let norm = clip_grad_norm(&mut grads, 1.5)?;
            assert_close("norm", &Tensor::new(norm, &Device::Cpu)?, &given["clip.norm"], tolerance);
            for (name, grad) in &grads {
                assert_close(name, grad, &given[&format!("clip.{name}")], tolerance);
            }
        }
        Ok(())
    }

    #[test]
    fn small_and_broken_gradients_stay_as_they_are() -> Result<()> {
        let mut grads = Grads::from([("a".into(), Tensor::new(&[3f32, 4.0], &Device::Cpu)?)]);
        assert_eq!(clip_grad_norm(&mut grads, 10.0)?, 5.0);
        assert_eq!(grads["a"].to_vec1::<f32>()?, [3.0, 4.0]);
        grads.insert("b".into(), Tensor::new(&[f32::NAN], &Device::Cpu)?);
        assert!(clip_grad_norm(&mut grads, 1.0)?.is_nan());
        assert_eq!(grads["a"].to_vec1::<f32>()?, [3.0, 4.0]);
        Ok(())
    }

    #[test]
    fn long_and_strided_gradients_are_summed_whole() -> Result<()> {
        let long = Tensor::full(2f32, 2 * CHUNK + 3, &Device::Cpu)?;
        assert_eq!(sum_of_squares(&long)?, 4.0 * (2 * CHUNK + 3) as f64);
        let strided = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu)?.t()?.narrow(0, 1, 1)?;
        assert_eq!(sum_of_squares(&strided)?, 20.0);
        let spread = Tensor::new(3f32, &Device::Cpu)?.broadcast_as((2, 5))?;
        assert_eq!(sum_of_squares(&spread)?, 90.0);
        Ok(())
    }
}
