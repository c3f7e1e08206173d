//! The layers' own responses, and when they replace the handler's.

#[cfg(feature = "retry")]
use std::sync::Arc;
use std::{marker::PhantomData, time::Duration};

use http::{HeaderMap, HeaderValue, Request, Response, header, request::Parts};

#[cfg(feature = "retry")]
use crate::session::Tally;
use crate::{
    Error, Outcome,
    session::{Ended, GRPC_STATUS, SessionGuard, Summary, is_success},
    telemetry::{self, Usage},
};

/// Makes a layer's own responses. Functions and closures `Fn(&Error, &Parts) ->
/// Response<B>` implement it, and
/// [`response_for_error`](crate::DbSessionLayer::response_for_error) takes
/// them.
///
/// The client gets a status; the cause belongs in the log. Start from
/// [`error_response`], which sets the status and `Retry-After`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot make a response with a body of type `{B}`",
    label = "this layer's own responses need the body type of the service it wraps",
    note = "an empty body, which is the default, needs `{B}: Default`",
    note = "call `.response_for_error(|error, parts| error_response(error, parts, body))` with a body of that type",
    note = "or put `.map_response_body(axum::body::Body::new)` (tower-http) between this layer and the inner layer that changes the body, such as `TraceLayer`",
    note = "or put this layer inside that one: see \"The order of layers\" in the documentation of `tower_sea_orm`"
)]
pub trait ResponseForError<B> {
    /// `true` if [`response_for_error`](Self::response_for_error) reads more of
    /// the request than `content-type`. In that case, the request's head is
    /// copied before the inner service gets it, which costs requests without an
    /// error as well.
    // True by default: a closure may read anything, and the compiler cannot
    // tell.
    const READS_REQUEST: bool = true;

    /// Returns the response to a request that could not be served because of
    /// `error`. The parts are those that the request had when it reached the
    /// layer: method, URI, version, headers and extensions.
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

/// Responds with an empty body. The default.
#[derive(Debug, Clone, Copy, Default)]
pub struct DefaultResponseForError;

#[diagnostic::do_not_recommend]
impl<B: Default> ResponseForError<B> for DefaultResponseForError {
    const READS_REQUEST: bool = false;

    fn response_for_error(&self, error: &Error, parts: &Parts) -> Response<B> {
        error_response(error, parts, B::default())
    }
}

/// Answers with a body of `application/problem+json` (RFC 9457), for bodies
/// made from a `String`; a gRPC request gets the response of
/// [`error_response`], without a body. For
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
    // A gRPC client reads no body that is not a message.
    if is_grpc(&parts.headers) {
        return error_response(error, parts, B::from(String::new()));
    }
    let status = error.status();
    // By hand: no value in it needs escaping, and `serde_json` would be a
    // dependency for this alone.
    let body = format!(
        r#"{{"type":"about:blank","title":"{}","status":{}}}"#,
        error.title(),
        status.as_u16()
    );
    let mut response = error_response(error, parts, B::from(body));
    // Behind `error_response`, whose own headers stay.
    let kind = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Returns a response of `body` with the status and `Retry-After` that belong
/// to `error`.
///
/// A gRPC request gets gRPC's own form: status 200 and
/// [`grpc_code`](Error::grpc_code) as `grpc-status` among the headers, where
/// `body` should be empty.
pub fn error_response<B>(error: &Error, parts: &Parts, body: B) -> Response<B> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    if is_grpc(&parts.headers) {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        // In the head, as a response without messages has it: the status
        // stays 200.
        headers.extend(error.grpc_headers());
        return response;
    }
    // In seconds: a date would need a clock that agrees with the client's
    // (<https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3>).
    if let Some(wait) = error.retry_after() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs()));
    }
    *response.status_mut() = error.status();
    response
}

/// Returns whether the request expects a response in gRPC's form.
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    // With what follows it: `application/grpc+proto`, `application/grpc-web`.
    kind.get(..16)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"application/grpc"))
}

