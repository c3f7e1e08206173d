//! The ways out: a call left behind, a transaction abandoned, a session released or ended.

use std::{sync::Arc, time::Duration};

use sea_orm::DbErr;
use tokio::time::timeout;

use super::{
    core::Core,
    locked::Locked,
    phase::{CutOff, Over, Phase, Rollback},
    running::{CallFuture, Leave, Manner, Running},
    slot::Slot,
    stack::{Level, Purpose, Who},
    state::State,
    turn::Turn,
};
use crate::{connection::Operation, error::Kind, sql::Classified, telemetry};

/// How long an answer that is to roll back waits for a statement that its handler has left running.
const STRAY_WAIT: Duration = Duration::from_millis(100);

/// How long it waits where the server is told to stop the statement.
const STOPPED_WAIT: Duration = Duration::from_secs(1);

impl Core {
    /// Runs a call that nobody waits for to its end, in a task of its own. sqlx's calls must not be dropped half-way
    /// (<https://github.com/launchbadge/sqlx/issues/4393>, <https://github.com/launchbadge/sqlx/issues/563>).
    pub(super) fn drain(self: &Arc<Self>, future: CallFuture, leave: Leave) {
        let Leave {
            runtime,
            patience,
            victim,
            ..
        } = leave;
        let (mut guard, pool, handle) = (
            Abandoned(Some(self.clone())),
            self.pool().clone(),
            runtime.clone(),
        );
        let draining = async move {
            let ending = async {
                match victim {
                    None => future.await,
                    Some(victim) => pool.see_off(future, &victim, &handle).await,
                }
            };
            let finished = match patience {
                None => Some(ending.await),
                Some(bound) => timeout(bound, ending).await.ok(),
            };
            match finished {
                Some(finished) => drop(guard.0.take().and_then(|core| core.finish(finished))),
                None => {
                    tracing::warn!(target: "tower_sea_orm::session", "closed a connection whose statement did not end within the release timeout");
                }
            }
        };
        runtime.spawn(draining);
    }

    /// The running call is gone and its connection with it.
    pub(super) fn break_running(self: &Arc<Self>) {
        let mut state = self.lock();
        let Slot::Running(running) = &state.slot else {
            return;
        };
        let purpose = running.purpose;
        let doubtful = running
            .is_doubtful
            .then(|| running.text.without_values(self.pool().backend()));
        if purpose == Purpose::Commit {
            state.stack.commit_lost();
        }
        if let Some(statement) = &doubtful {
            state.stack.standing.ended_elsewhere(statement.clone());
        }
        let ended = std::mem::replace(&mut state.slot, Slot::Broken);
        let told = (state.phase.take_released(), state.phase.take_stray_ended());
        let over = state.phase.is_over();
        if over {
            state.stack.roll_back_all();
        }
        drop(state);
        drop((ended, told));
        self.line().wake_worker();
        if let Some(statement) = &doubtful {
            telemetry::ended_elsewhere(statement);
        }
        if over {
            self.run_hooks();
        }
    }

    /// Marks a transaction whose handle was dropped, and has it rolled back: now, or as soon as its running
    /// statement has ended.
    pub(super) fn abandon(self: &Arc<Self>, level: Level) {
        if !self.lock().stack.abandon(level) {
            return;
        }
        if let Some(turn) = self.try_turn() {
            return self.roll_back_abandoned(turn);
        }
        let core = self.clone();
        self.enqueue_detached(async move {
            if let Ok(turn) = core.turn(Who::Session).await {
                core.roll_back_abandoned(turn);
            }
        });
    }

    fn roll_back_abandoned(self: &Arc<Self>, turn: Turn) {
        let who = {
            let state = self.lock();
            let is_open = matches!(&state.slot, Slot::Idle(connection) if connection.depth() > state.stack.surviving());
            if !is_open {
                return;
            }
            state.stack.innermost()
        };
        if let Ok(call) = self.launch(turn, who, None, Operation::Settle, Classified::OWN) {
            // Dropped unpolled, the call moves to a task.
            drop(call);
        }
    }

    /// Gives the connection back before the request ends; the next statement checks out again.
    pub(super) async fn release(self: &Arc<Self>) -> Result<(), DbErr> {
        self.in_turn(|core, _turn| core.release_now()).await
    }

    fn release_now(&self) -> Result<(), DbErr> {
        let mut state = self.lock();
        if state.admit(Who::Session).map_err(Kind::into_db_err)? > 0 {
            return Err(Kind::TransactionOpen.into_db_err());
        }
        match std::mem::replace(&mut state.slot, Slot::Empty) {
            Slot::Idle(connection) => {
                state.span.released();
                drop(state);
                connection.give_back(|| ());
            }
            other => state.slot = other,
        }
        Ok(())
    }

