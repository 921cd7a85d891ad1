//! Antialiased resizing in integer arithmetic.
//!
//! Models were trained on pixels that Pillow resized (torchvision and timm call it), so this follows Pillow to
//! the bit; and integers give the same pixels on every board. Only the window that is kept is computed.

use std::borrow::Cow;
use std::ops::Range;

use super::image::Image;
use super::preprocess::Interpolation;

/// Fractional bits of a weight: 8-bit pixels times weights, summed, fit an i32.
const WEIGHT_BITS: u32 = 32 - 8 - 2;

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rect {
    pub(super) x: usize,
    pub(super) y: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

impl Rect {
    /// The rectangle of a whole image of `width` × `height`.
    pub(super) fn whole(width: usize, height: usize) -> Self {
        Self { x: 0, y: 0, width, height }
    }
}

/// What to resize to what, and which part of the result is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Resize {
    /// The part of the image that is resized; pixels outside have no influence.
    pub(super) from: Rect,
    /// Width of the resized part.
    pub(super) width: usize,
    /// Height of the resized part.
    pub(super) height: usize,
    /// The part of the result that is returned.
    pub(super) window: Rect,
    /// The filter.
    pub(super) interpolation: Interpolation,
}

/// Resizes as `job` says.
///
/// # Panics
/// If a rectangle is empty or reaches outside its image.
///
/// # Source
/// Pillow, `src/libImaging/Resample.c` (8 bits per channel): the filter widens with the reduction, weights are
/// rounded to fixed point, columns first, each pass rounded to 8 bits.
pub(super) fn resize<'a>(image: &'a Image, job: &Resize) -> Cow<'a, Image> {
    let (from, window) = (job.from, job.window);
    let whole = Rect::whole(image.width(), image.height());
    if from == whole && window == whole && (job.width, job.height) == (image.width(), image.height()) {
        return Cow::Borrowed(image);
    }
    let kernel = Kernel::of(job.interpolation);
    let columns = Taps::new(kernel, from.width, job.width, window.x..window.x + window.width);
    let rows = Taps::new(kernel, from.height, job.height, window.y..window.y + window.height);
    let pixels = match image.channels() {
        1 => two_passes::<1>(image, from, &columns, &rows),
        _ => two_passes::<3>(image, from, &columns, &rows),
    };
    let size = [window.height, window.width, image.channels()];
    Cow::Owned(Image::new("resized", size, pixels).expect("both passes fill the window"))
}

fn two_passes<const C: usize>(image: &Image, from: Rect, columns: &Taps, rows: &Taps) -> Vec<u8> {
    let needed = rows.inputs();
    let stride = columns.taps.len() * C;
    let mut narrow = Vec::with_capacity(needed.len() * stride);
    for y in needed.clone() {
        let row = &image.row(from.y + y)[from.x * C..(from.x + from.width) * C];
        let pixels = row.as_chunks::<C>().0;
        for (first, weights) in columns.iter() {
            let mut sums = [1 << (WEIGHT_BITS - 1); C];
            for (pixel, &weight) in pixels[first..].iter().zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            narrow.extend(sums.map(to_byte));
        }
    }
    let mut out = Vec::with_capacity(rows.taps.len() * stride);
    let mut sums = vec![0; stride];
    for (first, weights) in rows.iter() {
        sums.fill(1 << (WEIGHT_BITS - 1));
        for (row, &weight) in narrow.chunks_exact(stride).skip(first - needed.start).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        out.extend(sums.iter().map(|&sum| to_byte(sum)));
    }
    out
}

