//! Decoding of compressed files into [`Image`]s, hardened against what a device may find in its inbox.

use std::io::Cursor;
use std::path::Path;

use ::image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, metadata::Orientation};
use serde::{Deserialize, Serialize};

use super::image::Image;
use super::jpeg;
use crate::error::{Error, Result};

/// The longest side of an image, that of JPEG: geometry in 32 bits cannot overflow.
const MAX_IMAGE_SIDE: u64 = 65_535;

/// What a single image may cost before it is refused as a decompression bomb.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageLimits {
    /// Most pixels (width × height).
    pub max_pixels: u64,
    /// Most bytes of the compressed file, and most bytes the decoder may allocate.
    pub max_bytes: u64,
}

impl Default for ImageLimits {
    /// 64 megapixels and 512 MiB.
    fn default() -> Self {
        Self { max_pixels: 64_000_000, max_bytes: 512 << 20 }
    }
}

impl ImageLimits {
    /// Checks that the limits let an image through at all.
    ///
    /// # Errors
    /// [`Error::Config`] if a limit is zero.
    pub fn validate(&self) -> Result<()> {
        if self.max_pixels == 0 || self.max_bytes == 0 {
            return Err(Error::Config("image limits max_pixels and max_bytes must be at least 1, got 0".into()));
        }
        Ok(())
    }

    /// Refuses an image of `width` × `height` pixels if that is too many or a side is too long.
    pub(super) fn check_pixels(&self, name: &Path, width: u64, height: u64) -> Result<()> {
        if width.max(height) > MAX_IMAGE_SIDE {
            return Err(Error::data(
                name,
                format!("expected sides up to {MAX_IMAGE_SIDE} pixels, got {width}x{height}"),
            ));
        }
        if width.saturating_mul(height) <= self.max_pixels {
            return Ok(());
        }
        Err(Error::data(name, format!("{width}x{height} pixels are more than the limit of {}", self.max_pixels)))
    }
}

impl Image {
    /// Decodes a JPEG, PNG, WebP or BMP file, told apart by content; `name` is what an error calls it.
    ///
    /// The EXIF orientation is applied, 16-bit samples are rounded to 8 bits, transparency is dropped, and of
    /// an animation the first frame is taken. Images without colour keep one channel.
    ///
    /// # Errors
    /// [`Error::Data`] if the content is of no such format, broken, cut off, or beyond `limits`.
    pub fn decode(name: impl AsRef<Path>, bytes: &[u8], limits: &ImageLimits) -> Result<Self> {
        let name = name.as_ref();
        // Decoders are foreign code on foreign bytes: a panic in one is a broken file, not a broken program.
        std::panic::catch_unwind(|| decode(name, bytes, limits))
            .unwrap_or_else(|_| Err(Error::data(name, "broken image: the decoder panicked")))
    }
}

fn decode(name: &Path, bytes: &[u8], limits: &ImageLimits) -> Result<Image> {
    if bytes.is_empty() {
        return Err(Error::data(name, "expected an image, got an empty file"));
    }
    let format = match ::image::guess_format(bytes) {
        Ok(found @ (ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP | ImageFormat::Bmp)) => found,
        Ok(other) => {
            return Err(Error::data(name, format!("expected JPEG, PNG, WebP or BMP content, got {other:?}")));
        }
        Err(_) => return Err(Error::data(name, "expected JPEG, PNG, WebP or BMP content, got something else")),
    };
    if format == ImageFormat::Jpeg && !jpeg::is_complete(bytes) {
        return Err(Error::data(name, "the JPEG is cut off: no end-of-image marker"));
    }
    let decoded = decode_limited(name, bytes, format, limits)?;
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    if decoded.color().has_color() {
        Image::new(name, [height, width, 3], decoded.into_rgb8().into_raw())
    } else {
        Image::new(name, [height, width, 1], decoded.into_luma8().into_raw())
    }
}

