//! Where the session's connection is, and whose turn it is to use it.

use std::sync::Arc;

use sea_orm::{DatabaseTransaction, DbErr};
use tokio::{runtime::Handle, sync::oneshot};

use super::{
    cut::Cut,
    direct::Through,
    failures::Failures,
    hooks::Hooks,
    plan::{Mode, Rules},
    running::{Purpose, Running},
};
use crate::{
    body::{Hold, WeakHold},
    connection::{Begin, Operation, Output},
    error::{Cause, Error, Kind},
    pool::CheckedOut,
    telemetry::SessionSpan,
};

/// Names a transaction of a session; never used twice.
pub(super) type Level = u64;

/// The session's own transaction, which has no handle of its own.
const OWN: Level = 0;

/// Who wants to use the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// The session itself.
    Session,
    /// A transaction that the handler began.
    Level(Level),
    /// The end of the request.
    Settlement,
}

pub(super) struct State {
    pub(super) slot: Slot,
    /// The open transactions, outermost first.
    pub(super) levels: Vec<OpenLevel>,
    pub(super) next: u64,
    /// A stream is open: its reader has neither come to the end nor dropped it.
    pub(super) streaming: bool,
    pub(super) phase: Phase,
    pub(super) rules: Rules,
    /// Whatever the response says, the session's transaction is rolled back.
    pub(super) rollback_only: bool,
    /// Something of this session may stand, whatever happens from here on.
    pub(super) committed: bool,
    /// The connection has not been set up yet.
    pub(super) fresh: bool,
    pub(super) hooks: Hooks,
    /// Where hooks run, known from the first connection on.
    pub(super) runtime: Option<Handle>,
    /// The transaction of a session that passes its statements through.
    pub(super) direct: Option<Arc<DatabaseTransaction>>,
    pub(super) through: Through,
    /// A body that wants to live as long as the session.
    pub(super) hold: Option<Hold>,
    /// The body that the session lives for.
    pub(super) held: Option<WeakHold>,
    /// Told when the connection has left the session.
    pub(super) released: Option<oneshot::Sender<()>>,
    /// Told when the statement has ended that the session's end has found running.
    pub(super) stray_ended: Option<oneshot::Sender<()>>,
    /// Outputs of calls that ended while their own futures were not polled.
    pub(super) outputs: Vec<(u64, Result<Output, DbErr>)>,
    pub(super) failures: Failures,
    /// A COMMIT of the handler's that failed, and that nothing has made good since.
    pub(super) unsettled: Option<Error>,
    /// The handler was not there to see it fail: only a rollback makes it good.
    pub(super) untold: bool,
    /// Why the open transaction cannot be committed, for the log.
    pub(super) cause: Option<Box<Cause>>,
    /// The connection was taken away before the request's end.
    pub(super) cut: Option<Box<Cut>>,
    pub(super) span: SessionSpan,
}

/// Where the session is on its way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The handler is at work.
    Open,
    /// The handler has answered; the transaction is being committed.
    Settling,
    /// The request has ended.
    Over,
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

/// How a call has left its connection.
pub(super) struct Found {
    /// How many transactions are open on it.
    pub(super) depth: usize,
    pub(super) broken: bool,
    /// What is open there can only be rolled back.
    pub(super) failed: bool,
}

impl Found {
    pub(super) fn of(connection: &CheckedOut) -> Self {
        let (depth, broken) = (connection.depth(), connection.is_broken());
        Self {
            depth,
            broken,
            failed: connection.has_failed(),
        }
    }
}

pub(super) struct OpenLevel {
    pub(super) id: Level,
    /// Its handle was dropped without an end: rolled back before anything else happens.
    pub(super) abandoned: bool,
}

/// Whether a statement certainly left nothing behind.
fn has_not_run(error: &DbErr) -> bool {
    Error::of(error).is_some_and(|known| known.is_read_only() || known.is_stale_plan())
}

