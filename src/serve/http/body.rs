//! Reading a body that may be too large, too slow, or one too many.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use hyper::body::Body as _;
use tokio::sync::OwnedSemaphorePermit;

use super::App;
use crate::serve::error::{Code, Refusal};

/// Bodies up to this size are looked at by the thread that serves all connections, larger ones beside it.
const SMALL: usize = 64 << 10;

/// A body, and its share of the memory for all bodies.
pub(super) struct Held {
    pub bytes: Bytes,
    _share: OwnedSemaphorePermit,
}

impl App {
    /// The whole body.
    ///
    /// # Errors
    /// [`Code::BodyTooLarge`], [`Code::BodyTimeout`], [`Code::UnsupportedMediaType`] for a compressed one,
    /// [`Code::Overloaded`] while other bodies fill the memory, [`Code::Malformed`] if it breaks off.
    pub(super) async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Held, Refusal> {
        let live = self.live();
        let most = live.config.max_body_bytes;
        if let Some(encoding) = headers.get(header::CONTENT_ENCODING).filter(|value| *value != "identity") {
            let message = format!("content-encoding: expected none, got {encoding:?}");
            return Err(Refusal::new(Code::UnsupportedMediaType, message));
        }
        // Without a stated length it may become as long as any.
        let hint = body.size_hint();
        if hint.lower() > most as u64 {
            return Err(too_large(most));
        }
        let claimed = hint.upper().map_or(most, |upper| upper.min(most as u64) as usize);
        let kib = u32::try_from(claimed.div_ceil(1024)).unwrap_or(u32::MAX);
        let share = self.body_memory.clone().try_acquire_many_owned(kib).map_err(|_| Refusal {
            retry_after: Some(1),
            ..Refusal::new(Code::Overloaded, "the memory for request bodies is in use, try again in 1 s")
        })?;
        let limit = Duration::from_millis(live.config.body_timeout_ms);
        let bytes = tokio::time::timeout(limit, collect(body, most)).await.map_err(|_| {
            let message = format!("the body did not arrive within {} ms", limit.as_millis());
            Refusal::new(Code::BodyTimeout, message)
        })??;
        Ok(Held { bytes, _share: share })
    }
}

fn too_large(most: usize) -> Refusal {
    Refusal::new(Code::BodyTooLarge, format!("expected a body of at most {most} bytes"))
}

async fn collect(mut body: Body, most: usize) -> Result<Bytes, Refusal> {
    let mut whole = Bytes::new();
    let mut parts = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|e| Refusal::new(Code::Malformed, format!("the body breaks off: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + parts.len() + data.len() > most {
            return Err(too_large(most));
        }
        // A body that comes in one piece is not copied.
        if whole.is_empty() && parts.is_empty() {
            whole = data;
            continue;
        }
        if parts.is_empty() {
            let rest = body.size_hint().upper().map_or(0, |upper| upper.min(most as u64) as usize);
            parts.reserve((whole.len() + data.len() + rest).min(most));
            parts.extend_from_slice(&std::mem::take(&mut whole));
        }
        parts.extend_from_slice(&data);
    }
    Ok(if parts.is_empty() { whole } else { parts.freeze() })
}

/// Runs `work` on `bytes` of input where it holds up nobody: here if there is little to do, else on a thread.
pub(super) async fn beside<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    if bytes <= SMALL {
        return work();
    }
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(Refusal::new(Code::Internal, "reading the request failed")))
}
