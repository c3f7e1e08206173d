//! [`State`]: everything about a session that changes, under its lock.

use std::time::Duration;

use sea_orm::DbErr;
use tokio::runtime::Handle;

use super::{
    pass_through::{OwnTransaction, Through},
    phase::{CutOff, Phase},
    pins::{Pins, Waits},
    plan::{Mode, Rules},
    repeats::Repeats,
    replication::Written,
    slot::Slot,
    stack::{Caller, Purpose, Stack},
};
use crate::{
    body::{Hold, WeakHold},
    connection::{Begin, Operation, Output},
    error::{Error, Kind},
    pool::{CheckedOut, PoolMode},
    telemetry::SessionSpan,
};

pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) slot: Slot,
    pub(super) stack: Stack,
    pub(super) rules: Rules,
    pub(super) pool_mode: PoolMode,
    pub(super) pins: Pins,
    pub(super) waits: Waits,
    /// The session's transaction was to be committed, and was not.
    pub(super) commit_failed: bool,
    /// Whatever the response says, the session's transaction is rolled back.
    pub(super) rollback_only: bool,
    /// The connection has not been set up yet.
    pub(super) needs_set_up: bool,
    /// A stream is open: its reader has neither come to the end nor dropped it.
    // Beside the slot: rows may lie in the reader's channel when the call has
    // long ended.
    pub(super) streaming: bool,
    /// Raw code has left the session's connection out of step with its server.
    pub(super) is_out_of_step: bool,
    last_id: u64,
    /// Outputs of calls that ended while their own futures were not polled.
    // A list, because the worker may see several calls to their ends before any
    // of their futures is polled.
    pub(super) outputs: Vec<(u64, Result<Output, DbErr>)>,
    /// The runtime for hooks, known from the first connection on.
    pub(super) runtime: Option<Handle>,
    /// SeaORM's transactions, if the session has no connection.
    pub(super) through: Through,
    /// A body that asks for the session to live as long.
    pub(super) asked_hold: Option<Hold>,
    /// The body that the session lives for.
    pub(super) body_hold: Option<WeakHold>,
    pub(super) span: SessionSpan,
    pub(super) repeats: Repeats,
    pub(super) written: Written,
}

impl State {
    #[inline(always)]
    pub(super) fn new(rules: Rules, needs_set_up: bool, pool_mode: PoolMode) -> Self {
        Self {
            phase: Phase::Open,
            slot: Slot::Empty,
            stack: Stack::default(),
            rules,
            pool_mode,
            pins: Pins::default(),
            waits: Waits::default(),
            commit_failed: false,
            rollback_only: false,
            needs_set_up,
            streaming: false,
            is_out_of_step: false,
            last_id: 0,
            outputs: Vec::new(),
            runtime: None,
            through: Through::default(),
            asked_hold: None,
            body_hold: None,
            span: SessionSpan::open(),
            repeats: Repeats::default(),
            written: Written::default(),
        }
    }

    /// Returns a name for a transaction or a call, which is never used again.
    pub(super) fn new_id(&mut self) -> u64 {
        // From 1 on: 0 is the session's own transaction. One series for
        // transactions and calls, so that a higher number is always a later
        // one.
        self.last_id += 1;
        self.last_id
    }

    /// Returns the name of the latest transaction or call; 0 before the first.
    pub(super) fn last_id(&self) -> u64 {
        self.last_id
    }

    /// Returns whether nothing has ever run.
    pub(super) fn is_untouched(&self) -> bool {
        self.last_id == 0
    }

    pub(super) fn is_transactional(&self) -> bool {
        self.rules.mode != Mode::Autocommit
    }

    /// Returns whether a statement of `caller` is, or will be, in a
    /// transaction.
    pub(super) fn is_inside(&self, caller: Caller) -> bool {
        matches!(caller, Caller::Transaction(_)) || self.is_transactional()
    }

    /// Returns how many transactions are, or will be, around the next statement
    /// of the session.
    pub(super) fn surrounding(&self) -> usize {
        // A hook that is registered before the first statement belongs to the
        // transaction that this one will begin.
        let own = usize::from(self.is_transactional());
        self.stack.surviving().max(own)
    }

    /// Returns how many transactions are, or will be, around a statement of
    /// `caller`.
    pub(super) fn depth_of(&self, caller: Caller) -> Result<usize, Kind> {
        match caller {
            Caller::Transaction(id) => self.stack.depth_of(id),
            Caller::Session | Caller::Settlement => Ok(self.surrounding()),
        }
    }

