//! Small images and sources for the tests of this module.

use std::io::{Cursor, Write};
use std::path::Path;
use std::sync::Arc;

use ::image::{DynamicImage, GrayImage, ImageFormat, RgbImage};

use super::cache::CachedSource;
use super::image::Image;
use super::source::Source;

/// A smooth image whose pixels differ by place and channel.
pub(super) fn gradient(width: usize, height: usize, channels: usize) -> Image {
    let mut pixels = Vec::new();
    for y in 0..height {
        for x in 0..width {
            pixels.extend((0..channels).map(|c| ((x * 3 + y * 2 + c * 40) % 256) as u8));
        }
    }
    Image::new("gradient", [height, width, channels], pixels).unwrap()
}

/// `image` as a file of `format`.
pub(super) fn encode(image: &Image, format: ImageFormat) -> Vec<u8> {
    let (width, height) = (image.width() as u32, image.height() as u32);
    let pixels = image.pixels().to_vec();
    let grey = image.channels() == 1;
    let mut dynamic = if grey {
        DynamicImage::from(GrayImage::from_raw(width, height, pixels).unwrap())
    } else {
        DynamicImage::from(RgbImage::from_raw(width, height, pixels).unwrap())
    };
    if format == ImageFormat::WebP {
        dynamic = dynamic.into_rgb8().into();
    }
    let mut out = Cursor::new(Vec::new());
    dynamic.write_to(&mut out, format).unwrap();
    out.into_inner()
}

/// Writes a PNG of `gradient(width, height, 3)`, creating the folder.
pub(super) fn write_png(path: &Path, width: usize, height: usize) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, encode(&gradient(width, height, 3), ImageFormat::Png)).unwrap();
}

/// An IDX file of unsigned bytes.
pub(super) fn idx_bytes(dims: &[usize], data: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 0, 8, dims.len() as u8];
    for &dim in dims {
        out.extend((dim as u32).to_be_bytes());
    }
    out.extend(data);
    out
}

/// `bytes`, gzipped.
pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A source of `n` grey 4x4 images, each filled with its own index.
pub(super) fn flat_source(n: usize) -> Arc<CachedSource> {
    let data: Vec<u8> = (0..n).flat_map(|i| [i as u8; 16]).collect();
    let source = Source::idx_from_bytes("flat", &idx_bytes(&[n, 4, 4], &data), None).unwrap();
    Arc::new(CachedSource::new(source, 0))
}
