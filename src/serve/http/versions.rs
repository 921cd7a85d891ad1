//! Going to another version of a model, or back.

use std::fmt::Display;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value, json};

use super::App;
use super::infer::Named;
use super::repository::{beside_requests, model_name};
use super::response::json_response;
use crate::Error;
use crate::serve::error::{Code, Refusal};
use crate::serve::models::Repository;
use crate::serve::net::Peer;
use crate::store::{ModelName, Version};

/// The largest whole number up to which JSON's are exact everywhere.
const MOST_VERSION: u64 = (1 << 53) - 1;

/// The body of `activate`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Activate {
    version: Number,
}

/// The body of `rollback`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rollback {
    /// Only if this is the active version still.
    #[serde(default)]
    from: Option<Number>,
}

pub(super) async fn activate(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    named: Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let Activate { version } = json_body(&app, &headers, body).await?;
    let version = version_of(&version)?;
    let work = move |repository: &Repository, name: &ModelName| {
        repository.activate(name, version).map(|()| version).map_err(|e| refused(&e))
    };
    change(&app, ("activate", peer), &named, work).await
}

pub(super) async fn rollback(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    named: Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let Rollback { from } = json_body(&app, &headers, body).await?;
    let from = from.as_ref().map(version_of).transpose()?;
    let work = move |repository: &Repository, name: &ModelName| {
        let moved = || Refusal::new(Code::Conflict, format!("{name}: another version is active by now"));
        repository.roll_back(name, from).map_err(|e| refused(&e))?.ok_or_else(moved)
    };
    change(&app, ("rollback", peer), &named, work).await
}

/// Does one change after the other, and writes each into the log: who, what, from which version to which.
async fn change(
    app: &App,
    (what, peer): (&str, Peer),
    named: &Named,
    work: impl FnOnce(&Repository, &ModelName) -> Result<Version, Refusal> + Send + 'static,
) -> Result<Response, Refusal> {
    let name = model_name(named)?;
    let _one = app.changing.lock().await;
    let before = app.repository.registry().get(name.as_str()).map(|served| served.version);
    let wanted = name.clone();
    let outcome = beside_requests(app, move |repository| {
        let unknown = || Refusal::new(Code::ModelNotFound, format!("no model {wanted}"));
        let known = repository.models().map_err(|e| refused(&e))?.contains(&wanted);
        if known { work(repository, &wanted) } else { Err(unknown()) }
    });
    let from = before.map_or_else(|| "none".to_string(), |version| version.to_string());
    match outcome.await {
        Ok(version) => {
            log::info!("change requested what={what} model={name} from={from} to={version} peer={peer}");
            Ok(json_response(&json!({ "name": name.as_str(), "version": version, "before": before })))
        }
        Err(refusal) => {
            log::warn!("change refused what={what} model={name} from={from} peer={peer}: {refusal}");
            Err(refusal)
        }
    }
}

fn refused(error: &Error) -> Refusal {
    let code = match error {
        Error::Usage(_) => Code::VersionNotFound,
        Error::Overloaded(_) => Code::Overloaded,
        Error::Io { .. } => Code::Unavailable,
        _ => Code::ModelRefused,
    };
    Refusal::new(code, error.to_string())
}

/// The body as JSON that says it is: a page of another site cannot send such a request unasked.
async fn json_body<T: DeserializeOwned>(app: &App, headers: &HeaderMap, body: Body) -> Result<T, Refusal> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !given.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        let message = format!("content-type: expected application/json, got {:?}", super::shortened(given));
        return Err(Refusal::new(Code::UnsupportedMediaType, message));
    }
    let held = app.read(headers, body).await?;
    // A struct could be read from an array as well.
    let object: Map<String, Value> = serde_json::from_slice(&held.bytes).map_err(malformed)?;
    serde_json::from_value(object.into()).map_err(malformed)
}

/// Whole numbers are whole in JSON however they are written.
fn version_of(number: &Number) -> Result<Version, Refusal> {
    let whole = number.as_u64().or_else(|| number.as_f64().filter(|n| n.fract() == 0.0 && *n >= 0.0).map(|n| n as u64));
    let refuse = || malformed(format!("expected a version, a whole number within 1..={MOST_VERSION}, got {number}"));
    whole.filter(|n| (1..=MOST_VERSION).contains(n)).map(Version).ok_or_else(refuse)
}

fn malformed(error: impl Display) -> Refusal {
    Refusal::new(Code::Malformed, format!("body: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_whole_number_in_any_spelling() {
        let read = |text: &str| version_of(&serde_json::from_str(text).unwrap()).map(|version| version.0).ok();
        assert_eq!(["1", "3.0", "2e1", "9007199254740991"].map(read), [1, 3, 20, MOST_VERSION].map(Some));
        assert_eq!(["0", "-1", "1.5", "9007199254740992", "1e300", "-0.0"].map(read), [None; 6]);
    }
}