/// Reads the header, checks the limits, and only then decodes the pixels.
fn decode_limited(name: &Path, bytes: &[u8], format: ImageFormat, limits: &ImageLimits) -> Result<DynamicImage> {
    let broken = |error: ImageError| Error::data(name, format!("broken image: {error}"));
    let mut allowed = Limits::no_limits();
    allowed.max_alloc = Some(limits.max_bytes);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(allowed.clone());
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    limits.check_pixels(name, width.into(), height.into())?;
    // The output buffer is not counted by the decoders themselves.
    allowed.reserve(decoder.total_bytes()).map_err(broken)?;
    decoder.set_limits(allowed).map_err(broken)?;
    // Broken metadata does not make the pixels unusable.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut decoded = DynamicImage::from_decoder(decoder).map_err(broken)?;
    decoded.apply_orientation(orientation);
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{encode, gradient};
    use super::*;
    use ::image::{ImageBuffer, Luma, Rgba};

    fn reason(bytes: &[u8]) -> String {
        Image::decode("photo", bytes, &ImageLimits::default()).unwrap_err().to_string()
    }

    fn decoded(bytes: &[u8]) -> Image {
        Image::decode("photo", bytes, &ImageLimits::default()).unwrap()
    }

    fn png(image: impl Into<DynamicImage>) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        image.into().write_to(&mut out, ImageFormat::Png).unwrap();
        out.into_inner()
    }

    /// A PNG that declares 8-bit RGB of `width` × `height` and holds next to no pixels.
    fn png_bomb(width: u32, height: u32) -> Vec<u8> {
        let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
        let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
        for (kind, data) in [(b"IHDR", &header[..]), (b"IDAT", &[0; 16]), (b"IEND", &[])] {
            let chunk = [kind, data].concat();
            let mut crc = flate2::Crc::new();
            crc.update(&chunk);
            out.extend((data.len() as u32).to_be_bytes());
            out.extend(chunk);
            out.extend(crc.sum().to_be_bytes());
        }
        out
    }

    #[test]
    fn lossless_formats_give_back_the_pixels() {
        for (width, height, channels) in [(1, 1, 3), (1, 1, 1), (7, 3, 3), (5, 64, 1)] {
            let image = gradient(width, height, channels);
            assert_eq!(decoded(&encode(&image, ImageFormat::Png)), image);
            assert_eq!(decoded(&encode(&image, ImageFormat::Bmp)).to_grey(), image.to_grey());
            // WebP has no grey mode: a grey image comes back as RGB of equal channels.
            assert_eq!(decoded(&encode(&image, ImageFormat::WebP)).to_grey(), image.to_grey());
        }
    }

    #[test]
    fn jpeg_comes_close_and_keeps_grey_grey() {
        for channels in [1, 3] {
            let image = gradient(32, 24, channels);
            let back = decoded(&encode(&image, ImageFormat::Jpeg));
            assert_eq!((back.width(), back.height(), back.channels()), (32, 24, channels));
            let worst = back.pixels().iter().zip(image.pixels()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(worst < Some(40), "worst {worst:?}");
        }
    }

    #[test]
    fn transparency_is_dropped_and_16_bits_are_rounded() {
        let rgba = ImageBuffer::from_pixel(2, 2, Rgba([10u8, 20, 30, 0]));
        assert_eq!(decoded(&png(rgba)).pixels(), [10, 20, 30].repeat(4));
        let deep = ImageBuffer::from_pixel(2, 1, Luma([257u16 * 77]));
        assert_eq!(decoded(&png(deep)).pixels(), [77, 77]);
    }

    #[test]
    fn exif_orientation_is_applied() {
        let jpeg = encode(&gradient(24, 8, 1), ImageFormat::Jpeg);
        // One little-endian directory entry: tag 0x0112 (orientation), type short, one value, 6 = turn clockwise.
        let exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let mut turned = vec![0xFF, 0xD8, 0xFF, 0xE1];
        turned.extend(u16::try_from(exif.len() + 2).unwrap().to_be_bytes());
        turned.extend(exif);
        turned.extend(&jpeg[2..]);
        let (plain, turned) = (decoded(&jpeg), decoded(&turned));
        assert_eq!((turned.width(), turned.height()), (8, 24));
        // The left column of the stored image, bottom up, becomes the top row.
        let column: Vec<u8> = (0..8).rev().map(|y| plain.row(y)[0]).collect();
        assert_eq!(turned.row(0), column);
    }

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        assert_eq!(reason(b""), "photo: expected an image, got an empty file");
        assert!(reason(b"hello, world").contains("expected JPEG, PNG, WebP or BMP"));
        assert!(reason(b"GIF89a..........").contains("got Gif"));
        assert!(reason(b"BM").contains("photo: "));
    }

    #[test]
    fn cut_off_files_are_refused_in_every_format() {
        for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp] {
            let whole = encode(&gradient(64, 64, 3), format);
            for tenths in 0..10 {
                let cut = &whole[..whole.len() * tenths / 10];
                assert!(Image::decode("cut", cut, &ImageLimits::default()).is_err(), "{format:?} {tenths}/10");
            }
        }
    }

    #[test]
    fn bombs_are_refused_before_decoding() {
        assert!(reason(&png_bomb(60_000, 60_000)).contains("60000x60000 pixels are more than the limit of 64000000"));
        assert!(reason(&png_bomb(70_000, 1)).contains("sides up to 65535 pixels, got 70000x1"));
        let image = encode(&gradient(100, 100, 3), ImageFormat::Png);
        let small = ImageLimits { max_pixels: 9_999, ..ImageLimits::default() };
        assert!(Image::decode("a", &image, &small).unwrap_err().to_string().contains("100x100 pixels"));
        let tight = ImageLimits { max_bytes: 1_000, ..ImageLimits::default() };
        assert!(Image::decode("a", &image, &tight).is_err());
        assert!(ImageLimits { max_pixels: 0, ..tight }.validate().is_err());
    }
}
