//! Random changes that leave the class of an image as it is, for training.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::affine::{AffineRange, warp};
use super::image::Image;
use super::preprocess::Preprocess;
use super::resample::{Rect, Resize, resize};
use crate::error::{Error, Result};
use crate::rng::Rng;

/// The narrowest aspect ratio of a random crop, and by its inverse the widest.
const MIN_ASPECT: f32 = 0.75;
const CROP_ATTEMPTS: usize = 10;

/// Which random changes are made, and how strong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Range of the area a random crop keeps, as fractions of the image; (1, 1) turns cropping off.
    pub crop_scale: (f32, f32),
    /// Whether to mirror left and right half of the time.
    pub flip: bool,
    /// Largest shift along each axis, as a fraction of the side; edge pixels are repeated.
    pub shift: f32,
    /// Largest rotation either way, in degrees, at most 45.
    pub rotate: f32,
    /// Zoom is a factor within 1 ± this.
    pub zoom: f32,
    /// Largest shear either way: columns per row.
    pub shear: f32,
    /// Brightness and contrast are each multiplied by a factor within 1 ± this.
    pub jitter: f32,
    /// Height and width to train at, where they differ from those of evaluation.
    pub train_size: Option<[usize; 2]>,
}

impl Default for Augment {
    /// For photographs: crops of 60 to 100 % of the area, flips, jitter of 20 %.
    fn default() -> Self {
        Self { crop_scale: (0.6, 1.0), flip: true, jitter: 0.2, ..Self::none() }
    }
}

impl Augment {
    /// For digits, which change their meaning when mirrored or cut: shifts of up to 8 %, rotation, zoom and shear as far as
    /// handwriting goes.
    pub fn digits() -> Self {
        Self { shift: 0.08, rotate: 15.0, zoom: 0.2, shear: 0.2, ..Self::none() }
    }

    /// No random change.
    pub fn none() -> Self {
        Self {
            crop_scale: (1.0, 1.0),
            flip: false,
            shift: 0.0,
            rotate: 0.0,
            zoom: 0.0,
            shear: 0.0,
            jitter: 0.0,
            train_size: None,
        }
    }

    fn affine(&self) -> AffineRange {
        AffineRange { rotate: self.rotate, zoom: self.zoom, shear: self.shear }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn validate(&self) -> Result<()> {
        let (low, high) = self.crop_scale;
        if !(low > 0.0 && low <= high && high <= 1.0) {
            return Err(Error::Config(format!("augmentation: expected 0 < crop_scale <= 1, got {low}..{high}")));
        }
        let below_one = [("shift", self.shift), ("zoom", self.zoom), ("shear", self.shear), ("jitter", self.jitter)];
        for (name, value) in below_one {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::Config(format!("augmentation: expected {name} within 0..1, got {value}")));
            }
        }
        if !(0.0..=45.0).contains(&self.rotate) {
            return Err(Error::Config(format!("augmentation: expected rotate within 0..45, got {}", self.rotate)));
        }
        Ok(())
    }
}

impl Preprocess {
    /// A model's input for a randomly changed `image`.
    ///
    /// The same `rng` state gives the same bits on every platform: only the four basic operations and the
    /// square root are used, which IEEE 754 defines exactly.
    ///
    /// # Shapes
    /// `[channels, height, width]` with the size `augment.train_size` or that of `self`.
    ///
    /// # Panics
    /// May panic if `validate` refuses `self` or `augment`.
    ///
    /// # Source
    /// torchvision `RandomResizedCrop`, with the aspect ratio uniform in 3/4..1 and then inverted half of the
    /// time, where torchvision draws its logarithm; `ColorJitter`'s brightness and contrast as one affine map
    /// around the mean of all channels, clipped once.
    pub fn train(&self, image: &Image, augment: &Augment, rng: &mut Rng) -> Vec<f32> {
        let mut sized = self.clone();
        if let Some([height, width]) = augment.train_size {
            (sized.height, sized.width) = (height, width);
        }
        let image = sized.with_channels(image);
        let mut job = sized.fit(&image);
        if augment.crop_scale.0 < 1.0 {
            let from = random_crop(&image, augment.crop_scale, rng);
            let window = Rect::whole(sized.width, sized.height);
            job = Resize { from, width: sized.width, height: sized.height, window, ..job };
        }
        let mut view = resize(&image, &job);
        if !augment.affine().is_none() {
            view = Cow::Owned(warp(&view, augment.affine().draw(rng)));
        }
        let flip = augment.flip && rng.below(2) == 1;
        let rows = shifted(view.height(), augment.shift, rng);
        let mut columns = shifted(view.width(), augment.shift, rng);
        if flip {
            columns.reverse();
        }
        if augment.jitter == 0.0 {
            return sized.normalise(&view, [&rows, &columns], |value| value);
        }
        let brightness = rng.range(1.0 - augment.jitter, 1.0 + augment.jitter);
        let contrast = rng.range(1.0 - augment.jitter, 1.0 + augment.jitter);
        let mean = mean_of(&view);
        let tone = |value: f32| (brightness * (mean + contrast * (value - mean))).clamp(0.0, 1.0);
        sized.normalise(&view, [&rows, &columns], tone)
    }
}