    /// Has the request know what stands, so that its answer does not ask for it to be sent again.
    pub(super) fn tell_request(&self, state: &State) {
        if state.stack.standing.may_stand()
            && let Some(request) = &self.origin.outer
        {
            request.note_committed();
        }
    }

    /// Ends the session: its handles are dead from here on, its connection goes back.
    ///
    /// There is something to wait for when a transaction is open, or on its way back.
    pub(super) fn end(self: &Arc<Self>) -> Option<Rollback> {
        let mut state = self.lock();
        self.tell_request(&state);
        if let Phase::Over(over) = &mut state.phase {
            return over.cut_off.as_mut()?.rollback.take();
        }
        let rollback = self.take_away(state, None);
        // Who gets the turn before that is told the same.
        self.line().close();
        rollback
    }

    /// Ends the session's last phase, and takes its connection and what runs on it. Returns what there is to wait
    /// for; where the request goes on, that is left for its end.
    pub(super) fn take_away(
        self: &Arc<Self>,
        mut state: Locked<'_>,
        cut_off: Option<Box<CutOff>>,
    ) -> Option<Rollback> {
        // What the handler dropped is being rolled back: that counts as open until it is done.
        let unclean = match &state.slot {
            Slot::Idle(connection) => connection.depth() > 0,
            Slot::Running(running) => running.purpose == Purpose::Other,
            Slot::Empty | Slot::Broken => false,
        };
        let open = state.stack.depth() > 0 || unclean;
        let stray = match &state.slot {
            Slot::Running(running) => running.patience_at_the_end(),
            _ => None,
        };
        let outcome = state.outcome();
        // Closed when the lock is free again: that runs code of the log's.
        let _span = state.span.close(outcome);
        // A running call, which may be a COMMIT, has the last word on what becomes of the hooks.
        if !matches!(state.slot, Slot::Running(_)) {
            state.stack.roll_back_all();
        }
        let mut over = Over::default();
        let mut rollback = open.then(|| over.expect_rollback(stray));
        over.cut_off = cut_off;
        if let Some(cut_off) = &mut over.cut_off {
            cut_off.rollback = rollback.take();
        }
        state.phase = Phase::Over(over);
        match std::mem::replace(&mut state.slot, Slot::Empty) {
            Slot::Idle(connection) => {
                let released = state.phase.take_released();
                drop(state);
                let core = self.clone();
                connection.give_back(move || {
                    drop(released);
                    core.run_hooks();
                });
            }
            running @ Slot::Running(_) => {
                state.slot = running;
                drop(state);
                self.seize();
                self.run_hooks();
            }
            other => {
                state.slot = other;
                let released = state.phase.take_released();
                let is_any_due = state.stack.hooks.is_any_due();
                drop(state);
                drop(released);
                if is_any_due {
                    self.run_hooks();
                }
            }
        }
        rollback
    }

    /// Takes the running call, if there is one, away from whoever polls it, for good: a task runs it to
    /// its end, and has the server stop it if it may be stopped. Raw code is dropped.
    pub(super) fn seize(self: &Arc<Self>) {
        let mut state = self.lock();
        let Slot::Running(running) = &mut state.slot else {
            return;
        };
        if let Some(stop) = &running.stop {
            stop.at_the_end();
        }
        running.stop_stream();
        // Without, it is in a task already, or whoever is polling it right now sees to it.
        let Some(future) = running.future.take() else {
            return;
        };
        let waker = running.waker.take();
        let leave = running.leave();
        drop(state);
        self.leave_behind(future, leave);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What becomes of a call that is ended early.
    pub(super) fn leave_behind(self: &Arc<Self>, future: CallFuture, leave: Leave) {
        if leave.manner == Manner::Raw {
            drop(future);
            self.break_running();
        } else {
            self.drain(future, leave);
        }
    }
}

impl Running {
    /// How long an answer that is to roll back waits for it; `None` for what ends soon, or has to be seen
    /// through.
    fn patience_at_the_end(&self) -> Option<Duration> {
        let is_work = matches!(self.purpose, Purpose::Work | Purpose::BeginAndWork);
        is_work.then_some(if self.stop.is_some() {
            STOPPED_WAIT
        } else {
            STRAY_WAIT
        })
    }
}

/// Stands for a call in a task: whatever ends that task early, the session does not wait for it.
struct Abandoned(Option<Arc<Core>>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(core) = self.0.take() {
            core.break_running();
        }
    }
}
