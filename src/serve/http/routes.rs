//! Which path leads where.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};

use super::{App, Extras, auth, classify, health, infer, repository, shortened, status, trace, versions};
use crate::serve::dashboard;
use crate::serve::error::{Code, Refusal};

/// The description of all routes below.
const OPENAPI: &str = include_str!("openapi.json");

type Routes<const N: usize> = [(&'static str, MethodRouter<Arc<App>>); N];

/// Routes that need no token: a supervisor has none, and neither has a browser before the page asked for it.
fn open() -> Routes<3> {
    [("/", get(dashboard::page)), ("/v2/health/live", get(health::live)), ("/v2/health/ready", get(health::ready))]
}

/// Routes that change nothing.
fn plain() -> Routes<12> {
    [
        ("/v2", get(health::server)),
        ("/v2/models/{model}", get(infer::metadata)),
        ("/v2/models/{model}/versions/{version}", get(infer::metadata)),
        ("/v2/models/{model}/ready", get(health::model_ready)),
        ("/v2/models/{model}/versions/{version}/ready", get(health::model_ready)),
        ("/v2/models/{model}/infer", post(infer::infer)),
        ("/v2/models/{model}/versions/{version}/infer", post(infer::infer)),
        ("/v2/repository/index", post(repository::index)),
        ("/classify", post(classify::classify)),
        ("/v1/status", get(status::status)),
        ("/metrics", get(health::metrics)),
        ("/openapi.json", get(openapi)),
    ]
}

/// Routes that change what is served.
fn control() -> Routes<4> {
    [
        ("/v1/models/{model}/activate", post(versions::activate)),
        ("/v1/models/{model}/rollback", post(versions::rollback)),
        ("/v2/repository/models/{model}/load", post(repository::load)),
        ("/v2/repository/models/{model}/unload", post(repository::unload)),
    ]
}

/// All routes of the server, and those that an embedding program adds.
pub fn router(app: &Arc<App>, extras: Extras) -> Router {
    let collect = |routes: &mut dyn Iterator<Item = (&'static str, MethodRouter<Arc<App>>)>| {
        routes.fold(Router::new(), |router, (path, methods)| router.route(path, methods))
    };
    let token = || from_fn_with_state(app.clone(), auth::require_token);
    let control = collect(&mut control().into_iter())
        .merge(extras.control_routes.with_state(()))
        .route_layer(from_fn_with_state(app.clone(), auth::require_control));
    let guarded =
        collect(&mut plain().into_iter()).merge(extras.routes.with_state(())).merge(control).route_layer(token());
    collect(&mut open().into_iter())
        .merge(guarded)
        .fallback(nothing_here)
        .method_not_allowed_fallback(other_methods)
        .layer(from_fn_with_state(app.clone(), auth::require_own_host))
        .layer(from_fn_with_state(app.clone(), trace::trace))
        .with_state(app.clone())
}

async fn nothing_here(uri: Uri) -> Refusal {
    Refusal::new(
        Code::NotFound,
        format!("nothing is at {:?}; /openapi.json lists what there is", shortened(uri.path())),
    )
}

async fn other_methods(uri: Uri) -> Refusal {
    Refusal::new(Code::MethodNotAllowed, format!("{:?} takes other methods", shortened(uri.path())))
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], OPENAPI).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn description() -> Value {
        serde_json::from_str(OPENAPI).unwrap()
    }

    #[test]
    fn the_description_has_every_route_and_no_other() {
        let description = description();
        let described: BTreeSet<&str> = description["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let served: BTreeSet<&str> = open()
            .iter()
            .map(|r| r.0)
            .chain(plain().iter().map(|r| r.0))
            .chain(control().iter().map(|r| r.0))
            .collect();
        assert_eq!(described, served);
    }

    #[test]
    fn the_description_has_every_code() {
        let description = description();
        let described = description["components"]["schemas"]["Error"]["properties"]["code"]["enum"].as_array().unwrap();
        let described: BTreeSet<&str> = described.iter().map(|code| code.as_str().unwrap()).collect();
        assert_eq!(described, Code::ALL.iter().map(|code| code.name_and_status().0).collect());
    }
}
