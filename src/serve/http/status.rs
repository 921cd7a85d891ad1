//! `GET /v1/status`: the state of everything in one object, for the dashboard and for shells.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use super::App;
use super::health::probe;
use super::repository::beside_requests;
use super::response::json_response;
use crate::Result;
use crate::board::{Board, available_bytes, resident_bytes};
use crate::serve::error::Refusal;
use crate::serve::models::{Repository, Served, Unanswered, Versions};
use crate::serve::time::rfc3339;
use crate::store::{Manifest, ModelName, Version};

/// Who answered within this time need not be probed: watching must not cost what requests need.
const FRESH: Duration = Duration::from_secs(10);
/// The most classes that are listed.
const MOST_CLASSES: usize = 30;

pub(super) async fn status(State(app): State<Arc<App>>) -> Result<Response, Refusal> {
    let _one = app.looking.lock().await;
    let mut ready = BTreeMap::new();
    for served in app.repository.registry().all() {
        ready.insert(served.name.clone(), !app.is_stopping() && answers(&app, &served).await);
    }
    let adaptation = app.status.clone();
    let answer = beside_requests(&app, move |repository| {
        let models = models(repository, &ready);
        Ok(json!({
            "server": {
                "version": env!("CARGO_PKG_VERSION"),
                "uptime_s": repository.registry().metrics().uptime().as_secs(),
            },
            "models": models,
            "board": board(),
            "adaptation": adaptation.map(|describe| describe()),
        }))
    });
    Ok(json_response(&answer.await?))
}

async fn answers(app: &App, served: &Served) -> bool {
    served.silence() < FRESH || matches!(probe(app, served).await, Ok(()) | Err(Unanswered::Retired))
}

fn models(repository: &Repository, ready: &BTreeMap<ModelName, bool>) -> Vec<Value> {
    let describe = |name: &ModelName| {
        let served = repository.registry().get(name.as_str());
        let active = served.as_ref().map(|served| served.version);
        // A store that is gone for a while hides nothing of what serves.
        let stored = repository.versions(name).ok().flatten();
        let metrics = repository.registry().metrics().model(name);
        let recent = metrics.recent.quantiles([0.5, 0.99]).map(|all| all.map(|d| d.as_secs_f64() * 1e3));
        let (classes, predictions) = served.as_ref().map(|served| classes(served)).unwrap_or_default();
        json!({
            "name": name,
            "active": active,
            "ready": ready.get(name).is_some_and(|ready| *ready),
            "store_active": stored.as_ref().and_then(|stored| stored.active),
            "rollback_to": stored.as_ref().and_then(Versions::rollback_to),
            "versions": stored.map_or_else(Vec::new, |stored| versions(&stored, active)),
            "latency_ms": { "p50": recent.map(|[p50, _]| p50), "p99": recent.map(|[_, p99]| p99) },
            "requests": metrics.answered.get(),
            "queued_images": metrics.queued_images.get(),
            "overloaded": metrics.overloaded.get(),
            "predictions": predictions,
            "classes": classes,
        })
    };
    let served = || repository.registry().all().into_iter().map(|served| served.name.clone()).collect();
    repository.models().unwrap_or_else(|_| served()).iter().map(describe).collect()
}

/// The classes that were predicted, the most frequent first, and the number of all predictions.
fn classes(served: &Served) -> (Vec<Value>, u64) {
    let mut counts: Vec<(usize, u64)> = served.predicted().into_iter().enumerate().filter(|(_, n)| *n > 0).collect();
    counts.sort_by_key(|(class, n)| (std::cmp::Reverse(*n), *class));
    let named =
        |&(class, count): &(usize, u64)| json!({ "name": served.signature.class_names.get(class), "count": count });
    (counts.iter().take(MOST_CLASSES).map(named).collect(), counts.iter().map(|(_, n)| n).sum())
}

fn versions(stored: &Versions, active: Option<Version>) -> Vec<Value> {
    let describe = |(version, manifest): &(Version, Result<Manifest>)| {
        let known = manifest.as_ref().ok();
        json!({
            "version": version,
            "active": active == Some(*version),
            "published": known.map(|m| rfc3339(m.published_unix_s)),
            "parameters": known.map(|m| m.model.params),
            "macs": known.map(|m| m.model.macs),
            "channels": known.and_then(|m| m.model.channels),
            "bytes": known.map(|m| m.model_bytes),
            "damaged": known.is_none(),
            "note": match manifest {
                Ok(manifest) => note(manifest),
                Err(error) => format!("damaged: {error}"),
            },
        })
    };
    stored.all.iter().map(describe).collect()
}

/// Where a version comes from, in a few words.
fn note(manifest: &Manifest) -> String {
    let origin = match &manifest.model.provenance {
        Some(origin) => format!("student made by secateur {}", origin.version),
        None => "published from outside".to_string(),
    };
    let int8 = if manifest.model.int8 { ", calibrated for 8 bits" } else { "" };
    format!("{}, {origin}{int8}", manifest.model.arch)
}

fn board() -> Value {
    let board = Board::read();
    json!({
        "name": board.name,
        "processors": board.processors,
        "temperature_c": board.celsius,
        "load": board.load,
        "mhz": board.mhz,
        "throttled": board.throttled,
        "memory_available": available_bytes(Path::new("/")),
        "memory_used": resident_bytes(),
    })
}
