//! What a request carries, read so that every mistake in it is answered in the one shape of errors.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;

use super::{Handled, MOST_BODY};
use crate::App;
use crate::problem::Problem;

/// The names in the path of a request.
pub(crate) struct Path<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<App>> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let names = axum::extract::Path::<T>::from_request_parts(parts, app).await;
        names.map(|axum::extract::Path(names)| Self(names)).map_err(|e| {
            Problem::invalid(format!("a name in the path cannot be read: {}", e.body_text()))
        })
    }
}

/// A JSON body, of a request that says that it is one: a web page cannot send that without asking.
pub(crate) struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let kind = kind.and_then(|v| v.split(';').next()).unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "invalid",
                "the body is not said to be JSON",
            )
            .with("send Content-Type: application/json"));
        }
        let bytes = Bytes::from_request(request, app).await.map_err(|e| body(&e))?;
        parsed(&bytes).map(Self).map_err(|e| Problem::invalid(format!("body: {e}")))
    }
}

/// `5.0` is an integer in JSON Schema, and so for programs that know numbers of one kind only.
pub(crate) fn parsed<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    match serde_json::from_slice(bytes) {
        Err(e) if e.is_data() && e.to_string().contains("floating point") => {
            let mut value: serde_json::Value = serde_json::from_slice(bytes)?;
            whole_numbers(&mut value);
            serde_json::from_value(value).map_err(|_| e)
        }
        parsed => parsed,
    }
}

fn whole_numbers(value: &mut serde_json::Value) {
    use serde_json::Value;
    /// The first that a float cannot tell from the next.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(n) if n.is_f64() => {
            let float = n.as_f64().unwrap_or(f64::NAN);
            if float.fract() == 0.0 && float.abs() < EXACT {
                *n = (float as i64).into();
            }
        }
        Value::Array(all) => all.iter_mut().for_each(whole_numbers),
        Value::Object(all) => all.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

pub(crate) fn body(e: &BytesRejection) -> Problem {
    if e.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let message = format!("the body is larger than the {} MiB that are taken", MOST_BODY >> 20);
        return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", message);
    }
    Problem::invalid("the body cannot be read")
}

/// What stands behind the question mark.
pub(crate) fn query<T>(parsed: Result<Query<T>, QueryRejection>) -> Handled<T> {
    parsed.map(|Query(query)| query).map_err(|e| Problem::invalid(e.body_text()))
}

#[cfg(test)]
mod tests {
    use ringfence_api::{ExecRequest, Extend};

    use super::*;

    #[test]
    fn whole_numbers_are_integers_however_they_are_written() {
        let seconds = |text: &str| parsed::<Extend>(text.as_bytes()).map(|e| e.seconds);
        assert_eq!(seconds(r#"{"seconds": 5.0}"#).unwrap(), 5);
        assert_eq!(seconds(r#"{"seconds": 5e2}"#).unwrap(), 500);
        for wrong in ["5.5", "-1.0", "1e300", "\"5\""] {
            assert!(seconds(&format!("{{\"seconds\": {wrong}}}")).is_err(), "{wrong}");
        }
        let text = br#"{"argv": ["x"], "timeout_ms": 1000.0}"#;
        assert_eq!(parsed::<ExecRequest>(text).unwrap().timeout_ms, Some(1000));
    }
}
