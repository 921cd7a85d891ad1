//! What a model's preprocessing asks for: size, statistics, interpolation.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::image::Image;
use super::resample::{Rect, Resize, resize};
use crate::error::{Error, Result};

/// The largest height or width a model may ask for.
const MAX_SIDE: usize = 4096;
/// The smallest centre crop: with it, sides of resized images fit 32 bits.
const MIN_CROP_PCT: f32 = 0.1;

/// How pixels between pixels are computed; both widen with the reduction (antialiasing).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Triangle filter.
    #[default]
    Bilinear,
    /// Catmull–Rom filter (a = -0.5).
    Bicubic,
}

/// How a model wants its input, in the fields of timm's `pretrained_cfg`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// Input height in pixels.
    pub height: usize,
    /// Input width in pixels.
    pub width: usize,
    /// Per channel, subtracted from pixels in 0..1.
    pub mean: Vec<f32>,
    /// Per channel, divides what is left.
    pub std: Vec<f32>,
    /// The fraction of the resized image's sides that the centre crop keeps.
    pub crop_pct: f32,
    /// The filter for resizing.
    pub interpolation: Interpolation,
}

impl Default for Preprocess {
    /// ImageNet's usual: RGB 224 × 224 of a shorter side of 256, bilinear, ImageNet mean and deviation.
    fn default() -> Self {
        Self {
            channels: 3,
            height: 224,
            width: 224,
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
            crop_pct: 0.875,
            interpolation: Interpolation::Bilinear,
        }
    }
}

impl Preprocess {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn validate(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Config(format!("preprocessing: {what}")));
        if !matches!(self.channels, 1 | 3) {
            return refuse(format!("expected 1 or 3 channels, got {}", self.channels));
        }
        for (name, side) in [("height", self.height), ("width", self.width)] {
            if !(1..=MAX_SIDE).contains(&side) {
                return refuse(format!("expected {name} within 1..={MAX_SIDE}, got {side}"));
            }
        }
        for (name, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != self.channels || values.iter().any(|v| !v.is_finite()) {
                return refuse(format!("expected {} finite values for {name}, got {values:?}", self.channels));
            }
        }
        if self.std.iter().any(|&std| std <= 0.0) {
            return refuse(format!("expected std above 0, got {:?}", self.std));
        }
        if !(self.crop_pct >= MIN_CROP_PCT && self.crop_pct <= 1.0) {
            return refuse(format!("expected crop_pct within {MIN_CROP_PCT}..=1, got {}", self.crop_pct));
        }
        Ok(())
    }

    /// The input of a model for `image`: resized so that it just covers the size divided by `crop_pct`, the
    /// centre cut out, normalised. An image that has the wanted size already is only normalised.
    ///
    /// # Shapes
    /// `[channels, height, width]`, row-major, `(pixel / 255 - mean) / std`.
    ///
    /// # Panics
    /// May panic if [`validate`](Self::validate) refuses `self`.
    pub fn eval(&self, image: &Image) -> Vec<f32> {
        let image = self.with_channels(image);
        let view = resize(&image, &self.fit(&image));
        let (rows, columns): (Vec<_>, Vec<_>) = ((0..view.height()).collect(), (0..view.width()).collect());
        self.normalise(&view, [&rows, &columns], |value| value)
    }

    /// `image`, made grey if the model wants one channel. Grey stays grey: it is spread over the channels last.
    pub(super) fn with_channels<'a>(&self, image: &'a Image) -> Cow<'a, Image> {
        if self.channels == 1 { image.to_grey() } else { Cow::Borrowed(image) }
    }

    /// Resize and centre crop, or nothing at all for an image of the wanted size.
    ///
    /// # Source
    /// torchvision `Resize` (the longer side is cut to an integer) and `CenterCrop` (halves to even), with timm's
    /// scale `floor(size / crop_pct)`. Where height and width differ, the resized image covers both.
    pub(super) fn fit(&self, image: &Image) -> Resize {
        let (w, h) = (image.width(), image.height());
        let from = Rect::whole(w, h);
        if (w, h) == (self.width, self.height) {
            return Resize { from, width: w, height: h, window: from, interpolation: self.interpolation };
        }
        let (cover_w, cover_h) = (scaled(self.width, self.crop_pct), scaled(self.height, self.crop_pct));
        let (width, height) = if w * cover_h <= h * cover_w {
            (cover_w, (cover_w * h / w).max(cover_h))
        } else {
            ((cover_h * w / h).max(cover_w), cover_h)
        };
        let (x, y) = (centre(width - self.width), centre(height - self.height));
        let window = Rect { x, y, width: self.width, height: self.height };
        Resize { from, width, height, window, interpolation: self.interpolation }
    }

    /// Normalised planes of the pixels at `rows` × `columns` of `image`, after `tone` has mapped values in 0..1.
    pub(super) fn normalise(
        &self,
        image: &Image,
        [rows, columns]: [&[usize]; 2],
        tone: impl Fn(f32) -> f32,
    ) -> Vec<f32> {
        let step = image.channels();
        let mut out = Vec::with_capacity(self.channels * rows.len() * columns.len());
        for (channel, (mean, std)) in self.mean.iter().zip(&self.std).enumerate() {
            // There are only 256 values: the arithmetic is done once for each.
            let table: [f32; 256] = std::array::from_fn(|value| (tone(value as f32 / 255.0) - mean) / std);
            let offset = if step == 1 { 0 } else { channel };
            for &y in rows {
                let row = image.row(y);
                out.extend(columns.iter().map(|&x| table[usize::from(row[x * step + offset])]));
            }
        }
        out
    }
}

