//! The layers' own answers.

use std::marker::PhantomData;

use http::{HeaderMap, HeaderValue, Request, Response, header, request::Parts};

use crate::{
    Error, Outcome,
    session::{Ended, GRPC_STATUS, SessionGuard, is_success},
    telemetry,
};

/// Makes a layer's own responses. Functions and closures `Fn(&Error, &Parts) -> Response<B>` implement it,
/// and [`response_for_error`](crate::DbSessionLayer::response_for_error) takes them.
///
/// The client gets a status; the cause belongs in the log. Start from [`error_response`], which
/// sets the status and `Retry-After`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` makes no answer with a body of type `{B}`",
    label = "the layer's own answers need the body type of the service inside of it",
    note = "an empty body, the default, needs `{B}: Default`",
    note = "say `.response_for_error(|error, parts| error_response(error, parts, body))` with a body of that type",
    note = "or put `.map_response_body(axum::body::Body::new)` (tower-http) between this layer and the one inside of it that changes the body, such as `TraceLayer`",
    note = "or put this layer inside of that one: see \"The order of layers\" in the documentation of `tower_sea_orm`"
)]
pub trait ResponseForError<B> {
    /// `true` if [`response_for_error`](Self::response_for_error) reads more of the request than `content-type`. In that
    /// case, the request's head is copied before the inner service gets it, which costs requests
    /// without an error as well.
    const READS_REQUEST: bool = true;

    /// Returns the response to a request that could not be served because of `error`. The parts are
    /// those that the request had when it reached the layer: method, URI, version, headers and
    /// extensions.
    fn response_for_error(&self, error: &Error, parts: &Parts) -> Response<B>;
}

impl<B, F> ResponseForError<B> for F
where
    F: Fn(&Error, &Parts) -> Response<B>,
{
    fn response_for_error(&self, error: &Error, parts: &Parts) -> Response<B> {
        self(error, parts)
    }
}

/// Answers with an empty body. The default.
#[derive(Debug, Clone, Copy, Default)]
pub struct DefaultResponseForError;

#[diagnostic::do_not_recommend]
impl<B: Default> ResponseForError<B> for DefaultResponseForError {
    const READS_REQUEST: bool = false;

    fn response_for_error(&self, error: &Error, parts: &Parts) -> Response<B> {
        error_response(error, parts, B::default())
    }
}

/// Answers with a body of `application/problem+json` (RFC 9457), for bodies made from a `String`; a gRPC
/// request gets the response of [`error_response`], without a body. For
/// [`response_for_error`](crate::DbSessionLayer::response_for_error).
///
/// ```
/// use http::{Request, Response};
/// use sea_orm::{ConnAcquireErr, DbErr};
/// use tower_sea_orm::{Error, problem_json};
///
/// let error = Error::of(&DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)).unwrap();
/// let (parts, ()) = Request::new(()).into_parts();
/// let response: Response<String> = problem_json(&error, &parts);
/// assert_eq!(response.headers()["content-type"], "application/problem+json");
/// assert_eq!(response.body(), r#"{"type":"about:blank","title":"the service is busy","status":503}"#);
/// ```
pub fn problem_json<B: From<String>>(error: &Error, parts: &Parts) -> Response<B> {
    if is_grpc(&parts.headers) {
        return error_response(error, parts, B::from(String::new()));
    }
    let status = error.status();
    let body = format!(
        r#"{{"type":"about:blank","title":"{}","status":{}}}"#,
        error.title(),
        status.as_u16()
    );
    let mut response = error_response(error, parts, B::from(body));
    let kind = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Returns a response of `body` with the status and `Retry-After` that belong to `error`.
///
/// A gRPC request gets gRPC's own form: status 200 and [`grpc_code`](Error::grpc_code) as `grpc-status` among
/// the headers, where `body` should be empty.
pub fn error_response<B>(error: &Error, parts: &Parts, body: B) -> Response<B> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    if is_grpc(&parts.headers) {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        headers.insert(&GRPC_STATUS, HeaderValue::from(error.grpc_code()));
        headers.insert("grpc-message", HeaderValue::from_static(error.title()));
        return response;
    }
    if let Some(wait) = error.retry_after() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs()));
    }
    *response.status_mut() = error.status();
    response
}