    /// Returns why the session runs no statements any more; the layer answers
    /// for it if the handler gives up.
    pub(super) fn closed_error(&mut self) -> Kind {
        let Some(cut_off) = self.phase.cut_off() else {
            return Kind::SessionClosed;
        };
        let reason = cut_off.reason;
        // The handler's statement fails by it, and a handler that turns that
        // into a 5xx means this.
        self.stack.failures.cut(reason.into());
        reason
    }

    /// Returns why the session lost its connection before its end, if it did.
    pub(super) fn cut_off(&self) -> Option<Error> {
        self.phase.cut_off().map(CutOff::error)
    }

    /// Returns how many transactions are open around a statement of `caller`,
    /// if it may run now.
    pub(super) fn admit(&mut self, caller: Caller) -> Result<usize, Kind> {
        // The last COMMIT passes where a handler's statement does not: behind
        // the handler, and beside a stream that was asked to stop.
        let is_last = self.phase.is_settling() && caller == Caller::Settlement;
        if !self.phase.is_open() && !is_last {
            return Err(self.closed_error());
        }
        if self.streaming && !is_last {
            // At once, since its reader may be the very task that would wait
            // (H10;
            // `h10_a_statement_beside_an_open_stream_is_refused_at_once`).
            return Err(Kind::StreamOpen);
        }
        self.stack.admit(caller)
    }

    /// Opens the session's own transaction if `operation` is the first that
    /// belongs in it.
    pub(super) fn begin_for(&mut self, operation: &Operation) -> Option<Begin> {
        let Mode::Transaction(options) = self.rules.mode else {
            return None;
        };
        // Not for a ping, or an end: BEGIN belongs to the first statement, and
        // a request without one costs nothing. Shown by
        // `a_transaction_that_no_statement_runs_in_costs_nothing`.
        if self.stack.depth() > 0 || !operation.is_work() {
            return None;
        }
        // Before BEGIN is sent, because it may be sent and its answer lost.
        self.stack.open_own();
        // With each BEGIN, also after an early commit: such settings end with
        // their transaction.
        Some(self.rules.begin(options))
    }

    /// Returns why `operation` finds no connection. The end of a transaction is
    /// no rollback where something else may have committed it.
    pub(super) fn no_connection_for(&self, operation: &Operation) -> Kind {
        let ends = matches!(operation, Operation::Commit(_) | Operation::Rollback);
        // A handler that gets an error from `rollback()` still takes the work
        // for undone, so this error says more.
        if ends && self.stack.standing.is_ended_elsewhere() {
            Kind::EndedElsewhere
        } else if self.stack.failures.is_read_lost() {
            Kind::ReadLost
        } else if self.is_out_of_step {
            Kind::OutOfStep
        } else {
            Kind::ConnectionLost
        }
    }

    /// The session's own transaction has begun, which is one of SeaORM's.
    pub(super) fn begun(&mut self, transaction: OwnTransaction) {
        // For `is_untouched`: something has run now.
        self.new_id();
        self.through.own = Some(transaction);
        self.stack.open_own();
    }

    /// Takes the reason why something is not stored that the handler believes
    /// to be.
    pub(super) fn take_failure(&mut self) -> Option<Error> {
        // A COMMIT that failed counts before a BEGIN that did: the handler went
        // on after it.
        let failure = self.stack.standing.take_failure();
        failure.or_else(|| self.stack.failures.missing_transaction().cloned())
    }

    /// Returns why it cannot be said that all is rolled back: something else
    /// has ended the transaction, or runs in it and may do so yet.
    pub(super) fn may_stand(&self) -> Option<Error> {
        let failure = self.stack.standing.failure();
        let known = failure.filter(|error| error.is_ended_elsewhere()).cloned();
        // A CALL that runs on may still commit; only its own end shows that it
        // has not.
        let doubtful = self.slot.call().filter(|running| running.is_doubtful);
        known.or_else(|| doubtful.map(|_| Kind::EndedElsewhere.into()))
    }

    /// Takes the session's own transaction out, to be ended, if it is one of
    /// SeaORM's.
    pub(super) fn take_own(&mut self) -> Option<OwnTransaction> {
        let own = self.through.own.take()?;
        // At once, so that no second end is sent for it.
        self.stack.forget_open();
        Some(own)
    }

    /// The session has waited for a connection.
    pub(super) fn waited(&mut self, time: Duration) {
        self.span.waited(time);
        if !time.is_zero() {
            self.waits.add(time);
        }
    }

