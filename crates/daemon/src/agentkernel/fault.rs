//! What an error looks like on this wire.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ringfence_supervisor::Error;
use serde_json::json;

use crate::problem;

#[derive(Debug)]
pub(super) struct Fault {
    status: StatusCode,
    pub message: String,
    /// Of a command that did not succeed: its code and what it wrote.
    pub command: Option<(i32, String)>,
}

impl Fault {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), command: None }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A command ran and said no.
    pub(super) fn command(code: i32, output: String) -> Self {
        let message = format!("Command exited with code {code}: {output}");
        Self { status: StatusCode::CONFLICT, message, command: Some((code, output)) }
    }
}

impl From<Error> for Fault {
    fn from(e: Error) -> Self {
        Self::new(problem::status(e.kind), e.message)
    }
}

impl From<PathRejection> for Fault {
    fn from(e: PathRejection) -> Self {
        Self::invalid(e.body_text())
    }
}

impl From<QueryRejection> for Fault {
    fn from(e: QueryRejection) -> Self {
        Self::invalid(e.body_text())
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut body = json!({ "success": false, "error": self.message });
        if let (Some((code, output)), Some(body)) = (self.command, body.as_object_mut()) {
            body.insert("exit_code".into(), code.into());
            body.insert("output".into(), output.into());
        }
        let mut response = (self.status, Json(body)).into_response();
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