/// A random rectangle of a share of the area within `scale` and an aspect ratio within 3/4 to 4/3.
fn random_crop(image: &Image, scale: (f32, f32), rng: &mut Rng) -> Rect {
    let (width, height) = (image.width(), image.height());
    for _ in 0..CROP_ATTEMPTS {
        let area = rng.range(scale.0, scale.1) * width as f32 * height as f32;
        let aspect = rng.range(MIN_ASPECT, 1.0);
        let aspect = if rng.below(2) == 1 { 1.0 / aspect } else { aspect };
        let w = (area * aspect).sqrt().round() as usize;
        let h = (area / aspect).sqrt().round() as usize;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            return Rect { x: rng.below(width - w + 1), y: rng.below(height - h + 1), width: w, height: h };
        }
    }
    // Very long images have no such rectangle: the largest in the middle whose aspect ratio is allowed.
    let w = width.min((height as f32 / MIN_ASPECT).round() as usize).max(1);
    let h = height.min((width as f32 / MIN_ASPECT).round() as usize).max(1);
    Rect { x: (width - w) / 2, y: (height - h) / 2, width: w, height: h }
}

/// The coordinates `0..len`, shifted by up to `fraction` of `len`, the edge repeated.
fn shifted(len: usize, fraction: f32, rng: &mut Rng) -> Vec<usize> {
    let most = (len as f32 * fraction).round() as usize;
    let by = if most == 0 { 0 } else { rng.below(2 * most + 1) };
    (0..len).map(|at| (at + by).saturating_sub(most).min(len - 1)).collect()
}

/// The mean of all values, in 0..1.
fn mean_of(image: &Image) -> f32 {
    let sum: u64 = image.pixels().iter().map(|&value| u64::from(value)).sum();
    (sum as f64 / (255.0 * image.pixels().len() as f64)) as f32
}

/// What is done to an image before it enters a model.
#[derive(Debug, Clone, PartialEq)]
pub enum Transform {
    /// The model's preprocessing alone.
    Eval(Preprocess),
    /// The model's preprocessing with random changes.
    Train(Preprocess, Augment),
}

