//! The model repository extension: what there is, load, unload.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::infer::Named;
use super::response::json_response;
use super::{App, shortened};
use crate::Error;
use crate::serve::error::{Code, Refusal};
use crate::serve::models::Repository;
use crate::store::ModelName;

pub(super) async fn index(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response, Refusal> {
    let held = app.read(&headers, body).await?;
    let ready_only = ready_only(&held.bytes)?;
    let mut entries = beside_requests(&app, |repository| repository.index().map_err(|e| refused(&e))).await?;
    entries.retain(|entry| !ready_only || entry.state == "READY");
    Ok(json_response(&entries))
}

/// What the body asks for: `{"ready": true}` for models that answer, everything otherwise.
fn ready_only(body: &[u8]) -> Result<bool, Refusal> {
    let malformed =
        |what: String| Refusal::new(Code::Malformed, format!("expected {{\"ready\": true}} or nothing, got {what}"));
    if body.is_empty() {
        return Ok(false);
    }
    let options: Map<String, Value> = serde_json::from_slice(body).map_err(|e| malformed(e.to_string()))?;
    match options.get("ready") {
        None => Ok(false),
        Some(Value::Bool(ready)) => Ok(*ready),
        Some(other) => Err(malformed(format!("ready: {other}"))),
    }
}

/// What a client sends along has no meaning here: the store says which version is active.
pub(super) async fn load(
    State(app): State<Arc<App>>,
    named: Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    app.read(&headers, body).await?;
    let name = model_name(&named)?;
    let _one = app.changing.lock().await;
    let wanted = name.clone();
    let version = beside_requests(&app, move |repository| repository.load(&wanted).map_err(|e| refused(&e))).await?;
    Ok(json_response(&json!({ "name": name.as_str(), "version": version.to_string() })))
}

pub(super) async fn unload(
    State(app): State<Arc<App>>,
    named: Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    app.read(&headers, body).await?;
    let name = model_name(&named)?;
    let _one = app.changing.lock().await;
    let wanted = name.clone();
    if beside_requests(&app, move |repository| Ok(repository.unload(&wanted))).await? {
        return Ok(json_response(&json!({ "name": name.as_str() })));
    }
    Err(Refusal::new(Code::ModelNotFound, format!("no model {name} is served")))
}

pub(super) fn model_name(named: &Named) -> Result<ModelName, Refusal> {
    let name = named.model.as_str();
    let unknown = |_| Refusal::new(Code::ModelNotFound, format!("no model {:?}", shortened(name)));
    name.parse().map_err(unknown)
}

fn refused(error: &Error) -> Refusal {
    let code = if matches!(error, Error::Usage(_)) { Code::ModelNotFound } else { Code::ModelRefused };
    Refusal::new(code, error.to_string())
}

/// Runs `work` on a thread of its own: loading takes long, and must not take the place of those that decode images.
pub(super) async fn beside_requests<T: Send + 'static>(
    app: &App,
    work: impl FnOnce(&Repository) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let repository = app.repository.clone();
    let (done, outcome) = tokio::sync::oneshot::channel();
    let failed = |what: &str| Refusal::new(Code::Internal, format!("the repository cannot be used: {what}"));
    let thread = std::thread::Builder::new().name("repository".into());
    // Whoever asked may be gone.
    let spawned = thread.spawn(move || drop(done.send(work(&repository))));
    spawned.map_err(|e| failed(&e.to_string()))?;
    outcome.await.unwrap_or_else(|_| Err(failed("it panicked")))
}
