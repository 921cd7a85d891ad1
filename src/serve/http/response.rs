//! Answers as HTTP responses.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use crate::serve::error::{Code, Refusal};

/// A response of JSON.
pub(super) fn json_response(value: &impl Serialize) -> Response {
    // What is answered always becomes JSON: strings, whole numbers, finite floats.
    let body = serde_json::to_vec(value).unwrap_or_default();
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (name, status) = self.code.name_and_status();
        let mut response = json_response(&json!({ "error": self.message, "code": name }));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code == Code::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
