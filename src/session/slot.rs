//! Where the session's connection is, and whose turn it is to use it.

use std::{future::Future, pin::Pin, task::Waker, time::Duration};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, oneshot},
};

use crate::{
    connection::Operation,
    error::{Error, Kind},
    pool::{CheckedOut, Finished},
    telemetry::SessionSpan,
};

/// Names a transaction of a session; never used twice.
pub(super) type Level = u64;

/// A driver call that owns its connection.
pub(super) type CallFuture = Pin<Box<dyn Future<Output = Finished> + Send>>;

pub(super) struct State {
    pub(super) slot: Slot,
    /// The open transactions, outermost first.
    pub(super) levels: Vec<OpenLevel>,
    pub(super) next: u64,
    /// A stream is open: its reader has neither come to the end nor dropped it.
    pub(super) streaming: bool,
    /// The request has ended.
    pub(super) over: bool,
    /// Told when the connection has left the session.
    pub(super) released: Option<oneshot::Sender<()>>,
    /// The first failure to acquire, which the layer answers for.
    pub(super) failure: Option<Error>,
    pub(super) span: SessionSpan,
}

/// Where the session's connection is.
pub(super) enum Slot {
    /// Not checked out: not yet, or no more.
    Empty,
    /// At rest; the next call takes it.
    Idle(CheckedOut),
    /// Owned by a call.
    Running(Running),
    /// Lost or closed; the session has no other.
    Broken,
}

pub(super) struct Running {
    pub(super) call: u64,
    pub(super) manner: Manner,
    /// `None` while it is being polled, or after it moved to a task.
    pub(super) future: Option<CallFuture>,
    pub(super) waker: Option<Waker>,
    pub(super) runtime: Handle,
    pub(super) patience: Option<Duration>,
    pub(super) _turn: OwnedSemaphorePermit,
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

pub(super) struct OpenLevel {
    pub(super) id: Level,
    /// Its handle was dropped without an end: rolled back before anything else happens.
    pub(super) abandoned: bool,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            slot: Slot::Empty,
            levels: Vec::new(),
            next: 0,
            streaming: false,
            over: false,
            released: None,
            failure: None,
            span: SessionSpan::open(),
        }
    }

    /// Whether `who` may use the connection now, and how many transactions are open around it.
    pub(super) fn admit(&mut self, who: Option<Level>) -> Result<usize, Kind> {
        if self.over {
            return Err(Kind::SessionClosed);
        }
        if self.streaming {
            return Err(Kind::StreamOpen);
        }
        if let Some(first) = self.levels.iter().position(|open| open.abandoned) {
            self.levels.truncate(first);
        }
        let innermost = self.levels.last().map(|open| open.id);
        match who {
            _ if who == innermost => Ok(self.levels.len()),
            Some(id) if !self.levels.iter().any(|open| open.id == id) => Err(Kind::TransactionOver),
            _ => Err(Kind::NestedOpen),
        }
    }

    pub(super) fn remaining(&self) -> Option<Level> {
        self.levels.iter().take_while(|open| !open.abandoned).last().map(|open| open.id)
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
