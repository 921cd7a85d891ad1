//! Forms: the first line is the content type, the rest is the body.
#![no_main]

use libfuzzer_sys::fuzz_target;
use secateur::serve::protocol::first_image;

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (Some(head), Some(body)) = (parts.next(), parts.next()) else { return };
    let Ok(content_type) = std::str::from_utf8(head) else { return };
    if let Ok(image) = first_image(content_type, body) {
        assert!(image.len() <= body.len());
    }
});
