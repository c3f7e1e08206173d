//! [`Answer`]: what leaves a session's layer.

use std::marker::PhantomData;

use http::{HeaderValue, Request, Response, header, request::Parts};

use crate::{
    Error, Outcome,
    respond::{ResponseForError, forbid_retry, is_failure},
    session::{Ended, SessionGuard, is_success},
    telemetry,
};

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
