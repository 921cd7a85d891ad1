//! A running average of an optimiser: plain floats on the fused CPU path, a tensor elsewhere.

use candle_core::{DType, Device, Shape, Tensor, Var};

use super::update::is_fused;
use crate::error::{Error, Result};

/// One moment of one parameter, never part of a tape.
#[derive(Debug)]
pub(super) enum Moment {
    /// For parameters on the fused path, which updates it in place.
    Host(Vec<f32>, Shape),
    /// For all others; replaced at each step.
    Device(Tensor),
}

impl Moment {
    /// A moment of zeros for `param`.
    pub(super) fn zeros(param: &Var) -> Result<Self> {
        if is_fused(param) {
            return Ok(Self::Host(vec![0.0; param.elem_count()], param.shape().clone()));
        }
        Ok(Self::Device(param.as_detached_tensor().zeros_like()?))
    }

    /// The moment of `param` saved under `key`.
    pub(super) fn load(key: &str, param: &Var, saved: &Tensor) -> Result<Self> {
        if param.dims() != saved.dims() {
            return Err(Error::Shape(format!("{key}: expected {:?}, got {:?}", param.dims(), saved.dims())));
        }
        let saved = saved.detach();
        if is_fused(param) {
            let values = saved.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            return Ok(Self::Host(values, saved.shape().clone()));
        }
        // A copy even when nothing converts: the caller may go on to change what it handed in.
        Ok(Self::Device(saved.to_device(param.device())?.to_dtype(param.dtype())?.copy()?))
    }

    /// A tensor that later steps do not change.
    pub(super) fn save(&self) -> Result<Tensor> {
        match self {
            Self::Host(values, shape) => Ok(Tensor::from_slice(values, shape, &Device::Cpu)?),
            Self::Device(tensor) => Ok(tensor.copy()?),
        }
    }
}