/// Returns whether a response means that the service failed: a 5xx, or its
/// equivalent in gRPC.
pub(crate) fn is_failure<B>(response: &Response<B>) -> bool {
    // UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS. Those that
    // are said of the service itself: NOT_FOUND and its like are the caller's.
    let failures: [&[u8]; 5] = [b"2", b"4", b"13", b"14", b"15"];
    // In the head only: the body and its trailers have not been read yet.
    let code = response
        .headers()
        .get(&GRPC_STATUS)
        .map(HeaderValue::as_bytes);
    response.status().is_server_error() || code.is_some_and(|code| failures.contains(&code))
}

/// Removes the invitation to send the request again: a part of it may be
/// committed, and would happen twice.
pub(crate) fn forbid_retry<B>(response: &mut Response<B>) {
    let headers = response.headers_mut();
    headers.remove(header::RETRY_AFTER);
    if headers.contains_key(&GRPC_STATUS) {
        // A value that is not a number of milliseconds forbids the retry:
        // <https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback>.
        headers.insert("grpc-retry-pushback-ms", HeaderValue::from_static("-1"));
    }
}

/// Makes the layer's own responses to one request.
pub(crate) struct Responder<Tag, Respond> {
    respond: Respond,
    head: Head,
    policy: ResponsePolicy,
    /// What a [`RetryLayer`](crate::RetryLayer) around the session's layer is
    /// told of it.
    #[cfg(feature = "retry")]
    tally: Option<Arc<Tally>>,
    tag: PhantomData<fn() -> Tag>,
}

/// What a layer does to the handler's responses.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ResponsePolicy {
    /// Leave the handler's own errors as they are.
    pub(crate) keeps_errors: bool,
    /// Say in a header how long the database took.
    pub(crate) times: bool,
}

/// The part of the request's head that a response may depend on. A copy of all
/// of it would cost every request allocations for the sake of the few that
/// fail: only a `Respond` that reads it pays for it.
enum Head {
    ContentType(Option<HeaderValue>),
    Complete(Box<Parts>),
}