fn to_byte(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

/// A filter kernel and the distance beyond which it is zero.
#[derive(Clone, Copy)]
struct Kernel {
    support: f64,
    value: fn(f64) -> f64,
}

impl Kernel {
    fn of(interpolation: Interpolation) -> Self {
        match interpolation {
            Interpolation::Bilinear => Self { support: 1.0, value: triangle },
            Interpolation::Bicubic => Self { support: 2.0, value: catmull_rom },
        }
    }
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// The cubic with a = -0.5.
fn catmull_rom(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// For each wanted output coordinate, the first input it reads and the weights of the inputs from there.
struct Taps {
    taps: Vec<(usize, Range<usize>)>,
    weights: Vec<i32>,
}

impl Taps {
    fn new(kernel: Kernel, input: usize, output: usize, wanted: Range<usize>) -> Self {
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = kernel.support * filter_scale;
        let mut all = Self { taps: Vec::with_capacity(wanted.len()), weights: Vec::new() };
        let mut exact = Vec::new();
        for out in wanted {
            let center = (out as f64 + 0.5) * scale;
            // Casts cut towards zero and saturate at it, as the reference does.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            exact.clear();
            exact.extend((first..end).map(|x| (kernel.value)((x as f64 - center + 0.5) * (1.0 / filter_scale))));
            let total: f64 = exact.iter().sum();
            let from = all.weights.len();
            all.weights.extend(exact.iter().map(|w| to_fixed(w / total)));
            all.taps.push((first, from..all.weights.len()));
        }
        all
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.taps.iter().map(|(first, range)| (*first, &self.weights[range.clone()]))
    }

    /// All input coordinates that any output reads.
    fn inputs(&self) -> Range<usize> {
        let start = self.taps.iter().map(|(first, _)| *first).min().unwrap_or(0);
        let end = self.taps.iter().map(|(first, range)| first + range.len()).max().unwrap_or(0);
        start..end
    }
}

/// To fixed point, halves away from zero.
fn to_fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << WEIGHT_BITS);
    if scaled < 0.0 { (scaled - 0.5) as i32 } else { (scaled + 0.5) as i32 }
}

#[cfg(test)]
mod tests {
    use super::super::testing::gradient;
    use super::*;

    fn full(image: &Image, width: usize, height: usize, interpolation: Interpolation) -> Image {
        let from = Rect::whole(image.width(), image.height());
        let job = Resize { from, width, height, window: Rect::whole(width, height), interpolation };
        resize(image, &job).into_owned()
    }

    fn row(values: &[u8]) -> Image {
        Image::new("row", [1, values.len(), 1], values.to_vec()).unwrap()
    }

    #[test]
    fn halving_by_triangle_weighs_one_three_three_one() {
        // Output 1 of 4 lies between inputs 2 and 3: weights 1/8, 3/8, 3/8, 1/8 on inputs 1 to 4.
        let image = row(&[0, 0, 80, 80, 0, 0, 0, 0]);
        assert_eq!(full(&image, 4, 1, Interpolation::Bilinear).pixels()[1], 60);
    }

    #[test]
    fn doubling_by_triangle_weighs_one_to_three() {
        // Edges have one input only; inside, weights 3/4 and 1/4.
        assert_eq!(full(&row(&[0, 100]), 4, 1, Interpolation::Bilinear).pixels(), [0, 25, 75, 100]);
    }

    #[test]
    fn constants_stay_constant_and_one_pixel_fills_everything() {
        for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic] {
            for (width, height, to) in [(1, 1, (7, 5)), (37, 11, (8, 64)), (300, 2, (3, 3))] {
                let image = Image::new("c", [height, width, 3], [9, 128, 255].repeat(width * height)).unwrap();
                let resized = full(&image, to.0, to.1, interpolation);
                assert_eq!(resized.pixels(), [9, 128, 255].repeat(to.0 * to.1));
            }
        }
    }

    #[test]
    fn a_window_is_the_same_part_of_the_whole() {
        let image = gradient(50, 31, 3);
        let whole = full(&image, 40, 70, Interpolation::Bicubic);
        let window = Rect { x: 5, y: 33, width: 20, height: 9 };
        let from = Rect::whole(50, 31);
        let job = Resize { from, width: 40, height: 70, window, interpolation: Interpolation::Bicubic };
        let part = resize(&image, &job);
        for y in 0..9 {
            assert_eq!(part.row(y), &whole.row(33 + y)[5 * 3..25 * 3]);
        }
    }

    #[test]
    fn a_part_is_resized_as_if_cut_out_first() {
        let image = gradient(50, 31, 1);
        let from = Rect { x: 4, y: 6, width: 20, height: 10 };
        let job =
            Resize { from, width: 8, height: 8, window: Rect::whole(8, 8), interpolation: Interpolation::Bicubic };
        let cut: Vec<u8> = (6..16).flat_map(|y| image.row(y)[4..24].to_vec()).collect();
        let cut = Image::new("cut", [10, 20, 1], cut).unwrap();
        assert_eq!(resize(&image, &job).pixels(), full(&cut, 8, 8, Interpolation::Bicubic).pixels());
    }

    /// A pattern with steep edges: `(7 x² + 31 y + 40 c) mod 256`.
    fn pattern(width: usize, height: usize, channels: usize) -> Image {
        let mut pixels = Vec::new();
        for y in 0..height {
            for x in 0..width {
                pixels.extend((0..channels).map(|c| ((7 * x * x + 31 * y + 40 * c) % 256) as u8));
            }
        }
        Image::new("pattern", [height, width, channels], pixels).unwrap()
    }

    // Expected values: Pillow 13.0.0, `Image.resize((width, height), Image.Resampling.BILINEAR or BICUBIC)`.

    #[test]
    fn small_results_are_those_of_pillow() {
        let image = pattern(13, 9, 1);
        let bilinear = [53, 121, 137, 149, 125, 138, 150, 123, 135, 134, 197, 115, 141, 117, 124];
        let bicubic = [40, 122, 142, 152, 124, 139, 154, 118, 136, 131, 208, 110, 139, 117, 127];
        assert_eq!(full(&image, 5, 3, Interpolation::Bilinear).pixels(), bilinear);
        assert_eq!(full(&image, 5, 3, Interpolation::Bicubic).pixels(), bicubic);
    }

    #[test]
    fn large_results_have_the_checksums_of_pillow() {
        let cases = [
            ((256, 256, 3), (224, 224), 0x4335_D7D2, 0x99D1_449F),
            ((640, 480, 3), (341, 256), 0xB102_96C0, 0xAF17_5482),
            ((16, 16, 1), (28, 28), 0x8699_1476, 0xA007_2E95),
            ((97, 31, 3), (50, 200), 0x91A4_C1AB, 0x7D0A_202F),
        ];
        for ((width, height, channels), to, bilinear, bicubic) in cases {
            let image = pattern(width, height, channels);
            for (interpolation, expected) in [(Interpolation::Bilinear, bilinear), (Interpolation::Bicubic, bicubic)] {
                let mut crc = flate2::Crc::new();
                crc.update(full(&image, to.0, to.1, interpolation).pixels());
                assert_eq!(crc.sum(), expected, "{width}x{height} to {to:?}, {interpolation:?}");
            }
        }
    }
}
