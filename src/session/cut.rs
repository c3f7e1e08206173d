//! Sessions that lose their connection while their handler goes on: held for too long, or the pool
//! closes.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use sea_orm::DbErr;

use super::{core::Core, phase::CutOff, running::Manner, slot::Slot, stack::Purpose};
use crate::{
    error::Kind,
    pool::{Doubt, Grip, Holder, Label, SessionPool},
};

impl Core {
    /// Why the session runs no statements any more.
    pub(super) fn closed(&self) -> DbErr {
        self.lock().closed().into_db_err()
    }

    /// Whether the request has ended; a session that was cut off is closed before that.
    pub(super) fn has_ended(&self) -> bool {
        let state = self.lock();
        state.phase.is_over() && state.phase.cut_off().is_none()
    }

    /// The request that the session belongs to, by that one's outermost session.
    pub(super) fn whose(self: &Arc<Self>) -> Option<Arc<dyn Holder>> {
        match &self.origin.outer {
            Some(outer) => Some(outer.clone()),
            None => self
                .origin
                .is_outermost()
                .then(|| self.clone() as Arc<dyn Holder>),
        }
    }

    /// The same, without keeping it alive.
    pub(super) fn whose_weak(self: &Arc<Self>) -> Option<Weak<dyn Holder>> {
        match &self.origin.outer {
            Some(outer) => Some(Arc::downgrade(outer)),
            None => self
                .origin
                .is_outermost()
                .then(|| Arc::downgrade(self) as Weak<dyn Holder>),
        }
    }

    /// Whether the session's request waits for a connection.
    pub(super) fn is_awaited(&self) -> bool {
        let waits = self
            .origin
            .outer
            .as_ref()
            .map_or(&self.origin.waits, |outer| outer.waits());
        waits.load(Ordering::Relaxed) > 0
    }
}

/// Where a session comes from.
#[derive(Default)]
pub(super) struct Origin {
    /// The outermost session of the request in which it was opened.
    pub(super) outer: Option<Arc<dyn Holder>>,
    /// What its own request is called.
    pub(super) label: Option<Label>,
    /// It is that of a job, for which all holds that is said of a request.
    pub(super) is_job: bool,
    /// Its guard may be in other hands than its request's.
    pub(super) is_loose: bool,
    /// It has no guard: nothing but its handles ends it.
    pub(super) is_plain: bool,
    /// Another session of its own request has committed something.
    pub(super) has_committed_beside: AtomicBool,
    /// How many waits for a connection its own request has.
    pub(super) waits: AtomicU32,
}

impl Origin {
    /// Whether what is opened while its future is polled belongs to it.
    fn is_outermost(&self) -> bool {
        self.label.is_some() || self.is_job
    }

    /// Whether it is a request's, or of one.
    pub(super) fn is_of_request(&self) -> bool {
        self.label.is_some()
            || self
                .outer
                .as_ref()
                .is_some_and(|outer| outer.label().is_some())
    }
}

impl Holder for Core {
    fn request(self: Arc<Self>) -> Option<Arc<dyn Holder>> {
        self.whose()
    }

    fn is_of(&self, pool: &SessionPool) -> bool {
        self.pool().has_database_of(pool)
    }

    fn is_bound(&self) -> bool {
        !self.origin.is_loose
    }

    fn waits(&self) -> &AtomicU32 {
        &self.origin.waits
    }

    fn note_committed(&self) {
        self.origin
            .has_committed_beside
            .store(true, Ordering::Relaxed);
    }

    fn grip(&self) -> Grip {
        match self.lock().slot {
            Slot::Idle(_) => Grip::Idle,
            Slot::Running(_) => Grip::Busy,
            Slot::Empty | Slot::Broken => Grip::None,
        }
    }

    fn doubtful(&self) -> Option<Doubt> {
        let state = self.lock();
        let Slot::Running(running) = &state.slot else {
            return None;
        };
        // A stream may wait for its reader, and user's code for anything.
        let victim = running
            .victim
            .clone()
            .filter(|_| running.manner == Manner::Statement)?;
        Some(Doubt {
            turn: victim.turn(),
            victim,
        })
    }

    fn look_at_call(self: Arc<Self>) {
        self.drive();
    }

    fn label(&self) -> Option<Label> {
        self.origin
            .label
            .clone()
            .or_else(|| self.origin.outer.as_ref()?.label())
    }

    fn last_statement(&self) -> String {
        let mut state = self.lock();
        let text = match &mut state.slot {
            Slot::Idle(connection) => connection.text(),
            Slot::Running(running) => &mut running.text,
            Slot::Empty | Slot::Broken => return String::new(),
        };
        text.without_values(self.pool().backend())
    }

    fn unread_for(&self) -> Option<Duration> {
        let held = self.lock().held.clone();
        held?.unread_for()
    }

    fn cut(self: Arc<Self>, reason: Kind) -> bool {
        let mut state = self.lock();
        let has_something =
            matches!(state.slot, Slot::Idle(_) | Slot::Running(_)) || self.pool().is_direct();
        // A session that settles comes to its end by itself.
        let commits = state.slot.purpose() == Some(Purpose::Commit);
        if !state.phase.is_open() || !has_something || commits {
            return false;
        }
        let cut_off = CutOff {
            reason,
            has_lost: state.stack.has_work(),
            rollback: None,
        };
        let direct = state.through.take_own();
        let held = state.held.take();
        drop(self.take_away(state, Some(Box::new(cut_off))));
        self.line().close();
        // SeaORM rolls it back, now or when the statement that runs in it has ended.
        drop(direct);
        if let Some(held) = held {
            held.break_off(reason.into());
        }
        true
    }
}