/// Whether a request wants its answer in gRPC's form.
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    kind.get(..16)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"application/grpc"))
}

/// Whether an answer says that the service failed: a 5xx, or what stands for one in gRPC.
pub(crate) fn is_failure<B>(response: &Response<B>) -> bool {
    // UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS.
    let failures: [&[u8]; 5] = [b"2", b"4", b"13", b"14", b"15"];
    let code = response
        .headers()
        .get(&GRPC_STATUS)
        .map(HeaderValue::as_bytes);
    response.status().is_server_error() || code.is_some_and(|code| failures.contains(&code))
}

/// Takes back that the request may be sent again: something of it may stand, and it would happen twice.
pub(crate) fn forbid_retry<B>(response: &mut Response<B>) {
    let headers = response.headers_mut();
    headers.remove(header::RETRY_AFTER);
    if headers.contains_key(&GRPC_STATUS) {
        // What is no number of milliseconds tells a gRPC client not to.
        headers.insert("grpc-retry-pushback-ms", HeaderValue::from_static("-1"));
    }
}

/// Makes answers of the layer's own.
pub(crate) struct Answer<Tag, Respond> {
    respond: Respond,
    asked: Asked,
    keep_handler_errors: bool,
    tag: PhantomData<fn() -> Tag>,
}

/// What an answer may depend on. A copy of the head would cost every request allocations for the sake of the
/// few that fail: only who reads it pays for it.
enum Asked {
    ContentType(Option<HeaderValue>),
    Head(Box<Parts>),
}

impl<Tag: 'static, Respond> Answer<Tag, Respond> {
    pub(crate) fn new<B>(respond: Respond, parts: &Parts, keep_handler_errors: bool) -> Self
    where
        Respond: ResponseForError<B>,
    {
        let asked = if Respond::READS_REQUEST {
            Asked::Head(Box::new(parts.clone()))
        } else {
            Asked::ContentType(parts.headers.get(header::CONTENT_TYPE).cloned())
        };
        Self {
            respond,
            asked,
            keep_handler_errors,
            tag: PhantomData,
        }
    }

    pub(crate) fn error<B>(&self, error: &Error) -> Response<B>
    where
        Respond: ResponseForError<B>,
    {
        telemetry::answered(error);
        match &self.asked {
            Asked::Head(parts) => self.respond.response_for_error(error, parts),
            Asked::ContentType(kind) => {
                let (mut parts, ()) = Request::new(()).into_parts();
                parts
                    .headers
                    .extend(kind.clone().map(|kind| (header::CONTENT_TYPE, kind)));
                self.respond.response_for_error(error, &parts)
            }
        }
    }

    /// The handler's answer, whose body decides.
    pub(crate) fn pending<B>(&self, mut response: Response<B>) -> Response<B> {
        if let Some(outcome) = Outcome::<Tag>::of(Ended::Pending) {
            response.extensions_mut().insert(outcome);
        }
        response
    }

    /// The handler's answer, or the layer's where the handler's would not be true.
    pub(crate) fn conclude<B>(
        &self,
        response: Response<B>,
        ended: Ended,
        guard: &SessionGuard,
    ) -> Response<B>
    where
        Respond: ResponseForError<B>,
    {
        let failure = match (&ended, guard.lost()) {
            (Ended::Failed(error), _) => Some(error.clone()),
            // Whatever the rule made of it: what the handler believes to be there is not.
            (_, Some(lost)) if is_success(response.status(), response.headers()) => Some(lost),
            _ if self.keep_handler_errors || !is_failure(&response) => None,
            _ => guard.failure(),
        };
        let mut response = match failure {
            None => response,
            Some(error) => {
                let mut answer = self.error(&error);
                if guard.may_have_committed() {
                    forbid_retry(&mut answer);
                }
                answer
            }
        };
        if let Some(outcome) = Outcome::<Tag>::of(ended) {
            response.extensions_mut().insert(outcome);
        }
        response
    }
}
