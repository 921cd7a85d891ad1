//! Whether a JPEG file is complete.
//!
//! The decoder fills the missing rest of a cut-off file with grey and reports success; a half-grey image must
//! not teach anything, so the markers are walked first.

const START_OF_SCAN: u8 = 0xDA;
const END_OF_IMAGE: u8 = 0xD9;

/// Whether `bytes` holds a whole JPEG: its markers lead from the start to an end-of-image marker.
///
/// # Source
/// ITU-T T.81, annex B: a marker is 0xFF and a code; in entropy-coded data 0xFF is followed by 0x00 or a
/// restart code (0xD0 to 0xD7) unless a marker ends the data. Bytes after the end are ignored.
pub(super) fn is_complete(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some((code, after)) = next_marker(rest) {
        rest = match code {
            END_OF_IMAGE => return true,
            // Start of image, temporary and restart codes stand alone: no length follows.
            0x01 | 0xD0..=0xD8 => after,
            _ => match skip_segment(after) {
                Some(after_segment) if code == START_OF_SCAN => skip_entropy_coded(after_segment),
                Some(after_segment) => after_segment,
                None => return false,
            },
        };
    }
    false
}

/// The next marker's code and what follows it; any number of 0xFF may fill the space before the code.
fn next_marker(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let start = bytes.iter().position(|&b| b == 0xFF)?;
    let rest = bytes.get(start..)?;
    let code_at = rest.iter().position(|&b| b != 0xFF)?;
    Some((*rest.get(code_at)?, rest.get(code_at + 1..)?))
}

/// What follows a segment whose big-endian length, itself included, comes first.
fn skip_segment(bytes: &[u8]) -> Option<&[u8]> {
    let length = u16::from_be_bytes(*bytes.first_chunk()?);
    bytes.get(usize::from(length).max(2)..)
}

/// What follows entropy-coded data: the marker that ends it.
fn skip_entropy_coded(mut bytes: &[u8]) -> &[u8] {
    while let Some(at) = bytes.iter().position(|&b| b == 0xFF) {
        match bytes.get(at + 1) {
            Some(0x00 | 0xD0..=0xD7) => bytes = bytes.get(at + 2..).unwrap_or_default(),
            Some(0xFF) => bytes = bytes.get(at + 1..).unwrap_or_default(),
            _ => return bytes.get(at..).unwrap_or_default(),
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::super::testing::{encode, gradient};
    use super::*;
    use ::image::ImageFormat;

    #[test]
    fn a_whole_file_is_complete_and_no_prefix_is() {
        let jpeg = encode(&gradient(40, 30, 3), ImageFormat::Jpeg);
        assert!(is_complete(&jpeg));
        for len in 0..jpeg.len() {
            assert!(!is_complete(&jpeg[..len]), "prefix of {len} of {} bytes", jpeg.len());
        }
    }

    #[test]
    fn an_embedded_thumbnail_does_not_end_the_image() {
        let jpeg = encode(&gradient(16, 16, 3), ImageFormat::Jpeg);
        let mut with_thumbnail = vec![0xFF, 0xD8, 0xFF, 0xE1];
        with_thumbnail.extend(u16::try_from(jpeg.len() + 2).unwrap().to_be_bytes());
        with_thumbnail.extend(&jpeg);
        assert!(!is_complete(&with_thumbnail));
        with_thumbnail.extend(&jpeg[2..]);
        assert!(is_complete(&with_thumbnail));
    }
}