impl State {
    pub(super) fn new(rules: Rules, fresh: bool) -> Self {
        Self {
            slot: Slot::Empty,
            levels: Vec::new(),
            next: OWN,
            streaming: false,
            phase: Phase::Open,
            rules,
            rollback_only: false,
            committed: false,
            fresh,
            hooks: Hooks::default(),
            runtime: None,
            direct: None,
            through: Through::default(),
            hold: None,
            held: None,
            released: None,
            stray_ended: None,
            outputs: Vec::new(),
            failures: Failures::default(),
            unsettled: None,
            untold: false,
            cause: None,
            cut: None,
            span: SessionSpan::open(),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// What the running call does, if there is one.
    pub(super) fn running(&self) -> Option<Purpose> {
        match &self.slot {
            Slot::Running(running) => Some(running.purpose),
            _ => None,
        }
    }

    /// Whether `who` may use the connection now, and how many transactions are open around it.
    pub(super) fn admit(&mut self, who: Who) -> Result<usize, Kind> {
        let last_call = self.phase == Phase::Settling && who == Who::Settlement;
        if self.phase != Phase::Open && !last_call {
            return Err(self.closed());
        }
        if self.streaming && !last_call {
            return Err(Kind::StreamOpen);
        }
        self.drop_abandoned();
        let innermost = self.levels.last().map(|open| open.id);
        match who {
            Who::Level(id) if innermost == Some(id) => Ok(self.levels.len()),
            Who::Level(id) if !self.levels.iter().any(|open| open.id == id) => {
                Err(Kind::TransactionOver)
            }
            Who::Session | Who::Settlement if innermost.is_none_or(|id| id == OWN) => {
                Ok(self.levels.len())
            }
            _ => Err(Kind::NestedOpen),
        }
    }

    /// Forgets transactions whose handles are gone; the next call rolls them back first.
    pub(super) fn drop_abandoned(&mut self) {
        if let Some(first) = self.levels.iter().position(|open| open.abandoned) {
            self.levels.truncate(first);
            self.rolled_back_to(first);
        }
    }

    /// What was open beyond `depth` was rolled back.
    fn rolled_back_to(&mut self, depth: usize) {
        self.hooks.rolled_back_to(depth);
        self.failures.rolled_back_to(depth);
    }

    /// How many transactions remain when the abandoned are rolled back.
    pub(super) fn surviving(&self) -> usize {
        self.levels
            .iter()
            .take_while(|open| !open.abandoned)
            .count()
    }

    /// The handler has rolled back to a savepoint; where the transaction around it is sound, it goes on.
    pub(super) fn went_back(&mut self) {
        let is_sound = matches!(&self.slot, Slot::Idle(connection) if !connection.has_failed());
        if is_sound && !self.levels.is_empty() {
            self.failures.went_on();
        }
    }

    /// The output of the call `id`, if it was kept.
    pub(super) fn take_output(&mut self, id: u64) -> Option<Result<Output, DbErr>> {
        let position = self.outputs.iter().position(|(call, _)| *call == id)?;
        Some(self.outputs.swap_remove(position).1)
    }

    /// Who may use the connection when the abandoned are gone.
    pub(super) fn remaining(&self) -> Who {
        match self.levels.iter().take_while(|open| !open.abandoned).last() {
            Some(open) if open.id != OWN => Who::Level(open.id),
            _ => Who::Session,
        }
    }

    /// The session's own transaction is still to begin, and `operation` belongs into it.
    pub(super) fn begin_for(&mut self, operation: &Operation) -> Option<Begin> {
        let Mode::Transaction(options) = self.rules.mode else {
            return None;
        };
        if !self.levels.is_empty() || !operation.is_work() {
            return None;
        }
        self.levels.push(OpenLevel {
            id: OWN,
            abandoned: false,
        });
        let set_up = self.rules.on_begin.clone().unwrap_or_default();
        Some(Begin { options, set_up })
    }

    /// Draws the conclusions from a call that has ended and left `depth` transactions open.
    pub(super) fn account(&mut self, purpose: Purpose, found: Found, result: Result<(), &DbErr>) {
        let Found {
            depth,
            broken,
            failed,
        } = found;
        let before = self.levels.len();
        match (purpose, result) {
            (Purpose::Commit, Ok(())) => {
                self.levels.truncate(before.saturating_sub(1));
                self.hooks.committed(before);
                if before == 1 {
                    self.committed = true;
                    self.unsettled = self.unsettled.take().filter(Error::is_outcome_unknown);
                    self.untold = false;
                }
            }
            (Purpose::Commit, Err(error)) => {
                let error = Error::of_commit(error.clone()).because(self.cause.as_deref());
                if before == 1 && error.is_outcome_unknown() {
                    self.committed = true;
                    self.hooks.forget();
                } else if before == 1 {
                    self.hooks.not_committed();
                }
                // A COMMIT that outlasted its handler belongs to the answer, whoever began it.
                let at_the_end = self.phase == Phase::Settling;
                if before == 1 && self.has_begun() || at_the_end {
                    self.unsettled = Some(error);
                    self.untold |= at_the_end;
                }
                // What is left of it goes before anything else may run.
                if before == 1 && self.has_begun() {
                    self.levels.clear();
                } else if let Some(open) = self.levels.last_mut() {
                    open.abandoned = true;
                }
            }
            // With the connection, the transactions are lost: the session must not go on without.
            _ if broken => {}
            (Purpose::BeginAndWork, _) if depth == 0 => {
                self.levels.clear();
                if let Err(error) = result {
                    self.failures.not_begun(Error::of_begin(error.clone()));
                }
            }
            (Purpose::BeginAndWork, Ok(())) => self.failures.begun(),
            _ if before > depth => {
                // Where a SAVEPOINT fails on PostgreSQL, sqlx rolls all of the transaction back.
                if depth == 0 && purpose == Purpose::Work && self.has_begun() {
                    self.unsettled = Some(Kind::Aborted.into());
                    self.untold = true;
                }
                self.levels.truncate(depth);
                self.rolled_back_to(depth);
            }
            (Purpose::Work, Err(error)) if before == 0 => self.committed |= !has_not_run(error),
            (Purpose::Work, Ok(())) if before == 0 => self.committed = true,
            _ => {}
        }
        match result {
            Ok(()) if purpose != Purpose::Other => self.failures.went_on(),
            Ok(()) => {}
            Err(error) => self.note_failure(error, before, !failed || self.levels.is_empty()),
        }
    }

    /// Notes an error that the layer answers for. One that `is_undone` has left nothing to be rolled back.
    pub(super) fn note_failure(&mut self, error: &DbErr, depth: usize, is_undone: bool) {
        let Some(known) = Error::of(error) else {
            return;
        };
        let may_pass = known.is_statement_timeout() || known.is_stale_plan();
        if known.is_acquire() {
            self.failures
                .not_acquired(known, depth > 0 || self.is_transactional());
        } else if may_pass || known.is_conflict() && self.is_transactional() {
            self.failures.may_pass(known, depth, is_undone);
        }
    }

    /// Something else has ended the transaction, in which `statement` was the last one.
    pub(super) fn ended_elsewhere(&mut self, statement: String) {
        let cause = Cause {
            statement,
            error: None,
        };
        self.committed = true;
        self.unsettled = Some(Error::from(Kind::EndedElsewhere).because(Some(&cause)));
        self.untold = true;
        self.cause = Some(Box::new(cause));
    }

    /// Keeps the first failure of a transaction that it has made impossible to commit.
    pub(super) fn note_cause(
        &mut self,
        has_failed: bool,
        error: Option<&DbErr>,
        statement: impl FnOnce() -> String,
    ) {
        if !has_failed {
            self.cause = None;
        } else if let (None, Some(error)) = (&self.cause, error) {
            self.cause = Some(Box::new(Cause {
                statement: statement(),
                error: Some(error.clone()),
            }));
        }
    }

    /// The call with the COMMIT was dropped, and the connection closed.
    pub(super) fn commit_lost(&mut self) {
        self.hooks.forget();
        self.committed = true;
        self.unsettled = Some(Kind::OutcomeUnknown.into());
        if self.levels.len() == 1 && self.has_begun() {
            self.levels.clear();
        }
    }

    /// Whether a statement that commits what is open would do so behind the session's back.
    pub(super) fn is_inside(&self, who: Who) -> bool {
        matches!(who, Who::Level(_)) || self.is_transactional()
    }

    /// Whether the session was never used.
    pub(super) fn is_untouched(&self) -> bool {
        self.next == OWN
    }

    /// How the session ends, for the log.
    pub(super) fn outcome(&self) -> &'static str {
        if self
            .unsettled
            .as_ref()
            .is_some_and(Error::is_outcome_unknown)
        {
            "unknown"
        } else if self
            .unsettled
            .as_ref()
            .is_some_and(Error::is_ended_elsewhere)
        {
            "failed"
        } else if !self.levels.is_empty() {
            "rolled back"
        } else if self.is_transactional() && self.committed {
            "committed"
        } else {
            "released"
        }
    }

    /// The failure of an earlier COMMIT that the handler does not know of, or that stays unknown.
    pub(super) fn untold(&self) -> Option<Error> {
        self.unsettled
            .clone()
            .filter(|error| self.untold || error.is_outcome_unknown())
    }

    /// Why `operation` finds no connection. The end of a transaction is no rollback where something else may have
    /// committed it.
    pub(super) fn no_connection_for(&self, operation: &Operation) -> Kind {
        let ends = matches!(operation, Operation::Commit | Operation::Rollback);
        let may_stand = self
            .unsettled
            .as_ref()
            .is_some_and(Error::is_ended_elsewhere);
        if ends && may_stand {
            Kind::EndedElsewhere
        } else {
            Kind::ConnectionLost
        }
    }

    /// Nothing is open any more: what was not committed is, or is about to be, rolled back.
    pub(super) fn roll_back_all(&mut self) {
        self.levels.clear();
        self.rolled_back_to(0);
    }

    /// The own transaction of a session that passes its statements through has begun.
    pub(super) fn open_own(&mut self, transaction: Arc<DatabaseTransaction>) {
        self.next += 1;
        self.direct = Some(transaction);
        self.levels.push(OpenLevel {
            id: OWN,
            abandoned: false,
        });
    }

    /// Takes it out, to be ended.
    pub(super) fn take_direct(&mut self) -> Option<Arc<DatabaseTransaction>> {
        let direct = self.direct.take()?;
        self.levels.clear();
        Some(direct)
    }

    /// Opens a level for a transaction that the driver is not asked about.
    pub(super) fn open_level(&mut self, id: Level) {
        self.levels.push(OpenLevel {
            id,
            abandoned: false,
        });
    }

    /// Ends a level, and those inside of it, that the driver is not asked about.
    pub(super) fn close_level(&mut self, id: Level, committed: bool) {
        let Some(position) = self.levels.iter().position(|open| open.id == id) else {
            return;
        };
        let innermost = position + 1 == self.levels.len();
        self.levels.truncate(position);
        if committed && innermost {
            self.hooks.seal_if_outermost(position);
            self.hooks.committed(position + 1);
        } else {
            self.rolled_back_to(position);
        }
    }

    /// Whether the session's own transaction has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.levels.first().is_some_and(|open| open.id == OWN)
    }

    /// Whether a transaction that the handler began is still open and its handle held.
    pub(super) fn has_left_open(&self) -> bool {
        self.levels
            .iter()
            .any(|open| open.id != OWN && !open.abandoned)
    }

    pub(super) fn is_transactional(&self) -> bool {
        self.rules.mode != Mode::Autocommit
    }

    /// How many transactions are, or will be, around the next statement of the session.
    pub(super) fn surrounding(&self) -> usize {
        self.surviving().max(usize::from(self.is_transactional()))
    }
}
