//! The answer when no connection can be had.

use http::{HeaderValue, Response, header, request::Parts};

use crate::Error;

/// Makes the layer's own answers. Closures `Fn(&Error, &Parts) -> Response<B>` implement it.
///
/// Of the request's parts it sees method, URI, version and the headers `accept` and `content-type`.
/// The client learns a status; the cause is for the log. [`error_response`] gives the status and
/// `Retry-After` to start from.
pub trait OnError<B> {
    /// The answer to a request that could not be served because of `error`.
    fn response(&self, error: &Error, parts: &Parts) -> Response<B>;
}

impl<B, F> OnError<B> for F
where
    F: Fn(&Error, &Parts) -> Response<B>,
{
    fn response(&self, error: &Error, parts: &Parts) -> Response<B> {
        self(error, parts)
    }
}

/// Answers with an empty body. The default.
#[derive(Debug, Clone, Copy, Default)]
pub struct EmptyBody;

impl<B: Default> OnError<B> for EmptyBody {
    fn response(&self, error: &Error, parts: &Parts) -> Response<B> {
        error_response(error, parts, B::default())
    }
}

/// Answers with a body of `application/problem+json` (RFC 9457), for bodies made from a `String`.
///
/// ```
/// use http::Request;
/// use sea_orm::{ConnAcquireErr, DbErr};
/// use tower_sea_orm::{Error, OnError, ProblemJson};
///
/// let error = Error::of(&DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)).unwrap();
/// let (parts, ()) = Request::new(()).into_parts();
/// let response: http::Response<String> = ProblemJson.response(&error, &parts);
/// assert_eq!(response.headers()["content-type"], "application/problem+json");
/// assert_eq!(response.body(), r#"{"type":"about:blank","title":"the service is busy","status":503}"#);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct ProblemJson;

impl<B: From<String>> OnError<B> for ProblemJson {
    fn response(&self, error: &Error, parts: &Parts) -> Response<B> {
        let status = error.status();
        let body = format!(r#"{{"type":"about:blank","title":"{}","status":{}}}"#, error.title(), status.as_u16());
        let mut response = error_response(error, parts, B::from(body));
        response
            .headers_mut()
            .entry(header::CONTENT_TYPE)
            .or_insert(HeaderValue::from_static("application/problem+json"));
        response
    }
}

/// `body` with the status and `Retry-After` that belong to `error`.
///
/// A gRPC request gets gRPC's own form: status 200 with `grpc-status` 14 (`UNAVAILABLE`) or
/// 13 (`INTERNAL`).
pub fn error_response<B>(error: &Error, parts: &Parts, body: B) -> Response<B> {
    let mut response = Response::new(body);
    let kind = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let headers = response.headers_mut();
    if kind.starts_with(b"application/grpc") {
        let code = if error.is_retryable() { "14" } else { "13" };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(code));
        headers.insert("grpc-message", HeaderValue::from_static(error.title()));
        return response;
    }
    if let Some(wait) = error.retry_after() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs()));
    }
    *response.status_mut() = error.status();
    response
}
