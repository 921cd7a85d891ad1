//! The page at `/`: what the server does, for people. It is the same for everybody and holds no data; its script asks
//! `/v1/status` for them, with the token if there is one.

use std::sync::LazyLock;

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use sha2::{Digest, Sha256};

const MARKUP: &str = include_str!("page.html");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// The page in one piece, and the policy that lets a browser run its script and nothing else.
struct Page {
    html: Bytes,
    policy: String,
}

static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let html = MARKUP
        .replace("<style></style>", &format!("<style>{STYLE}</style>"))
        .replace("<script></script>", &format!("<script>{SCRIPT}</script>"));
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        source(SCRIPT),
        source(STYLE)
    );
    Page { html: html.into(), policy }
});

/// `GET /`.
pub(super) async fn page() -> Response {
    let text = |name: HeaderName, value: &'static str| (name, HeaderValue::from_static(value));
    let headers = [
        text(header::CONTENT_TYPE, "text/html; charset=utf-8"),
        text(header::CACHE_CONTROL, "no-cache"),
        text(header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        text(header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE.policy.as_str())),
    ];
    (headers, PAGE.html.clone()).into_response()
}

/// What a policy calls an inline script or style: its digest.
fn source(text: &str) -> String {
    format!("sha256-{}", base64(&Sha256::digest(text)))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, i| bits << 8 | usize::from(chunk.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            text.push(if i > chunk.len() { '=' } else { char::from(DIGITS[bits >> (18 - 6 * i) & 63]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xef, 0xfe]), "/+/+");
    }

    #[test]
    fn the_page_is_small_whole_and_asks_nobody_else() {
        let html = std::str::from_utf8(&PAGE.html).unwrap();
        assert!(html.len() < 40 << 10, "{} bytes", html.len());
        assert!(html.contains(STYLE) && html.contains(SCRIPT));
        assert_eq!((html.matches("<style").count(), html.matches("<script").count()), (1, 1));
        let namespace = "http://www.w3.org/2000/svg";
        assert!(!html.replace(namespace, "").contains("://"), "an address of somebody else");
        // The policy forbids them, so they would do nothing.
        for inline in [" style=\"", " onclick=", "innerHTML", "eval("] {
            assert!(!html.contains(inline), "{inline}");
        }
    }
}
