//! [`Phase`]: a session on its way from its first statement to its end.

use std::time::Duration;

use tokio::{sync::oneshot, time::timeout};

use crate::error::{Error, Kind};

/// A stage on the session's way.
pub(super) enum Phase {
    /// The handler is at work.
    Open,
    /// The handler has answered; the transaction is being committed.
    Settling,
    /// No statement runs any more: the request has ended, or the connection was
    /// taken away before that.
    Over(Over),
}

/// The rest of a session that is over.
#[derive(Default)]
pub(super) struct Over {
    /// Set if the connection was taken away before the request's end.
    // Boxed, because nearly no session has one and the phase is part of every
    // session.
    pub(super) cut_off: Option<Box<CutOff>>,
    /// Dropped when the connection has left the session.
    // Channels, dropped rather than sent into: whatever takes the connection
    // away, a panic or a dying runtime included, the end of the request is
    // woken.
    released: Option<oneshot::Sender<()>>,
    /// Dropped when the statement has ended that the session's end has found
    /// running.
    stray_ended: Option<oneshot::Sender<()>>,
}

/// The loss of a session's connection before its end.
pub(super) struct CutOff {
    pub(super) reason: Kind,
    /// A transaction was open.
    pub(super) has_lost: bool,
    /// The rollback of the open transactions, which the end of the request
    /// waits for.
    pub(super) rollback: Option<Rollback>,
}

/// A rollback on its way, for an answer to wait for.
pub(super) struct Rollback {
    /// Resolves when it is done.
    done: oneshot::Receiver<()>,
    /// Resolves when the statement has ended that was still running in it, for
    /// which no answer waits longer than this.
    stray: Option<(oneshot::Receiver<()>, Duration)>,
}

impl Phase {
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Open)
    }

    pub(super) fn is_settling(&self) -> bool {
        matches!(self, Self::Settling)
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Over(_))
    }

    /// Returns how the session lost its connection before its end, if it did.
    pub(super) fn cut_off(&self) -> Option<&CutOff> {
        match self {
            Self::Over(over) => over.cut_off.as_deref(),
            _ => None,
        }
    }

    /// Returns why the session lost an open transaction, if it did.
    pub(super) fn lost(&self) -> Option<Error> {
        let cut_off = self.cut_off().filter(|cut_off| cut_off.has_lost)?;
        Some(cut_off.error())
    }

    /// Returns the sender that says that the connection has left; to be dropped
    /// when it has.
    pub(super) fn take_released(&mut self) -> Option<oneshot::Sender<()>> {
        self.over()?.released.take()
    }

    pub(super) fn take_stray_ended(&mut self) -> Option<oneshot::Sender<()>> {
        self.over()?.stray_ended.take()
    }

    pub(super) fn over(&mut self) -> Option<&mut Over> {
        match self {
            Self::Over(over) => Some(over),
            _ => None,
        }
    }
}

impl Over {
    pub(super) fn cut_off(cut_off: CutOff) -> Self {
        Self {
            cut_off: Some(Box::new(cut_off)),
            ..Self::default()
        }
    }

    /// Keeps a rollback for the end of the request if that is still to come;
    /// else gives it back.
    pub(super) fn keep_for_the_end(&mut self, rollback: Option<Rollback>) -> Option<Rollback> {
        match &mut self.cut_off {
            None => rollback,
            Some(cut_off) => {
                // The pool that cuts does not wait. The response does, if it is
                // to say that all is rolled back.
                cut_off.rollback = rollback;
                None
            }
        }
    }

    /// Prepares to say when what is open is rolled back, and when a statement
    /// that still runs in it has ended.
    pub(super) fn expect_rollback(&mut self, stray: Option<Duration>) -> Rollback {
        let (released, done) = oneshot::channel();
        self.released = Some(released);
        // Two events with a limit each: the statement may run for long, the
        // rollback behind it is quick.
        let stray = stray.map(|limit| {
            let (stray_ended, ended) = oneshot::channel();
            self.stray_ended = Some(stray_ended);
            (ended, limit)
        });
        Rollback { done, stray }
    }
}

impl CutOff {
    pub(super) fn error(&self) -> Error {
        self.reason.into()
    }
}

impl Rollback {
    /// Waits for the rollback: for a statement that the handler has left
    /// running to its own limit, then for the `release_timeout` at most.
    pub(super) async fn wait(self, release_timeout: Duration) {
        // Past that limit the response leaves, and the rollback is seen through
        // in its task (G8).
        if let Some((ended, limit)) = self.stray
            && timeout(limit.min(release_timeout), ended).await.is_err()
        {
            return;
        }
        let _ = timeout(release_timeout, self.done).await;
    }
}
