//! A call on its way: what it is, what it does to the transactions around it, and how it is left.

use std::{future::Future, pin::Pin, sync::Arc, task::Waker, time::Duration};

use sea_orm::DbErr;
use tokio::{runtime::Handle, sync::Notify};

use super::{stack::Purpose, stop::Stop, turn::Turn};
use crate::{
    connection::{CancelHandle, Operation},
    pool::Finished,
    sql::Redacted,
};

/// A driver call that owns its connection.
pub(super) type CallFuture = Pin<Box<dyn Future<Output = Finished> + Send>>;

pub(super) struct Running {
    pub(super) call: u64,
    pub(super) manner: Manner,
    pub(super) purpose: Purpose,
    /// `None` while it is being polled, or after it moved to a task.
    pub(super) future: Option<CallFuture>,
    /// Of the future that waits for the call.
    pub(super) waker: Option<Waker>,
    /// The session's worker polls it, and keeps its output.
    pub(super) is_driven: bool,
    /// The worker wants to poll it, and found it being polled.
    pub(super) is_wanted: bool,
    /// The future that waited for it was dropped while the worker polled it.
    pub(super) is_left: bool,
    pub(super) runtime: Handle,
    pub(super) patience: Option<Duration>,
    /// `None` if it is to run to its end.
    pub(super) stop: Option<Stop>,
    /// Who serves the connection is known by it, if that is of interest.
    pub(super) victim: Option<Arc<CancelHandle>>,
    /// Stops a stream whose reader reads nothing; `None` if it is no stream.
    pub(super) reader: Option<Arc<Notify>>,
    /// The beginning of the statement, or of the one before.
    pub(super) text: Redacted,
    /// It may end the transaction around it, which only its own end shows.
    pub(super) is_doubtful: bool,
    /// Passes on when the connection is back in its place.
    pub(super) _turn: Turn,
}

/// What a call needs that goes on without anybody who waits for it.
pub(super) struct Leave {
    pub(super) manner: Manner,
    pub(super) runtime: Handle,
    pub(super) patience: Option<Duration>,
    pub(super) victim: Option<Arc<CancelHandle>>,
}

/// How a running call treats those who come next, and its own early end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// The next one waits; ended early, it runs on in a task.
    Statement,
    /// Ended early, it is read to its end in a task.
    Stream,
    /// User code: ended early, it is dropped and the connection closed.
    Raw,
    /// Moved to a task; the next one waits.
    Draining,
}

impl Running {
    /// From here on it is drained.
    pub(super) fn leave(&mut self) -> Leave {
        self.is_driven = false;
        Leave {
            manner: std::mem::replace(&mut self.manner, Manner::Draining),
            runtime: self.runtime.clone(),
            patience: self.patience,
            victim: self.stop.as_ref().map(Stop::cancel_handle),
        }
    }

    /// Nobody waits for it any more: a stream does not wait for its reader either.
    pub(super) fn stop_stream(&self) {
        if let Some(reader) = &self.reader {
            reader.notify_one();
        }
    }

    /// The failure that the reader of a stream did not wait for. One that the server may have been told to stop
    /// fails by that, and is none.
    pub(super) fn unheard(&self, result: Result<(), &DbErr>) -> Option<DbErr> {
        let is_unheard = self.is_left || self.manner == Manner::Draining;
        result
            .err()
            .filter(|_| is_unheard && self.reader.is_some() && self.stop.is_none())
            .cloned()
    }
}

impl Manner {
    pub(super) fn of(operation: &Operation) -> Self {
        match operation {
            #[cfg(feature = "stream")]
            Operation::Stream(..) => Self::Stream,
            Operation::Raw(_) => Self::Raw,
            _ => Self::Statement,
        }
    }
}
