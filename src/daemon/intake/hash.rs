//! What an image looks like, in 64 bits.

use sha2::{Digest, Sha256};

use crate::data::Image;

/// Columns and rows of the grid that is compared.
const GRID: (usize, usize) = (9, 8);
/// Sums of cells count sixteenths of a grey level.
const PARTS: u64 = 16;
/// The most of the 64 bits that may tell of less than one grey level.
const MOST_FLAT: usize = 16;

/// The difference hash of an image: whether each cell of a grid is brighter than its right neighbour. Re-encoding and
/// scaling change few of the bits, another picture about half.
///
/// Where a quarter of the grid is flat, as around a digit or in the dark, other pictures would come near, too: two fifths
/// of MNIST's digits are within 2 bits of another. Such an image has the digest of its pixels instead, which only its
/// equals come near to.
///
/// # Source
/// N. Krawetz, "Kind of Like That", hackerfactor.com, 2013 (dHash). Cells are means of pixels.
pub fn dhash(image: &Image) -> u64 {
    let grey = image.to_grey();
    let (width, height) = (grey.width(), grey.height());
    let span = |index: usize, cells: usize, pixels: usize| {
        let from = index * pixels / cells;
        from..((index + 1) * pixels / cells).max(from + 1)
    };
    let cell = |column: usize, row: usize| -> u64 {
        let (xs, ys) = (span(column, GRID.0, width), span(row, GRID.1, height));
        let count = (xs.len() * ys.len()) as u64;
        let pixels = grey.pixels();
        let line = |y: usize| pixels.get(y * width + xs.start..y * width + xs.end).unwrap_or_default();
        let sum: u64 = ys.map(|y| line(y).iter().map(|p| u64::from(*p)).sum::<u64>()).sum();
        PARTS * sum / count
    };
    let (mut bits, mut flat) = (0, 0);
    for row in 0..GRID.1 {
        let cells: Vec<u64> = (0..GRID.0).map(|column| cell(column, row)).collect();
        for pair in cells.windows(2) {
            bits = bits << 1 | u64::from(pair[0] > pair[1]);
            flat += usize::from(pair[0].abs_diff(pair[1]) < PARTS);
        }
    }
    if flat > MOST_FLAT { digest(image) } else { bits }
}

/// The first 64 bits of a digest of size and pixels.
fn digest(image: &Image) -> u64 {
    let mut hasher = Sha256::new();
    for side in [image.width(), image.height()] {
        hasher.update((side as u64).to_le_bytes());
    }
    hasher.update(image.pixels());
    hasher.finalize().iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::ImageLimits;
    use crate::rng::Rng;
    use image::{ImageFormat, RgbImage, imageops};

    /// A picture of smooth blobs.
    fn picture(seed: u64, side: u32) -> RgbImage {
        let mut rng = Rng::new(seed);
        let small = RgbImage::from_fn(7, 7, |_, _| image::Rgb([0; 3].map(|_: u8| rng.below(256) as u8)));
        imageops::resize(&small, side, side, imageops::FilterType::CatmullRom)
    }

    fn hash(picture: &RgbImage, format: ImageFormat) -> u64 {
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        dhash(&Image::decode("a", &bytes.into_inner(), &ImageLimits::default()).unwrap())
    }

    #[test]
    fn another_encoding_or_size_is_near_and_another_picture_far() {
        for seed in 0..20 {
            let original = hash(&picture(seed, 128), ImageFormat::Png);
            let jpeg = hash(&picture(seed, 128), ImageFormat::Jpeg);
            let smaller = hash(&picture(seed, 96), ImageFormat::Jpeg);
            let other = hash(&picture(seed + 100, 128), ImageFormat::Png);
            assert!((original ^ jpeg).count_ones() <= 2, "{seed}");
            assert!((original ^ smaller).count_ones() <= 4, "{seed}: {}", (original ^ smaller).count_ones());
            assert!((original ^ other).count_ones() >= 12, "{seed}");
        }
    }

    #[test]
    fn dark_and_flat_pictures_are_near_to_their_equals_alone() {
        let mut rng = Rng::new(5);
        let mut dark = |most| {
            let pixels = (0..32 * 32).map(|_| rng.below(most) as u8).collect();
            dhash(&Image::new("a", [32, 32, 1], pixels).unwrap())
        };
        for most in [1, 2, 4] {
            let hashes: Vec<u64> = (0..50).map(|_| dark(most)).collect();
            let differs = |a: usize, b: usize| (hashes[a] ^ hashes[b]).count_ones();
            let near = (0..50).flat_map(|a| (0..a).map(move |b| (a, b))).filter(|(a, b)| differs(*a, *b) <= 4).count();
            assert_eq!(near, if most == 1 { 50 * 49 / 2 } else { 0 }, "{most}");
        }
    }

    #[test]
    fn a_picture_of_one_pixel_has_a_hash() {
        let hash = |value| dhash(&Image::new("a", [1, 1, 1], vec![value]).unwrap());
        assert!(hash(7) == hash(7) && hash(7) != hash(8));
        assert_eq!(dhash(&Image::new("a", [1, 9, 1], vec![9, 8, 7, 6, 5, 4, 3, 2, 1]).unwrap()), u64::MAX);
    }
}
