//! Whether the server lives and its models answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use super::App;
use super::infer::{Named, find};
use super::response::json_response;
use crate::serve::error::{Code, Refusal};
use crate::serve::models::{Served, Unanswered};
use crate::serve::protocol::ServerMetadata;

/// How long a probe's inference may take.
const PROBE: Duration = Duration::from_secs(5);

pub(super) async fn server() -> Response {
    json_response(&ServerMetadata::this())
}

pub(super) async fn live() -> Response {
    json_response(&json!({ "live": true }))
}

/// Ready is a server whose every model has just answered.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Response, Refusal> {
    if app.is_stopping() {
        return Err(Refusal::new(Code::Unavailable, "the server stops"));
    }
    let all = app.repository.registry().all();
    if all.is_empty() {
        return Err(Refusal::new(Code::Unavailable, "no model is served"));
    }
    for served in all {
        let name = served.name.clone();
        match probe(&app, &served).await {
            // Its successor answered its smoke inference a moment ago.
            Ok(()) | Err(Unanswered::Retired) => {}
            Err(Unanswered::Refused(refusal)) => {
                return Err(Refusal::new(Code::Unavailable, format!("{name}: {refusal}")));
            }
        }
    }
    Ok(json_response(&json!({ "ready": true })))
}

pub(super) async fn model_ready(State(app): State<Arc<App>>, named: Named) -> Result<Response, Refusal> {
    let served = find(&app, &named)?;
    match probe(&app, &served).await {
        Ok(()) | Err(Unanswered::Retired) => {}
        Err(Unanswered::Refused(refusal)) => return Err(Refusal::new(Code::Unavailable, refusal.message)),
    }
    Ok(json_response(&json!({ "name": served.name.as_str(), "ready": true })))
}

pub(super) async fn probe(app: &App, served: &Served) -> Result<(), Unanswered> {
    let deadline = Instant::now() + PROBE;
    let _one = app.probing.lock().await;
    served.probe(deadline).await.map(drop)
}

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    use axum::http::{HeaderValue, header};
    use axum::response::IntoResponse;
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    let more = app.more_metrics.as_ref().map(|more| more()).unwrap_or_default();
    ([(header::CONTENT_TYPE, text)], app.metrics.render() + &more).into_response()
}
