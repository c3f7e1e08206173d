//! [`SessionStream`]: rows as they arrive.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::Stream;
use sea_orm::{DbErr, QueryResult, Statement};
use tokio::sync::mpsc;

use super::{
    call::{Call, OpenStream},
    core::Core,
    guard::SessionGuard,
    pass_through::{self, PassedRows},
    slot::Slot,
    stack::Caller,
    statement::{CallRequest, Handle, start},
};
use crate::{
    connection::{Operation, Rows},
    telemetry,
};

/// Rows that may wait between the driver and the reader.
// Enough that driver and reader need not take turns row by row, and few enough
// that a slow reader holds little memory.
const BUFFERED: usize = 16;

/// The rows of one statement, from
/// [`StreamTrait::stream`](sea_orm::StreamTrait::stream).
///
/// While it is open, other statements of its session are refused at once: read
/// it to its end or drop it first. If it is dropped half-read, it is read to
/// its end in a task (within `release_timeout`), and the session's next
/// statement waits for that. An error during this is logged at WARN; in a
/// transaction, nothing is committed after it.
#[must_use = "streams do nothing unless polled"]
pub struct SessionStream<'a> {
    inner: Inner<'a>,
    /// The guard of a session that was opened for it alone. Declared last: the
    /// stream is closed before its session.
    own: Option<Box<SessionGuard>>,
}

enum Inner<'a> {
    /// The call runs the statement and sends its rows; both are polled here.
    Pinned {
        // Dropped with the stream: the rest is read in a task then, and the
        // session's next statement comes behind it
        // (`a_stream_dropped_half_read_does_not_disturb_the_next_statement`).
        call: Option<Call>,
        rows: mpsc::Receiver<QueryResult>,
        /// The error that the call ended with, to be returned after the last
        /// row.
        failure: Option<DbErr>,
        /// `None` once the end was read.
        open: Option<OpenStream>,
    },
    /// SeaORM's own.
    Through {
        rows: PassedRows<'a>,
        /// `None` once the end was read.
        open: Option<OpenStream>,
    },
}

impl<'a> SessionStream<'a> {
    pub(super) async fn open(handle: Handle<'a>, statement: Statement) -> Result<Self, DbErr> {
        // SeaORM's streams borrow the transaction they run in; ours borrow
        // nothing.
        match handle.through {
            None => Self::of_session(handle.core, handle.caller, statement).await,
            Some(transaction) => {
                let rows = pass_through::nested_rows(handle, transaction, statement).await?;
                Ok(Self::passed(handle.core, rows))
            }
        }
    }

    /// Opens a stream that borrows nothing.
    pub(super) async fn of_session(
        core: &Arc<Core>,
        caller: Caller,
        statement: Statement,
    ) -> Result<Self, DbErr> {
        if core.pool().is_direct() {
            let rows = pass_through::rows(core, statement).await?;
            return Ok(Self::passed(core, rows));
        }
        let (sender, rows) = Rows::new(BUFFERED);
        let request = CallRequest::new(caller, Operation::Stream(statement, sender));
        let mut call = start(core, request).await?;
        // The stream is open for as long as it may be read, which is longer
        // than its call runs.
        let open = call.take_open();
        Ok(Self::new(Inner::Pinned {
            call: Some(call),
            rows,
            failure: None,
            open,
        }))
    }

    fn passed(core: &Arc<Core>, rows: PassedRows<'a>) -> Self {
        // On this path nothing else says so: there is no call in the slot.
        // Shown by `an_open_stream_refuses_other_statements_at_once`.
        core.lock().streaming = true;
        let open = Some(OpenStream(core.clone()));
        Self::new(Inner::Through { rows, open })
    }

    fn new(inner: Inner<'a>) -> Self {
        Self { inner, own: None }
    }

    /// Has it end the session that was opened for it, if there is one.
    pub(super) fn keeping(mut self, own: Option<Box<SessionGuard>>) -> Self {
        self.own = own;
        self
    }
}

impl Stream for SessionStream<'_> {
    type Item = Result<QueryResult, DbErr>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let (call, rows, failure, open) = match &mut self.inner {
            Inner::Through { rows, open } => {
                let row = ready!(rows.as_mut().poll_next(cx));
                // Not when the stream is dropped: after the last row, others
                // may run while it is still there.
                if row.is_none() {
                    *open = None;
                }
                return Poll::Ready(row);
            }
            Inner::Pinned {
                call,
                rows,
                failure,
                open,
            } => (call, rows, failure, open),
        };
        // Rows first, then the call that makes more of them, then what it has
        // just made. That none comes out does not mean that none is there:
        // tokio has a task that reads much yield. Only the channel's own end,
        // after the call's, is the end. Shown by
        // `every_row_arrives_in_a_task_that_has_to_yield`.
        loop {
            match rows.poll_recv(cx) {
                Poll::Ready(Some(row)) => return Poll::Ready(Some(Ok(row))),
                Poll::Ready(None) if call.is_none() => {
                    // Its reader sees the failure with this poll. Had it
                    // dropped the stream before, nothing would have.
                    if let (Some(open), Some(_)) = (open.take(), &failure) {
                        was_heard(&open.0);
                    }
                    return Poll::Ready(failure.take().map(Err));
                }
                Poll::Ready(None) | Poll::Pending => {}
            }
            let Some(running) = call else {
                return Poll::Pending;
            };
            if let Poll::Ready(output) = Pin::new(running).poll(cx) {
                // The rows that it has sent before its failure come first.
                *call = None;
                *failure = output.err();
            } else if let Poll::Ready(Some(row)) = rows.poll_recv(cx) {
                return Poll::Ready(Some(Ok(row)));
            } else {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for SessionStream<'_> {
    fn drop(&mut self) {
        // A failure that is still to come is logged by the call.
        if let Inner::Pinned {
            failure: Some(error),
            ..
        } = &self.inner
        {
            telemetry::stream_failed_unheard(error);
        }
    }
}

/// The handler knows that its stream has failed, and may live with it.
fn was_heard(core: &Core) {
    if let Slot::Idle(connection) = &mut core.lock().slot {
        connection.was_heard();
    }
}

impl fmt::Debug for SessionStream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionStream").finish_non_exhaustive()
    }
}
