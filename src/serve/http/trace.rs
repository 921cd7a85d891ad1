//! What is noted about every request: an id, a count, a log line.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use super::App;
use crate::serve::net::Peer;

/// Names a request in the client's logs and in ours.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longer ones are replaced.
const MAX_ID: usize = 128;

/// Gives every answer its request's id, counts it, logs it.
pub(super) async fn trace(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = request.headers().get(REQUEST_ID).filter(|id| is_plain(id)).cloned().unwrap_or_else(new_id);
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let route = path.as_ref().map_or("other", MatchedPath::as_str);
    let peer = request.extensions().get::<Peer>().copied();
    let mut response = next.run(request).await;
    let (status, took) = (response.status().as_u16(), start.elapsed());
    app.metrics.answered(route, status, took);
    let level = match status {
        500.. => log::Level::Warn,
        _ if app.live().config.access_log => log::Level::Info,
        _ => log::Level::Debug,
    };
    if log::log_enabled!(level) {
        let peer = peer.map_or_else(String::new, |peer| peer.to_string());
        let (id, ms) = (id.to_str().unwrap_or_default(), took.as_secs_f64() * 1e3);
        log::log!(level, "request method={method} route={route} status={status} ms={ms:.3} peer={peer} id={id}");
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

fn is_plain(id: &HeaderValue) -> bool {
    (1..=MAX_ID).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

/// The time of the first request and a number: distinct over restarts.
fn new_id() -> HeaderValue {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static FIRST: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    let since = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    let (first, number) = (FIRST.get_or_init(since), NEXT.fetch_add(1, Ordering::Relaxed));
    // Hexadecimal digits are always a header's value.
    HeaderValue::try_from(format!("{first:x}-{number:x}")).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinct_and_plain() {
        let (a, b) = (new_id(), new_id());
        assert!(a != b && is_plain(&a) && is_plain(&b), "{a:?} {b:?}");
        for id in ["", "a b", &"x".repeat(129)] {
            assert!(!is_plain(&HeaderValue::from_str(id).unwrap()), "{id}");
        }
    }
}