impl<Tag: 'static, Respond> Responder<Tag, Respond> {
    pub(crate) fn new<B>(respond: Respond, parts: &Parts, policy: ResponsePolicy) -> Self
    where
        Respond: ResponseForError<B>,
    {
        // Decided by the type, so that the default costs no more than a
        // header's clone.
        let head = if Respond::READS_REQUEST {
            // A copy, because the request itself goes to the inner service.
            Head::Complete(Box::new(parts.clone()))
        } else {
            Head::ContentType(parts.headers.get(header::CONTENT_TYPE).cloned())
        };
        Self {
            respond,
            head,
            policy,
            #[cfg(feature = "retry")]
            tally: None,
            tag: PhantomData,
        }
    }

    /// Has a retry layer around this one know how the request's session ends.
    ///
    /// # Errors
    ///
    /// If that layer is inside another session's.
    #[cfg(feature = "retry")]
    pub(crate) fn join_tally(&mut self, parts: &Parts) -> Result<(), Error> {
        self.tally = parts.extensions.get::<Arc<Tally>>().cloned();
        if let Some(tally) = &self.tally {
            // Before the inner service is called: what never reports its end is
            // no session that is known undone.
            tally.opened()?;
        }
        Ok(())
    }

    /// Returns the layer's response for `error`.
    pub(crate) fn error<B>(&self, error: &Error) -> Response<B>
    where
        Respond: ResponseForError<B>,
    {
        match &self.head {
            Head::Complete(parts) => self.respond.response_for_error(error, parts),
            Head::ContentType(content_type) => {
                // Enough for a `Respond` that reads no more: see
                // `READS_REQUEST`.
                let (mut parts, ()) = Request::new(()).into_parts();
                let content_type = content_type.clone();
                let header = content_type.map(|value| (header::CONTENT_TYPE, value));
                parts.headers.extend(header);
                self.respond.response_for_error(error, &parts)
            }
        }
    }

    /// Returns the handler's response, whose outcome is decided at the end of
    /// its body.
    pub(crate) fn pending<B>(&self, mut response: Response<B>, usage: Usage) -> Response<B> {
        // Not undone: its body may still commit, so that no retry may begin.
        self.tell(&mut response, Ended::Pending, usage, false);
        response
    }

    /// Notes in the response how its session ended and what it has used.
    fn tell<B>(&self, response: &mut Response<B>, ended: Ended, usage: Usage, is_undone: bool) {
        if self.policy.times {
            let headers = response.headers_mut();
            // Appended: the header is a list, and other layers have their times
            // in it.
            headers.append("server-timing", server_timing(usage));
        }
        if let Some(outcome) = Outcome::<Tag>::of(ended, usage, is_undone) {
            // For middleware further out, by the session's tag: a request may
            // have sessions of several databases.
            response.extensions_mut().insert(outcome);
        }
    }

    /// Returns the handler's response, or the layer's where the handler's would
    /// be untrue.
    pub(crate) fn conclude<B>(
        &self,
        response: Response<B>,
        ended: Ended,
        guard: &SessionGuard,
    ) -> Response<B>
    where
        Respond: ResponseForError<B>,
    {
        // Before anything of the response is changed: the rules look at the
        // handler's own.
        let summary = guard.summary(&ended);
        let failure = self.failure(&response, &ended, &summary);
        let is_reported =
            summary.is_undone && self.report(&response, failure.as_ref(), &summary, guard);
        let mut response = match failure {
            None => response,
            Some(error) => {
                if !is_reported {
                    // The client learns a status, the log the cause (G15).
                    telemetry::response_for(&error, &guard.pool().lines);
                }
                let mut response = self.error(&error);
                // An earlier `commit()` of the handler stands: a retry would do
                // its work twice (G20).
                if summary.may_have_committed {
                    forbid_retry(&mut response);
                }
                response
            }
        };
        // Into the layer's own response as well: an early commit may stand
        // behind it (G19).
        response = guard.store_position(&ended, response);
        self.tell(&mut response, ended, summary.usage, summary.is_undone);
        response
    }

    /// Reports a session of which nothing stands to the retry layer; true if
    /// that one logs the failure in this layer's place.
    #[cfg(feature = "retry")]
    fn report<B>(
        &self,
        response: &Response<B>,
        failure: Option<&Error>,
        summary: &Summary,
        guard: &SessionGuard,
    ) -> bool {
        let Some(tally) = &self.tally else {
            return false;
        };
        // Whatever the client is to see of it, a handler that gives up after a
        // conflict means the conflict.
        let remembered = || summary.failure.clone().filter(|_| is_failure(response));
        let replaces = failure.is_some();
        let failure = failure.cloned().or_else(remembered);
        let logs = replaces.then(|| guard.pool());
        tally.undone(failure.filter(Error::is_passing), logs)
    }

    #[cfg(not(feature = "retry"))]
    fn report<B>(&self, _: &Response<B>, _: Option<&Error>, _: &Summary, _: &SessionGuard) -> bool {
        false
    }

    /// Returns the error to respond with in place of the handler's response.
    fn failure<B>(
        &self,
        response: &Response<B>,
        ended: &Ended,
        summary: &Summary,
    ) -> Option<Error> {
        let failure = match (ended, &summary.lost) {
            // The handler's response does not count: its attempts would run
            // inside one outer session.
            (_, Some(lost)) if lost.is_retry_inside() => Some(lost),
            (Ended::Failed(error), _) => Some(error),
            // Even if `commit_when` rolls a success back: the handler believes
            // that its work is there.
            (_, Some(lost)) if is_success(response.status(), response.headers()) => Some(lost),
            _ if self.policy.keeps_errors => None,
            // The handler's 5xx made from an error of the session's, most often
            // by `?`: 503 and `Retry-After` say more than its 500. The response
            // last: for gRPC, its header has to be looked up.
            _ => summary.failure.as_ref().filter(|_| is_failure(response)),
        };
        failure.cloned()
    }
}

/// Returns what a session has used, for browsers' developer tools
/// (<https://www.w3.org/TR/server-timing/>).
fn server_timing(usage: Usage) -> HeaderValue {
    let milliseconds = |time: Duration| time.as_micros() as f64 / 1e3;
    let (wait, hold) = (milliseconds(usage.waited), milliseconds(usage.held));
    let statements = usage.statements;
    let value = format!(
        "db-wait;dur={wait};desc=\"waited for a connection\", db-hold;dur={hold};desc=\"held a connection, {statements} statements\""
    );
    // Digits and the text above, which are all allowed.
    HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("db"))
}
