//! A session as its pool sees it: what it holds, and how its connection is
//! taken away while its handler goes on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use super::{
    core::Core,
    end::cut_off,
    lend,
    phase::CutOff,
    slot::{CallKind, PolledBy, Slot},
    stack::Purpose,
    worker::drive,
};
use crate::{
    error::Kind,
    pool::{Doubt, DriverPool, Grip, Holder, Label},
};

impl Holder for Core {
    fn request(self: Arc<Self>) -> Option<Arc<dyn Holder>> {
        self.request_holder()
    }

    fn is_on(&self, driver: &DriverPool) -> bool {
        self.pool().driver().is_same(driver)
    }

    fn is_bound(&self) -> bool {
        self.origin.is_bound()
    }

    fn waits(&self) -> &AtomicU32 {
        &self.origin.own_waits
    }

    fn holds(&self) -> &AtomicU32 {
        &self.origin.own_holds
    }

    fn beside(&self) -> &AtomicU32 {
        &self.origin.open_beside
    }

    fn note_committed(&self) {
        self.origin
            .has_committed_beside
            .store(true, Ordering::Relaxed);
    }

    fn grip(&self) -> Grip {
        let state = self.lock();
        // A session that is busy is not part of a deadlock: its call ends, and
        // the connection may come free. Nor is one that will lend.
        match state.slot {
            // Only the clean-up still runs, which nothing but itself can delay.
            _ if state.phase.is_over() => Grip::None,
            Slot::Idle(_) if lend::is_lendable(self, &state) => Grip::Lendable,
            Slot::Idle(_) => Grip::Idle,
            Slot::Running(_) => Grip::Busy,
            Slot::Empty | Slot::Broken => Grip::None,
        }
    }

    fn doubtful(&self) -> Option<Doubt> {
        let state = self.lock();
        let running = state.slot.call()?;
        // A stream may wait for its reader, and user code for anything; a call
        // in a task is bounded by the `release_timeout`.
        if running.kind != CallKind::Statement || running.polled_by == PolledBy::Task {
            return None;
        }
        // SQLite has no server that could be asked.
        let handle = running.cancel_handle.clone()?;
        Some(Doubt {
            turn: handle.turn(),
            handle,
        })
    }

    fn look_at_call(self: Arc<Self>) {
        // A handler may keep the future of a statement without polling it: its
        // answer may lie in the socket.
        drive(&self);
    }

    fn label(&self) -> Option<Label> {
        self.origin.label()
    }

    fn last_statement(&self) -> String {
        let mut state = self.lock();
        let text = match &mut state.slot {
            Slot::Idle(connection) => connection.text(),
            Slot::Running(running) => &mut running.text,
            Slot::Empty | Slot::Broken => return String::new(),
        };
        // Only now: nearly no statement is ever asked for, and reading it takes
        // time.
        text.without_values(self.pool().backend())
    }

    fn unread_for(&self) -> Option<Duration> {
        // Cloned out, because the body's lock is not taken under this one.
        let held = self.lock().body_hold.clone();
        held?.unread_for()
    }

    fn lend(self: Arc<Self>) {
        lend::lend(&self);
    }

    fn cut(self: Arc<Self>, reason: Kind) -> bool {
        let mut state = self.lock();
        let has_something =
            // In a pass-through session the connection is SeaORM's, and only
            // the right to use it can be taken away.
            matches!(state.slot, Slot::Idle(_) | Slot::Running(_)) || self.pool().is_direct();
        // A session that settles comes to its end by itself, and a COMMIT that
        // the handler has sent is not cut off: its outcome would be unknown for
        // no need (G7; `a_commit_that_was_sent_is_seen_through`).
        let commits = state.slot.purpose() == Some(Purpose::Commit);
        if !state.phase.is_open() || !has_something || commits {
            return false;
        }
        // Taken under the lock, and ended after it: a body wakes its reader.
        let own = state.through.own.take();
        let body = state.body_hold.take();
        // Without an open transaction, nothing is lost but the connection: the
        // response may still be a success. Shown by
        // `autocommitted_writes_stand_and_so_does_a_response_below_500`.
        let has_lost = state.stack.has_work();
        let cut = CutOff {
            reason,
            has_lost,
            rollback: None,
        };
        cut_off(&self, state, cut);
        // SeaORM rolls it back, now or when the statement that runs in it has
        // ended.
        drop(own);
        if let Some(body) = body {
            body.break_off(reason.into());
        }
        true
    }
}
