//! What a session tells the observers of its pool.
//!
//! Nothing here runs under the session's lock: observers and the log's
//! subscriber are user code.

use std::time::Duration;

use sea_orm::DbErr;

use super::{core::Core, observed::Observed, plan::OpenedFor, repeats::Repeated};
use crate::{
    connection::Operation,
    error::Error,
    pool::{Acquired, Executed, Label, Observers, PoolInner, Released, SessionEnded},
    telemetry::{self, Usage},
};

/// A session that was not opened has got no connection.
pub(super) fn tell_refused(
    pool: &PoolInner,
    opened_for: &OpenedFor,
    waited: Duration,
    error: &Error,
) {
    // There is no session, whose origin would know it.
    let label = match opened_for {
        OpenedFor::Request(label) => Some(label),
        _ => None,
    };
    let acquired = Acquired {
        waited,
        error: Some(error),
        label,
    };
    pool.observers.tell(|observer| observer.acquired(&acquired));
}

impl Core {
    /// Begins to observe a call, if anything wants to know of it.
    pub(super) fn observe(&self, operation: &Operation) -> Option<Box<Observed>> {
        if !self.pool().observers.is_any() && !telemetry::statements_are_traced() {
            return None;
        }
        // Out of the lock before anything is told: from here on, foreign code
        // runs.
        let (depth, session) = {
            let state = self.lock();
            (state.stack.depth(), state.span.span())
        };
        Observed::begin(operation, depth, &session, self.pool().backend())
    }

    /// A call has ended.
    pub(super) fn tell_executed(&self, observed: &Observed, error: Option<&DbErr>) {
        // Before the observers: what they take is no part of the statement's
        // time.
        let elapsed = observed.end(error);
        self.tell(|observers, label| {
            let executed = Executed {
                statement: &observed.statement,
                backend: self.pool().backend(),
                elapsed,
                begins: observed.begins,
                is_control: observed.is_control,
                error,
                label,
            };
            observers.tell(|observer| observer.executed(&executed));
        });
    }

    /// A wait for a connection has ended.
    pub(super) fn tell_acquired(&self, waited: Duration, error: Option<&Error>) {
        self.tell(|observers, label| {
            let acquired = Acquired {
                waited,
                error,
                label,
            };
            observers.tell(|observer| observer.acquired(&acquired));
        });
    }

    /// The session has given its connection back, if it had one.
    pub(super) fn tell_released(&self, held: Option<Duration>) {
        let Some(held) = held else { return };
        self.tell(|observers, label| {
            let released = Released { held, label };
            observers.tell(|observer| observer.released(&released));
        });
    }

    pub(super) fn tell_ended(&self, usage: Usage, outcome: &'static str) {
        self.tell(|observers, label| {
            let ended = SessionEnded {
                usage,
                outcome,
                label,
            };
            observers.tell(|observer| observer.ended(&ended));
        });
    }

    /// Logs the statement that the session's request has run too often.
    pub(super) fn log_repeated(&self, repeated: &Repeated) {
        // A route that repeats a statement repeats it with each request.
        let Some(suppressed) = self.home().lines.next_line("repeated", 16) else {
            return;
        };
        let label = self.origin.label();
        telemetry::repeated(
            &repeated.statement.without_values(self.pool().backend()),
            repeated.times,
            label.as_ref().map(|label| label.method.as_str()),
            label.as_ref().and_then(|label| label.route.as_deref()),
            suppressed,
        );
    }

    fn tell(&self, tell: impl FnOnce(&Observers, Option<&Label>)) {
        let observers = &self.pool().observers;
        // Asked first, because making the label clones the request's URI.
        if observers.is_any() {
            tell(observers, self.origin.label().as_ref());
        }
    }
}
