//! What the loaders deliver.

use candle_core::{Device, Tensor};

use crate::error::Result;

/// Images ready for a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Normalised values, row-major in `shape`.
    pub images: Vec<f32>,
    /// Images, channels, height, width.
    pub shape: [usize; 4],
    /// For each image, its index in the source.
    pub indices: Vec<usize>,
}

impl Batch {
    /// The images as a tensor on `device`.
    ///
    /// # Shapes
    /// f32 `[N, C, H, W]`, normalised.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the device cannot hold it.
    pub fn to_tensor(&self, device: &Device) -> Result<Tensor> {
        let [n, c, h, w] = self.shape;
        Ok(Tensor::from_slice(&self.images, (n, c, h, w), device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tensor_has_the_values_in_order() {
        let images: Vec<f32> = (0..12u8).map(f32::from).collect();
        let batch = Batch { images: images.clone(), shape: [2, 1, 2, 3], indices: vec![4, 7] };
        let tensor = batch.to_tensor(&Device::Cpu).unwrap();
        assert_eq!(tensor.dims(), [2, 1, 2, 3]);
        assert_eq!(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(), images);
    }
}