impl Transform {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Eval(preprocess) => preprocess.validate(),
            Self::Train(preprocess, augment) => {
                preprocess.validate()?;
                augment.validate()?;
                let [_, height, width] = self.shape();
                Preprocess { height, width, ..preprocess.clone() }.validate()
            }
        }
    }

    /// Channels, height and width of what [`apply`](Self::apply) gives.
    pub fn shape(&self) -> [usize; 3] {
        let (preprocess, size) = match self {
            Self::Eval(preprocess) => (preprocess, None),
            Self::Train(preprocess, augment) => (preprocess, augment.train_size),
        };
        let [height, width] = size.unwrap_or([preprocess.height, preprocess.width]);
        [preprocess.channels, height, width]
    }

    /// A model's input for `image`; `rng` is drawn from in training only.
    ///
    /// # Shapes
    /// That of [`shape`](Self::shape), row-major.
    ///
    /// # Panics
    /// May panic if [`validate`](Self::validate) refuses `self`.
    pub fn apply(&self, image: &Image, rng: &mut Rng) -> Vec<f32> {
        match self {
            Self::Eval(preprocess) => preprocess.eval(image),
            Self::Train(preprocess, augment) => preprocess.train(image, augment, rng),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::preprocess::Interpolation;
    use super::super::testing::gradient;
    use super::*;

    fn plain(height: usize, width: usize) -> Preprocess {
        let (mean, std) = (vec![0.0], vec![1.0]);
        Preprocess { channels: 1, height, width, mean, std, crop_pct: 1.0, interpolation: Interpolation::Bilinear }
    }

    #[test]
    fn without_changes_training_equals_evaluation() {
        let image = gradient(40, 30, 3);
        let preprocess = Preprocess { height: 16, width: 16, ..Preprocess::default() };
        assert_eq!(preprocess.train(&image, &Augment::none(), &mut Rng::new(1)), preprocess.eval(&image));
    }

    #[test]
    fn the_generator_alone_decides() {
        let image = gradient(60, 45, 3);
        let preprocess = Preprocess { height: 24, width: 24, ..Preprocess::default() };
        let train = |seed| preprocess.train(&image, &Augment::default(), &mut Rng::new(seed));
        assert_eq!(train(3), train(3));
        assert_ne!(train(3), train(4));
    }

    #[test]
    fn flips_mirror_half_of_the_time() {
        let image = gradient(5, 4, 1);
        let augment = Augment { flip: true, ..Augment::none() };
        let straight = plain(4, 5).eval(&image);
        let mirrored: Vec<f32> = straight.chunks(5).flat_map(|row| row.iter().rev().copied()).collect();
        let mut rng = Rng::new(1);
        let outs: Vec<_> = (0..200).map(|_| plain(4, 5).train(&image, &augment, &mut rng)).collect();
        let flips = outs.iter().filter(|out| **out == mirrored).count();
        assert!(outs.iter().all(|out| *out == mirrored || *out == straight));
        assert!((70..130).contains(&flips), "{flips} of 200");
    }

    #[test]
    fn shifts_repeat_the_edge_and_reach_both_ends() {
        let mut rng = Rng::new(2);
        let found: std::collections::BTreeSet<_> = (0..200).map(|_| shifted(5, 0.4, &mut rng)).collect();
        let expected = [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 4], [1, 2, 3, 4, 4], [2, 3, 4, 4, 4]];
        assert!(found.iter().eq(expected.map(Vec::from).iter()), "{found:?}");
    }

    #[test]
    fn crops_stay_inside_with_area_and_aspect_in_range() {
        let mut rng = Rng::new(5);
        let image = gradient(200, 160, 1);
        for _ in 0..500 {
            let crop = random_crop(&image, (0.3, 0.9), &mut rng);
            assert!(crop.x + crop.width <= 200 && crop.y + crop.height <= 160, "{crop:?}");
            let area = (crop.width * crop.height) as f32 / (200.0 * 160.0);
            let aspect = crop.width as f32 / crop.height as f32;
            assert!((0.29..0.91).contains(&area) && (0.74..1.35).contains(&aspect), "{crop:?}");
        }
        for (width, height) in [(1, 1), (1, 500), (500, 1), (3, 2)] {
            let crop = random_crop(&gradient(width, height, 1), (0.6, 1.0), &mut rng);
            assert!(crop.width >= 1 && crop.x + crop.width <= width, "{crop:?}");
            assert!(crop.height >= 1 && crop.y + crop.height <= height, "{crop:?}");
        }
    }

    #[test]
    fn jitter_moves_brightness_and_contrast_within_bounds() {
        let image = Image::new("halves", [1, 2, 1], vec![51, 153]).unwrap();
        let augment = Augment { jitter: 0.2, ..Augment::none() };
        let mut rng = Rng::new(9);
        let mut sums = [0.0f32; 2];
        for _ in 0..300 {
            let out = plain(1, 2).train(&image, &augment, &mut rng);
            // The mean 0.4 is scaled by brightness, the distance 0.4 by brightness and contrast.
            assert!((0.32..=0.48).contains(&((out[0] + out[1]) / 2.0)), "{out:?}");
            assert!((0.4 * 0.64 - 1e-5..=0.4 * 1.44 + 1e-5).contains(&(out[1] - out[0])), "{out:?}");
            sums = [sums[0] + out[0], sums[1] + out[1]];
        }
        assert!((sums[0] / 300.0 - 0.2).abs() < 0.02 && (sums[1] / 300.0 - 0.6).abs() < 0.02, "{sums:?}");
    }

    #[test]
    fn train_size_changes_the_shape() {
        let augment = Augment { train_size: Some([8, 12]), ..Augment::default() };
        let transform = Transform::Train(plain(16, 16), augment);
        transform.validate().unwrap();
        assert_eq!(transform.shape(), [1, 8, 12]);
        assert_eq!(transform.apply(&gradient(30, 30, 3), &mut Rng::new(1)).len(), 96);
        assert_eq!(Transform::Eval(plain(16, 16)).shape(), [1, 16, 16]);
    }

    #[test]
    fn fields_out_of_range_are_refused() {
        let base = Augment::default();
        let wrong = [
            Augment { crop_scale: (0.0, 1.0), ..base.clone() },
            Augment { crop_scale: (0.9, 0.5), ..base.clone() },
            Augment { crop_scale: (0.5, 1.1), ..base.clone() },
            Augment { shift: -0.1, ..base.clone() },
            Augment { jitter: f32::NAN, ..base.clone() },
            Augment { rotate: 46.0, ..base.clone() },
            Augment { zoom: 1.0, ..base.clone() },
            Augment { train_size: Some([0, 8]), ..base.clone() },
        ];
        for augment in wrong {
            let transform = Transform::Train(Preprocess::default(), augment);
            assert!(matches!(transform.validate(), Err(Error::Config(_))), "{transform:?}");
        }
        for augment in [base, Augment::digits(), Augment::none()] {
            augment.validate().unwrap();
        }
    }
}
