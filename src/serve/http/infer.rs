//! `POST /v2/models/{model}/infer`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::App;
use super::body::beside;
use crate::serve::error::{Code, Refusal};
use crate::serve::models::{Reply, Served, Unanswered};
use crate::serve::protocol::{Answer, InferRequest, ModelMetadata, Wanted};

/// Says how many bytes of JSON stand in front of binary tensors.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Where the time of an answer went, in the standard form that browsers show.
pub(super) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The model and perhaps the version that a path names.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Named {
    pub model: String,
    version: Option<String>,
}

impl FromRequestParts<Arc<App>> for Named {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refusal> {
        let named = Path::<Self>::from_request_parts(parts, app).await;
        named.map(|Path(named)| named).map_err(|e| Refusal::new(Code::Malformed, format!("path: {e}")))
    }
}

/// The version that a path names.
pub(super) fn find(app: &App, named: &Named) -> Result<Arc<Served>, Refusal> {
    app.served(&named.model, named.version.as_deref())
}

pub(super) async fn metadata(State(app): State<Arc<App>>, named: Named) -> Result<Response, Refusal> {
    let served = find(&app, &named)?;
    let metadata = ModelMetadata::new(served.name.as_str(), &served.version.to_string(), &served.signature);
    Ok(super::response::json_response(&metadata))
}

pub(super) async fn infer(
    State(app): State<Arc<App>>,
    named: Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let arrived = Instant::now();
    // A name that is not served is told before the body is waited for.
    find(&app, &named)?;
    let json_length = json_length(&headers)?;
    let held = app.read(&headers, body).await?;
    let size = held.bytes.len();
    let request = beside(size, move || InferRequest::parse(&held.bytes, json_length).map(|r| (r, held))).await?;
    let request = Arc::new(request);
    let (asked, _) = &*request;
    let longest = Duration::from_millis(app.live().config.deadline_ms);
    let deadline = arrived + asked.timeout.map_or(longest, |timeout| timeout.min(longest));
    let (served, reply) = answered(
        || find(&app, &named),
        deadline,
        |served| {
            let (request, served) = (request.clone(), served.clone());
            beside(size, move || request.0.images(&served.signature))
        },
    )
    .await?;
    Ok(encoded(asked, &served, &reply))
}

/// Asks the version that `find` finds; should it be on its way out, the one that took its place. `images` prepares the
/// input for a version.
pub(super) async fn answered<F: Future<Output = Result<(Vec<f32>, usize), Refusal>>>(
    find: impl Fn() -> Result<Arc<Served>, Refusal>,
    deadline: Instant,
    images: impl Fn(&Arc<Served>) -> F,
) -> Result<(Arc<Served>, Reply), Refusal> {
    loop {
        let served = find()?;
        let (images, count) = images(&served).await?;
        let queued = Instant::now();
        match served.infer(images, count, deadline).await {
            Ok(reply) => {
                served.answered(&reply, queued.elapsed());
                return Ok((served, reply));
            }
            Err(Unanswered::Retired) => {}
            Err(Unanswered::Refused(refusal)) => return Err(refusal),
        }
    }
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Refusal> {
    let Some(value) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    let refuse = || Refusal::new(Code::Malformed, format!("{JSON_LENGTH}: expected a number of bytes, got {value:?}"));
    number.map(Some).ok_or_else(refuse)
}

fn encoded(request: &InferRequest, served: &Served, reply: &Reply) -> Response {
    let version = served.version.to_string();
    let answer = Answer {
        id: request.id.as_deref(),
        model: served.name.as_str(),
        version: &version,
        class_names: &served.signature.class_names,
        logits: &reply.logits,
    };
    let Wanted { binary, .. } = request.wanted;
    let encoded = answer.encode(request.wanted);
    let content_type = if binary { "application/octet-stream" } else { "application/json" };
    let mut response = encoded.body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(SERVER_TIMING, timing(reply));
    if let Some(length) = encoded.json_length {
        response.headers_mut().insert(JSON_LENGTH, HeaderValue::from(length));
    }
    response
}

/// How long the request waited and was computed, in milliseconds.
pub(super) fn timing(reply: &Reply) -> HeaderValue {
    let [queue, compute] = [reply.queue, reply.compute].map(|time| time.as_secs_f64() * 1e3);
    // Digits and points are always a header's value.
    HeaderValue::try_from(format!("queue;dur={queue:.3}, compute;dur={compute:.3}"))
        .unwrap_or_else(|_| HeaderValue::from_static(""))
}
