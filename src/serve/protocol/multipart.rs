//! The image in a form as browsers and `curl -F` send it.

use memchr::memmem;

use crate::serve::error::{Code, Refusal};

/// The longest boundary the standard allows.
const MAX_BOUNDARY: usize = 70;

/// The content of the first part of a `multipart/form-data` body that is a file, else of its first part.
///
/// # Errors
/// [`Code::Malformed`] if `content_type` names no boundary, or the body has no complete part.
///
/// # Source
/// RFC 2046, section 5.1.1, and RFC 7578.
pub fn first_image<'a>(content_type: &str, body: &'a [u8]) -> Result<&'a [u8], Refusal> {
    let malformed = |message: &str| Refusal::new(Code::Malformed, format!("multipart: {message}"));
    let boundary = boundary(content_type).ok_or_else(|| malformed("expected a boundary of 1 to 70 characters"))?;
    let delimiter = format!("--{boundary}");
    let mut rest = skip_past(body, delimiter.as_bytes()).ok_or_else(|| malformed("the boundary is not in the body"))?;
    let end = format!("\r\n{delimiter}");
    let mut first = None;
    while let Some(part) = rest.strip_prefix(b"\r\n") {
        let length = memmem::find(part, end.as_bytes()).ok_or_else(|| malformed("a part has no end"))?;
        // A part without headers begins with the empty line itself.
        let lined = &rest[..length + 2];
        let blank = memmem::find(lined, b"\r\n\r\n").ok_or_else(|| malformed("a part has no empty line"))?;
        let (headers, content) = (&lined[..blank], &lined[blank + 4..]);
        if is_file(headers) {
            return Ok(content);
        }
        first.get_or_insert(content);
        rest = &part[length + end.len()..];
    }
    first.ok_or_else(|| malformed("expected a part"))
}

fn skip_past<'a>(body: &'a [u8], delimiter: &[u8]) -> Option<&'a [u8]> {
    memmem::find(body, delimiter).map(|at| &body[at + delimiter.len()..])
}

fn boundary(content_type: &str) -> Option<&str> {
    let parameters = content_type.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
    let (_, value) = parameters.map(|(k, v)| (k.trim(), v)).find(|(key, _)| key.eq_ignore_ascii_case("boundary"))?;
    let value = value.trim().trim_matches('"');
    (1..=MAX_BOUNDARY).contains(&value.len()).then_some(value)
}

/// Whether the part's headers name a file or say that it is an image.
fn is_file(headers: &[u8]) -> bool {
    let headers = String::from_utf8_lossy(headers).to_ascii_lowercase();
    headers.contains("filename=") || headers.contains("content-type: image/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TYPE: &str = "multipart/form-data; boundary=\"XX\"";

    #[test]
    fn the_file_is_found_among_fields() {
        let body = b"preamble\r\n--XX\r\nContent-Disposition: form-data; name=\"top\"\r\n\r\n3\r\n--XX\r\n\
            Content-Disposition: form-data; name=\"image\"; filename=\"a.png\"\r\nContent-Type: image/png\r\n\r\n\
            \x89PNG\r\n--X\r\n\r\n\r\n--XX--\r\n";
        assert_eq!(first_image(TYPE, body).unwrap(), b"\x89PNG\r\n--X\r\n\r\n");
        assert_eq!(first_image(TYPE, b"--XX\r\n\r\nplain\r\n--XX--").unwrap(), b"plain");
        assert_eq!(first_image(TYPE, b"--XX\r\n\r\n\r\n--XX--").unwrap(), b"");
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        for (content_type, body) in [
            ("multipart/form-data", &b"--XX\r\n\r\nplain\r\n--XX--"[..]),
            ("multipart/form-data; boundary=", b"--XX\r\n\r\nplain\r\n--XX--"),
            (TYPE, b""),
            (TYPE, b"--XX--"),
            (TYPE, b"--XX\r\n"),
            (TYPE, b"--XX\r\n\r\nno end"),
            (TYPE, b"--XX\r\nContent-Type: image/png\r\n--XX--"),
        ] {
            let refusal = first_image(content_type, body).unwrap_err();
            assert!(refusal.code == Code::Malformed && refusal.message.starts_with("multipart: "), "{refusal}");
        }
    }

    proptest! {
        #[test]
        fn any_content_comes_back(content in prop::collection::vec(any::<u8>(), 0..200)) {
            let body = [b"--q9q9\r\nContent-Type: image/png\r\n\r\n", &content[..], b"\r\n--q9q9--"].concat();
            prop_assume!(memmem::find(&content, b"\r\n--q9q9").is_none());
            prop_assert_eq!(first_image("multipart/form-data; boundary=q9q9", &body).unwrap(), &content[..]);
        }

        #[test]
        fn no_bytes_make_it_panic(body in prop::collection::vec(prop::sample::select(b"-X\r\n:a".to_vec()), 0..60)) {
            let _ = first_image(TYPE, &body);
        }
    }
}