/// `floor(side / crop_pct)`, taking the fraction for the decimal number that was meant: 0.8 as f32 lies above 0.8.
fn scaled(side: usize, crop_pct: f32) -> usize {
    let meant = (f64::from(crop_pct) * 1e6).round() / 1e6;
    ((side as f64 / meant).floor() as usize).max(side)
}

/// Half of `space`, halves to even.
fn centre(space: usize) -> usize {
    (space as f64 / 2.0).round_ties_even() as usize
}

#[cfg(test)]
mod tests {
    use super::super::testing::gradient;
    use super::*;

    fn plain(channels: usize, height: usize, width: usize) -> Preprocess {
        let (mean, std) = (vec![0.0; channels], vec![1.0; channels]);
        Preprocess { channels, height, width, mean, std, crop_pct: 1.0, interpolation: Interpolation::Bilinear }
    }

    #[test]
    fn a_constant_image_gives_the_normalised_constant() {
        let image = Image::new("c", [300, 400, 3], [51, 102, 204].repeat(300 * 400)).unwrap();
        let out = Preprocess::default().eval(&image);
        assert_eq!(out.len(), 3 * 224 * 224);
        for (plane, expected) in
            out.chunks(224 * 224).zip([(0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (0.8 - 0.406) / 0.225f32])
        {
            assert!(plane.iter().all(|v| (v - expected).abs() < 1e-6), "{} {expected}", plane[0]);
        }
    }

    #[test]
    fn the_centre_of_a_ramp_is_cut_out() {
        // 1 x 8 to a height of 1 keeps the size; the middle four columns stay: 20, 30, 40, 50.
        let ramp = Image::new("ramp", [1, 8, 1], (0..8).map(|x| x * 10).collect()).unwrap();
        let out = plain(1, 1, 4).eval(&ramp);
        assert_eq!(out, [20.0, 30.0, 40.0, 50.0].map(|v: f32| v / 255.0));
    }

    #[test]
    fn the_wanted_size_is_not_resampled() {
        let image = gradient(10, 6, 1);
        let preprocess = Preprocess { crop_pct: 0.5, ..plain(1, 6, 10) };
        let expected: Vec<f32> = image.pixels().iter().map(|&v| f32::from(v) / 255.0).collect();
        assert_eq!(preprocess.eval(&image), expected);
    }

    #[test]
    fn grey_and_rgb_models_take_both_kinds_of_image() {
        let (grey, rgb) = (gradient(9, 9, 1), gradient(9, 9, 3));
        let spread = plain(3, 4, 4).eval(&grey);
        assert_eq!((&spread[..16], &spread[16..32]), (&spread[16..32], &spread[32..]));
        assert_eq!(spread[..16], plain(1, 4, 4).eval(&grey));
        assert_eq!(plain(1, 4, 4).eval(&rgb), plain(1, 4, 4).eval(&rgb.to_grey()));
    }

    #[test]
    fn geometry_follows_torchvision_and_timm() {
        let fit = |crop_pct: f32, width: usize, height: usize| {
            let job = Preprocess { crop_pct, ..Preprocess::default() }.fit(&gradient(width, height, 1));
            (job.width, job.height, job.window.x, job.window.y)
        };
        // Resize(256) of 640 x 480: 341 (341.33 cut) x 256; (341 - 224) / 2 = 58.5 rounds to 58.
        assert_eq!(fit(0.875, 640, 480), (341, 256, 58, 16));
        assert_eq!(fit(0.875, 480, 640), (256, 341, 16, 58));
        assert_eq!(fit(0.8, 256, 256), (280, 280, 28, 28));
        assert_eq!(fit(1.0, 1, 1000), (224, 224_000, 0, 111_888));
        let wide = Preprocess { height: 100, width: 200, crop_pct: 1.0, ..Preprocess::default() };
        let job = wide.fit(&gradient(300, 300, 1));
        assert_eq!((job.width, job.height, job.window.x, job.window.y), (200, 200, 0, 50));
    }

    #[test]
    fn every_field_is_validated() {
        let good = Preprocess::default();
        good.validate().unwrap();
        let wrong = [
            Preprocess { channels: 2, ..good.clone() },
            Preprocess { height: 0, ..good.clone() },
            Preprocess { width: MAX_SIDE + 1, ..good.clone() },
            Preprocess { mean: vec![0.5], ..good.clone() },
            Preprocess { mean: vec![0.5, f32::NAN, 0.5], ..good.clone() },
            Preprocess { std: vec![1.0, 1.0, 0.0], ..good.clone() },
            Preprocess { crop_pct: 0.0, ..good.clone() },
            Preprocess { crop_pct: f32::NAN, ..good.clone() },
        ];
        for preprocess in wrong {
            assert!(matches!(preprocess.validate(), Err(Error::Config(_))), "{preprocess:?}");
        }
        let text = serde_json::to_string(&good).unwrap();
        assert!(text.contains("\"bilinear\""));
        assert_eq!(serde_json::from_str::<Preprocess>(&text).unwrap(), good);
    }
}
