//! The ways out: a call left behind, a transaction abandoned, a session released or ended.

use std::sync::{Arc, MutexGuard};

use sea_orm::DbErr;
use tokio::sync::oneshot;

use super::{
    core::Core,
    running::{CallFuture, Leave, Manner, Purpose},
    slot::{Level, Phase, Slot, State, Who},
};
use crate::{connection::Operation, error::Kind};

impl Core {
    /// Runs a call that nobody waits for to its end, in a task of its own.
    pub(super) fn drain(self: &Arc<Self>, future: CallFuture, leave: Leave) {
        let Leave { runtime, patience, victim, .. } = leave;
        let (mut guard, pool, handle) = (Abandoned(Some(self.clone())), self.pool().clone(), runtime.clone());
        let draining = async move {
            let ending = async {
                match victim {
                    None => future.await,
                    Some(victim) => pool.see_off(future, &victim, &handle).await,
                }
            };
            let finished = match patience {
                None => Some(ending.await),
                Some(bound) => tokio::time::timeout(bound, ending).await.ok(),
            };
            match finished {
                Some(finished) => drop(guard.0.take().map(|core| core.finish(finished))),
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
        let Slot::Running(running) = &state.slot else { return };
        if running.purpose == Purpose::Commit {
            state.commit_lost();
        }
        let ended = std::mem::replace(&mut state.slot, Slot::Broken);
        let released = state.released.take();
        let over = state.is_over();
        if over {
            state.roll_back_all();
        }
        drop(state);
        drop((ended, released));
        if over {
            self.run_hooks();
        }
    }

    /// Marks a transaction whose handle was dropped, and starts its rollback if nothing runs.
    pub(super) fn abandon(self: &Arc<Self>, level: Level) {
        {
            let mut state = self.lock();
            let Some(position) = state.levels.iter().position(|open| open.id == level) else { return };
            for open in &mut state.levels[position..] {
                open.abandoned = true;
            }
        }
        let Ok(turn) = self.try_turn() else { return };
        // Who could use the session next: what remains when the abandoned are gone.
        let who = self.lock().remaining();
        if let Ok(call) = self.launch(turn, who, None, Operation::Settle, false) {
            // Dropped unpolled, the call moves to a task.
            drop(call);
        }
    }

    /// Gives the connection back before the request ends; the next statement checks out again.
    pub(super) async fn release(self: &Arc<Self>) -> Result<(), DbErr> {
        let _turn = self.take_turn().await?;
        let mut state = self.lock();
        if state.admit(Who::Session).map_err(Kind::into_db_err)? > 0 {
            return Err(Kind::TransactionOpen.into_db_err());
        }
        if let Slot::Idle(connection) = std::mem::replace(&mut state.slot, Slot::Empty) {
            state.span.released();
            drop(state);
            connection.give_back(|| ());
        }
        Ok(())
    }

    /// Ends the session: its handles are dead from here on, its connection goes back.
    ///
    /// The receiver is there when a transaction is open, or on its way back: it resolves when that is
    /// rolled back.
    pub(super) fn end(self: &Arc<Self>) -> Option<oneshot::Receiver<()>> {
        let mut state = self.lock();
        if state.is_over() {
            return state.cut.as_mut()?.gone.take();
        }
        state.phase = Phase::Over;
        let gone = self.take_away(state);
        // Who gets the turn before that is told the same.
        self.turn().close();
        gone
    }

    /// Takes the connection, and what runs on it, from a session that is over. The receiver is as
    /// [`end`](Self::end) has it; where the request goes on, it is left for its end.
    pub(super) fn take_away(self: &Arc<Self>, mut state: MutexGuard<'_, State>) -> Option<oneshot::Receiver<()>> {
        // What the handler dropped is being rolled back: that counts as open until it is done.
        let unclean = match &state.slot {
            Slot::Idle(connection) => connection.depth() > 0,
            Slot::Running(running) => running.purpose == Purpose::Other,
            Slot::Empty | Slot::Broken => false,
        };
        let open = !state.levels.is_empty() || unclean;
        let outcome = state.outcome();
        state.span.close(outcome);
        // A running call, which may be a COMMIT, has the last word on what becomes of the hooks.
        if !matches!(state.slot, Slot::Running(_)) {
            state.roll_back_all();
        }
        let receiver = open.then(|| {
            let (sender, receiver) = oneshot::channel();
            state.released = Some(sender);
            receiver
        });
        let receiver = match &mut state.cut {
            None => receiver,
            Some(cut) => {
                cut.gone = receiver;
                None
            }
        };
        match std::mem::replace(&mut state.slot, Slot::Empty) {
            Slot::Idle(connection) => {
                let released = state.released.take();
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
                state.released = None;
                let is_any_due = state.hooks.is_any_due();
                drop(state);
                if is_any_due {
                    self.run_hooks();
                }
            }
        }
        receiver
    }

    /// Takes the running call, if there is one, away from whoever polls it, for good: a task runs it to
    /// its end, and has the server stop it if it may be stopped. Raw code is dropped.
    pub(super) fn seize(self: &Arc<Self>) {
        let mut state = self.lock();
        let Slot::Running(running) = &mut state.slot else { return };
        if let Some(stop) = &running.stop {
            stop.at_the_end();
        }
        running.stop_stream();
        // Without, it is in a task already, or whoever is polling it right now sees to it.
        let Some(future) = running.future.take() else { return };
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

/// Stands for a call in a task: whatever ends that task early, the session does not wait for it.
struct Abandoned(Option<Arc<Core>>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(core) = self.0.take() {
            core.break_running();
        }
    }
}
