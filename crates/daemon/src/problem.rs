//! What every error looks like on the wire. The only place that knows status codes.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ringfence_api::ErrorBody;
use ringfence_supervisor::{Error, Kind};

#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    reason: &'static str,
    message: String,
    remedy: String,
}

impl Problem {
    pub(crate) fn new(
        status: StatusCode,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { status, reason, message: message.into(), remedy: String::new() }
    }

    pub(crate) fn with(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Kind::Invalid.text(), message)
    }

    pub(crate) fn forbidden(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "the token is missing or wrong")
            .with("send the token of the daemon's state directory: Authorization: Bearer TOKEN")
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Kind::Internal.text(), message)
    }
}

impl Problem {
    /// For programs.
    pub(crate) fn reason(&self) -> &'static str {
        self.reason
    }

    /// As it is said.
    pub(crate) fn body(self) -> ringfence_api::Problem {
        ringfence_api::Problem {
            status: self.status.as_u16(),
            reason: self.reason.into(),
            message: self.message,
            remedy: self.remedy,
        }
    }
}

/// The status of each kind of error.
pub(crate) fn status(kind: Kind) -> StatusCode {
    match kind {
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Conflict | Kind::Lost => StatusCode::CONFLICT,
        Kind::Changed => StatusCode::PRECONDITION_FAILED,
        Kind::Busy => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Limit => StatusCode::TOO_MANY_REQUESTS,
        Kind::Refused => StatusCode::FORBIDDEN,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::Alone | Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<Error> for Problem {
    fn from(e: Error) -> Self {
        let (status, reason) = (status(e.kind), e.kind.text());
        Self { status, reason, message: e.message, remedy: e.remedy }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status;
        let body = ErrorBody { error: self.body() };
        let mut response = (status, Json(body)).into_response();
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
