//! `POST /classify`: an image in, its most likely classes out, for people and cameras.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{FromRequestParts, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::beside;
use super::infer::{SERVER_TIMING, answered, timing};
use super::response::json_response;
use super::{App, shortened};
use crate::data::Image;
use crate::model::rank;
use crate::serve::error::{Code, Refusal};
use crate::serve::models::Served;
use crate::serve::protocol::first_image;
use crate::store::{ModelName, Version};

/// An image that was classified.
#[derive(Debug, Clone)]
pub struct SeenImage {
    /// The file as it was sent: JPEG, PNG, WebP or BMP.
    pub bytes: Bytes,
    /// The model that classified it.
    pub model: ModelName,
    /// Its version.
    pub version: Version,
    /// Class and probability, the most likely first, as many as the client asked for.
    pub ranked: Vec<(usize, f32)>,
}

/// Is shown every image that `/classify` answered, on the thread that serves all connections: it must not wait.
pub type ImageHook = Arc<dyn Fn(SeenImage) + Send + Sync>;

/// Classes named where the client does not say how many.
const TOP: usize = 5;
/// As many as any model has, and more.
const MOST_TOP: usize = 1_000_000;

/// The query.
#[derive(Debug, Deserialize)]
pub(super) struct Options {
    model: Option<String>,
    top: Option<String>,
}

impl FromRequestParts<Arc<App>> for Options {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refusal> {
        let options = Query::<Self>::from_request_parts(parts, app).await;
        options.map(|Query(options)| options).map_err(|e| Refusal::new(Code::InvalidParameter, format!("query: {e}")))
    }
}

pub(super) async fn classify(
    State(app): State<Arc<App>>,
    options: Options,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let arrived = Instant::now();
    let find = || find(&app, options.model.as_deref());
    find()?;
    let top = top(options.top.as_deref())?;
    let live = app.live();
    let held = app.read(&headers, body).await?;
    let file = file(&headers, &held.bytes)?;
    let (limits, bytes) = (live.config.image_limits(), file.clone());
    let invalid = |e: crate::Error| Refusal::new(Code::InvalidImage, e.to_string());
    // How long decoding takes does not show in the size of a file, so even small ones are decoded beside.
    let image = beside(usize::MAX, move || Image::decode("image", &bytes, &limits).map_err(invalid)).await?;
    let image = Arc::new(image);
    let deadline = arrived + Duration::from_millis(live.config.deadline_ms);
    let (served, reply) = answered(find, deadline, |served| {
        let (image, served) = (image.clone(), served.clone());
        beside(image.pixels().len(), move || Ok((served.signature.preprocess.eval(&image), 1)))
    })
    .await?;
    let ranked = rank(&reply.logits, top);
    let classes: Vec<Value> = ranked.iter().map(|&(class, probability)| named(&served, class, probability)).collect();
    let answer = json!({
        "model": served.name.as_str(), "version": served.version.to_string(), "classes": classes,
    });
    let mut response = json_response(&answer);
    response.headers_mut().insert(SERVER_TIMING, timing(&reply));
    if let Some(hook) = &app.on_image {
        hook(SeenImage { bytes: file, model: served.name.clone(), version: served.version, ranked });
    }
    Ok(response)
}

fn named(served: &Served, class: usize, probability: f32) -> Value {
    let name = served.signature.class_names.get(class);
    json!({ "class": name, "index": class, "probability": probability })
}

/// The model that is asked for, or the only one there is.
fn find(app: &App, name: Option<&str>) -> Result<Arc<Served>, Refusal> {
    if let Some(name) = name {
        return app.served(name, None);
    }
    let all = app.repository.registry().all();
    match &all[..] {
        [only] => Ok(only.clone()),
        [] => Err(Refusal::new(Code::Unavailable, "no model is served")),
        several => {
            let names: Vec<&str> = several.iter().map(|served| served.name.as_str()).collect();
            let message = format!("expected ?model= with one of {}", names.join(", "));
            Err(Refusal::new(Code::InvalidParameter, message))
        }
    }
}

fn top(text: Option<&str>) -> Result<usize, Refusal> {
    let Some(text) = text else { return Ok(TOP) };
    let number = text.parse().ok().filter(|top| (1..=MOST_TOP).contains(top));
    let refuse = || format!("top: expected a whole number within 1..={MOST_TOP}, got {:?}", shortened(text));
    number.ok_or_else(|| Refusal::new(Code::InvalidParameter, refuse()))
}

/// The image file: the body itself, or the file in a form.
fn file(headers: &HeaderMap, body: &Bytes) -> Result<Bytes, Refusal> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        "multipart/form-data" => Ok(body.slice_ref(first_image(content_type, body)?)),
        // The content tells what it is, whatever the header says; `curl --data-binary` says the last.
        "" | "application/octet-stream" | "application/x-www-form-urlencoded" => Ok(body.clone()),
        image if image.starts_with("image/") => Ok(body.clone()),
        other => {
            let message = format!("expected image/*, application/octet-stream or multipart/form-data, got {other:?}");
            Err(Refusal::new(Code::UnsupportedMediaType, message))
        }
    }
}
