//! The two implementations and their memory layouts.

use candle_core::{Device, Tensor};

use super::reshape::channels_last;
use crate::error::{Error, Result};

/// Which implementation, and with it which memory layout of activations, a network runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// CPU kernels; activations are channels-last, `[N, H, W, C]`.
    Kernels,
    /// Plain candle operations on any device; activations are `[N, C, H, W]`.
    TensorOps,
}

/// Batch, channels, height and width of an activation, whatever its layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dims {
    pub batch: usize,
    pub channels: usize,
    pub size: [usize; 2],
}

impl Backend {
    /// The backend for tensors on `device`.
    pub fn for_device(device: &Device) -> Self {
        if device.is_cpu() { Self::Kernels } else { Self::TensorOps }
    }

    /// Brings an image batch into this backend's layout.
    ///
    /// # Shapes
    /// `x` `[N, C, H, W]`.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has rank 4.
    pub fn from_nchw(self, x: &Tensor) -> Result<Tensor> {
        rank4("from_nchw", x)?;
        Ok(match self {
            Self::Kernels if x.track_op() => x.permute((0, 2, 3, 1))?.contiguous()?,
            Self::Kernels => channels_last(x)?,
            Self::TensorOps => x.contiguous()?,
        })
    }

    /// Brings an activation of this backend into `[N, C, H, W]`.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has rank 4.
    pub fn to_nchw(self, x: &Tensor) -> Result<Tensor> {
        rank4("to_nchw", x)?;
        Ok(match self {
            Self::Kernels => x.permute((0, 3, 1, 2))?.contiguous()?,
            Self::TensorOps => x.contiguous()?,
        })
    }

    /// The dimension that holds channels: 3 or 1.
    pub const fn channel_dim(self) -> usize {
        match self {
            Self::Kernels => 3,
            Self::TensorOps => 1,
        }
    }

    /// The dimension that holds rows; columns are the next one.
    pub(super) const fn height_dim(self) -> usize {
        match self {
            Self::Kernels => 1,
            Self::TensorOps => 2,
        }
    }

    /// Sizes of an activation of this backend.
    pub(super) fn dims(self, op: &str, x: &Tensor) -> Result<Dims> {
        let [batch, a, b, c] = rank4(op, x)?;
        Ok(match self {
            Self::Kernels => Dims { batch, channels: c, size: [a, b] },
            Self::TensorOps => Dims { batch, channels: a, size: [b, c] },
        })
    }

    /// The shape of an activation of this backend.
    pub(super) fn shape(self, dims: Dims) -> [usize; 4] {
        let Dims { batch, channels, size: [h, w] } = dims;
        match self {
            Self::Kernels => [batch, h, w, channels],
            Self::TensorOps => [batch, channels, h, w],
        }
    }

    /// The shape that broadcasts one value per channel over an activation.
    pub(super) fn per_channel(self, channels: usize) -> [usize; 4] {
        self.shape(Dims { batch: 1, channels, size: [1, 1] })
    }
}

/// The four dimensions of `x`, or an error that names `op`.
fn rank4(op: &str, x: &Tensor) -> Result<[usize; 4]> {
    match *x.dims() {
        [a, b, c, d] if a * b * c * d > 0 => Ok([a, b, c, d]),
        _ => Err(Error::Shape(format!("{op}: expected four dimensions and no empty one, got {:?}", x.dims()))),
    }
}

/// Checks that `x` has exactly the shape `expected`; `what` names the argument.
pub(super) fn expect_shape(op: &str, what: &str, x: &Tensor, expected: &[usize]) -> Result<()> {
    if x.dims() == expected {
        return Ok(());
    }
    Err(Error::Shape(format!("{op}: expected {what} of shape {expected:?}, got {:?}", x.dims())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_go_there_and_back() {
        let x = Tensor::arange(0f32, 2. * 3. * 4. * 5., &Device::Cpu).unwrap().reshape((2, 3, 4, 5)).unwrap();
        for (backend, dims) in [(Backend::Kernels, [2, 4, 5, 3]), (Backend::TensorOps, [2, 3, 4, 5])] {
            let y = backend.from_nchw(&x).unwrap();
            assert_eq!(y.dims(), dims);
            assert_eq!(y.dim(backend.channel_dim()).unwrap(), 3);
            let back = backend.to_nchw(&y).unwrap();
            assert_eq!(
                back.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
                x.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            );
        }
        assert_eq!(Backend::for_device(&Device::Cpu), Backend::Kernels);
    }

    #[test]
    fn wrong_ranks_are_named() {
        let x = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        let message = Backend::Kernels.dims("conv2d", &x).unwrap_err().to_string();
        assert!(message.contains("conv2d") && message.contains("[2, 3]"), "{message}");
    }
}