    /// Returns the output of the call `id`, if it was kept.
    pub(super) fn take_output(&mut self, id: u64) -> Option<Result<Output, DbErr>> {
        let position = self.outputs.iter().position(|(call, _)| *call == id)?;
        Some(self.outputs.swap_remove(position).1)
    }

    /// Draws the conclusions from a call that has ended and left its
    /// `connection` so.
    pub(super) fn account(
        &mut self,
        purpose: Purpose,
        connection: &CheckedOut,
        result: Result<(), &DbErr>,
    ) {
        // Taken before the stack changes: this is the depth at which the
        // statement ran.
        let before = self.stack.depth();
        match (purpose, result) {
            (Purpose::Commit, Ok(())) => self.stack.committed(),
            (Purpose::Commit, Err(error)) => {
                self.stack.not_committed(error, self.phase.is_settling());
            }
            // There is none to run anything on: nothing has run, or what has
            // changes nothing (G20). Shown by
            // `a_503_of_a_database_gone_before_the_first_statement_has_retry_after`.
            (_, Err(_)) if connection.is_gone() => {}
            // Nothing was around it: it may be stored, although its answer is
            // lost.
            (Purpose::Work, _) if connection.is_broken() && before == 0 => {
                self.stack.standing.ran_alone(result);
            }
            // The transactions are lost with the connection. They stay open
            // here, so that no later statement runs outside of them and commits
            // by itself. Shown by
            // `a_lost_connection_is_an_error_even_if_the_handler_ignores_it`.
            _ if connection.is_broken() => {}
            _ => self.stack.ran(purpose, connection.depth(), result),
        }
        match result {
            // A ping or a rollback that succeeds is no new attempt.
            Ok(()) if purpose == Purpose::Other => {}
            Ok(()) => self.stack.failures.went_on(),
            Err(error) => {
                // The transaction is sound although a statement has failed: it
                // is a server that undoes the statement alone. Or there is no
                // transaction left.
                let is_undone = !connection.has_failed() || self.stack.depth() == 0;
                self.note_failure(error, before, is_undone);
            }
        }
    }

    /// Notes an error that the layer answers for. One that `is_undone` has left
    /// nothing to be rolled back.
    pub(super) fn note_failure(&mut self, error: &DbErr, depth: usize, is_undone: bool) {
        let Some(known) = Error::of(error) else {
            return;
        };
        let is_transactional = self.is_transactional();
        let failures = &mut self.stack.failures;
        // BEGIN may have been tried on another connection, which could not be
        // acquired.
        if known.is_acquire() {
            failures.not_acquired(known, depth > 0 || is_transactional);
        } else if known.is_statement_timeout()
            || known.is_stale_plan()
            // In autocommit a conflict is one statement's, which the handler
            // may repeat by itself; in a transaction that the handler has
            // begun, it is all of that one's. Shown by
            // `g20_a_conflict_in_the_handlers_own_transaction_is_one`.
            || known.is_conflict() && (is_transactional || depth > 0)
        {
            failures.may_pass(known, depth, is_undone);
        }
    }

    /// The handler has rolled back to a savepoint: it goes on, if the
    /// transaction around it is sound.
    pub(super) fn went_back(&mut self) {
        // If the transaction around it has failed as well, the response is an
        // error whether or not this counts as going on.
        let is_sound = matches!(&self.slot, Slot::Idle(connection) if !connection.has_failed());
        if is_sound && self.stack.depth() > 0 {
            self.stack.failures.went_on();
        }
    }

    /// Returns whether the position of what was committed is still to be asked
    /// for.
    pub(super) fn has_to_ask_position(&self) -> bool {
        self.written.is_unseen && self.phase.is_open()
    }

    /// Notes that a statement outside any transaction of the session's own may
    /// have written.
    pub(super) fn note_unseen(&mut self, reads_only: bool) {
        let Some(replication) = &self.rules.replication else {
            return;
        };
        self.written.is_unseen |=
            !reads_only && !self.is_transactional() && !replication.is_on_replica();
    }

    /// Returns how the session ends, for the log.
    pub(super) fn outcome(&self) -> &'static str {
        let standing = &self.stack.standing;
        if standing.is_outcome_unknown() {
            "unknown"
        } else if standing.is_ended_elsewhere() || self.commit_failed {
            "failed"
        } else if self.stack.depth() > 0 {
            // Asked before they are: the session is ending, and these have not
            // been committed.
            "rolled_back"
        } else if self.is_transactional() && standing.may_stand() {
            "committed"
        } else {
            "released"
        }
    }
}
