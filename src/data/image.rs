//! The decoded image every source delivers: 8-bit pixels, grey or RGB.

use std::borrow::Cow;
use std::path::Path;

use crate::error::{Error, Result};

/// An image of 8-bit pixels in rows, grey (one channel) or RGB (three, interleaved).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    channels: usize,
    pixels: Vec<u8>,
}

impl Image {
    /// An image from its pixels; `name` is what an error calls it.
    ///
    /// # Shapes
    /// `size` is `[height, width, channels]` and `pixels` holds as many bytes, height outermost.
    ///
    /// # Errors
    /// [`Error::Data`] if a side is zero, the channels are not 1 or 3, or the length does not fit.
    pub fn new(name: impl AsRef<Path>, size: [usize; 3], pixels: Vec<u8>) -> Result<Self> {
        let [height, width, channels] = size;
        if height == 0 || width == 0 || !matches!(channels, 1 | 3) {
            let reason = format!("expected at least one pixel and 1 or 3 channels, got {height}x{width}x{channels}");
            return Err(Error::data(name, reason));
        }
        if height.checked_mul(width).and_then(|n| n.checked_mul(channels)) != Some(pixels.len()) {
            let reason = format!("{height}x{width}x{channels} pixels do not fit in {} bytes", pixels.len());
            return Err(Error::data(name, reason));
        }
        Ok(Self { width, height, channels, pixels })
    }

    /// Columns; at least one.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows; at least one.
    pub fn height(&self) -> usize {
        self.height
    }

    /// 1 for grey, 3 for RGB.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The pixels, row by row, channels innermost.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// An image of this size with other pixels, as many as this has.
    pub(super) fn with_pixels(&self, pixels: Vec<u8>) -> Self {
        debug_assert_eq!(pixels.len(), self.pixels.len());
        Self { pixels, ..*self }
    }

    /// One row of pixels.
    ///
    /// # Panics
    /// If `y` is not below the height.
    pub(super) fn row(&self, y: usize) -> &[u8] {
        let stride = self.width * self.channels;
        &self.pixels[y * stride..(y + 1) * stride]
    }

    /// This image with one channel: itself if it is grey, else its luma.
    ///
    /// # Source
    /// ITU-R BT.601 weights in 16-bit fixed point, as Pillow's conversion to mode "L" has them.
    pub fn to_grey(&self) -> Cow<'_, Self> {
        if self.channels == 1 {
            return Cow::Borrowed(self);
        }
        let luma = |p: &[u8; 3]| {
            let [r, g, b] = p.map(u32::from);
            ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8
        };
        let pixels = self.pixels.as_chunks::<3>().0.iter().map(luma).collect();
        Cow::Owned(Self { width: self.width, height: self.height, channels: 1, pixels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        assert!(Image::new("a", [1, 1, 1], vec![0]).is_ok());
        for (size, len) in [([0, 1, 1], 0), ([1, 1, 2], 2), ([2, 2, 3], 11), ([usize::MAX, 2, 1], 2)] {
            let error = Image::new("a", size, vec![0; len]).unwrap_err();
            assert!(matches!(error, Error::Data { .. }), "{error}");
        }
    }

    #[test]
    fn luma_weights_sum_to_one_and_order_green_red_blue() {
        let rgb = Image::new("a", [1, 4, 3], vec![255, 255, 255, 255, 0, 0, 0, 255, 0, 0, 0, 255]).unwrap();
        assert_eq!(rgb.to_grey().pixels(), [255, 76, 150, 29]);
    }
}
