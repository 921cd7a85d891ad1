//! Random affine maps of an image: rotation, zoom and shear about its centre.

use super::image::Image;
use crate::rng::Rng;

/// How far random maps go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct AffineRange {
    /// Largest rotation either way, in degrees.
    pub rotate: f32,
    /// Zoom is a factor within 1 ± this.
    pub zoom: f32,
    /// Largest shear either way: columns per row.
    pub shear: f32,
}

impl AffineRange {
    /// Whether there is anything to draw.
    pub fn is_none(self) -> bool {
        self == Self { rotate: 0.0, zoom: 0.0, shear: 0.0 }
    }

    /// A random matrix from coordinates of the result to those of the image, about the centre of both.
    ///
    /// Sine and cosine come from the tangent of half the angle: libraries disagree in their last bits, and the four basic
    /// operations do not.
    pub fn draw(self, rng: &mut Rng) -> [[f32; 2]; 2] {
        let half = self.rotate * std::f32::consts::PI / 360.0;
        let most = half + half * half * half / 3.0;
        let (tangent, scale) = (rng.range(-most, most), rng.range(1.0 - self.zoom, 1.0 + self.zoom));
        let shear = rng.range(-self.shear, self.shear);
        let square = tangent * tangent;
        let (cos, sin) = ((1.0 - square) / (1.0 + square), 2.0 * tangent / (1.0 + square));
        [[cos / scale, (shear * cos - sin) / scale], [sin / scale, (cos + shear * sin) / scale]]
    }
}

/// The image of the same size whose pixel at `p` is that of `image` at `matrix · p`, both from the centre; between pixels
/// bilinear, beyond the edge that of the edge.
pub(super) fn warp(image: &Image, matrix: [[f32; 2]; 2]) -> Image {
    let (width, height, channels) = (image.width(), image.height(), image.channels());
    let centre = [(width - 1) as f32 / 2.0, (height - 1) as f32 / 2.0];
    let mut pixels = Vec::with_capacity(image.pixels().len());
    for y in 0..height {
        for x in 0..width {
            let from = [x as f32 - centre[0], y as f32 - centre[1]];
            let at = |axis: usize| matrix[axis][0] * from[0] + matrix[axis][1] * from[1] + centre[axis];
            let ((left, right, across), (above, below, down)) = (between(at(0), width), between(at(1), height));
            let (upper, lower) = (image.row(above), image.row(below));
            for c in 0..channels {
                let value = |row: &[u8], x: usize| f32::from(row[x * channels + c]);
                let mix = |row: &[u8]| value(row, left) + across * (value(row, right) - value(row, left));
                let (top, bottom) = (mix(upper), mix(lower));
                pixels.push((top + down * (bottom - top) + 0.5) as u8);
            }
        }
    }
    image.with_pixels(pixels)
}

/// The two pixels of `0..len` around a coordinate, and how far the second one is taken.
fn between(at: f32, len: usize) -> (usize, usize, f32) {
    let at = at.clamp(0.0, (len - 1) as f32);
    let first = at as usize;
    (first, (first + 1).min(len - 1), at - first as f32)
}

#[cfg(test)]
mod tests {
    use super::super::testing::gradient;
    use super::*;

    #[test]
    fn identity_and_turns_move_pixels_exactly() {
        let image = gradient(5, 5, 3);
        assert_eq!(warp(&image, [[1.0, 0.0], [0.0, 1.0]]), image);
        let turned = warp(&image, [[0.0, -1.0], [1.0, 0.0]]);
        for y in 0..5 {
            for x in 0..5 {
                assert_eq!(turned.row(y)[3 * x..3 * x + 3], image.row(x)[3 * (4 - y)..3 * (4 - y) + 3]);
            }
        }
    }

    #[test]
    fn halves_are_mixed_and_edges_repeated() {
        let image = Image::new("a", [1, 3, 1], vec![0, 100, 200]).unwrap();
        assert_eq!(warp(&image, [[0.5, 0.0], [0.0, 1.0]]).pixels(), [50, 100, 150]);
        assert_eq!(warp(&image, [[3.0, 0.0], [0.0, 1.0]]).pixels(), [0, 100, 200]);
        let dot = Image::new("a", [1, 1, 1], vec![9]).unwrap();
        assert_eq!(warp(&dot, [[0.3, 2.0], [1.0, 1.0]]), dot);
    }

    #[test]
    fn draws_stay_in_range() {
        let range = AffineRange { rotate: 15.0, zoom: 0.2, shear: 0.0 };
        let mut rng = Rng::new(3);
        let mut widest = 0.0f32;
        for _ in 0..2000 {
            let [[a, b], [c, d]] = range.draw(&mut rng);
            let scale = 1.0 / (a * d - b * c).sqrt();
            assert!((0.799..1.201).contains(&scale), "{scale}");
            let degrees = (c * scale).asin().to_degrees();
            widest = widest.max(degrees.abs());
        }
        assert!((14.5..15.05).contains(&widest), "{widest}");
        assert!(!range.is_none() && AffineRange { rotate: 0.0, zoom: 0.0, shear: 0.0 }.is_none());
    }
}
