//! [`Hold`]: where the fate of an answer is decided, at its head or at its body's end.

use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Wake, Waker},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use http::HeaderMap;

use super::BoxError;
use crate::Error;

/// Settles the transaction of a body that has come to its end.
///
/// `Ok` lets the rest of the body out, whether that was a commit or, by the trailers, a rollback;
/// `Err` breaks the body. Dropped without being called, it has to roll back. The future may be
/// dropped as well, when the client leaves meanwhile: it must see a COMMIT through that was sent.
pub(crate) type Finish = Box<dyn FnOnce(End) -> BoxFuture<'static, Result<(), BoxError>> + Send>;

/// How a body ended.
#[derive(Debug)]
pub(crate) struct End {
    /// They are on their way to the client when `finish` says `Ok`.
    pub(crate) trailers: Option<HeaderMap>,
}

/// Shared by a [`SessionBody`](super::SessionBody) and the response future that it goes through.
#[derive(Clone)]
pub(crate) struct Hold(Arc<Shared>);

/// What the session knows of the body that it lives for: its end must not depend on the session's.
#[derive(Clone)]
pub(crate) struct WeakHold(Weak<Shared>);

/// The body's end of a [`Hold`]. Dropped, it gives the decision back, or rolls back.
pub(super) struct HoldGuard(Hold);

/// The waker of the inner body, so that it is known how long the reader leaves it waiting.
struct Shared(Mutex<State>);

struct State {
    fate: Fate,
    /// Wakes the reader.
    reader: Option<Waker>,
    /// Since when it is the reader's turn: a part was handed out, or there is news, and nothing was asked
    /// for since.
    due: Option<Instant>,
}

enum Fate {
    /// The head has not passed the layer yet. So many bytes were read below it.
    Open { read: u64 },
    /// The body decides.
    Engaged { finish: Finish, terms: Terms },
    /// The head has decided.
    Passed,
    /// The session was cut off.
    Broken(Error),
    /// The body is empty, was read to its end, has failed or is gone.
    Over { failed: bool },
}

/// What a body that decides has to go by.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    pub(super) content_length: Option<u64>,
}

/// What the inner body just said.
#[derive(Clone, Copy)]
pub(super) enum Seen {
    More,
    End,
    Error,
}

impl Hold {
    pub(super) fn new(is_empty: bool) -> (Self, HoldGuard) {
        let fate = if is_empty {
            Fate::Over { failed: false }
        } else {
            Fate::Open { read: 0 }
        };
        let hold = Self(Arc::new(Shared(Mutex::new(State {
            fate,
            reader: None,
            due: None,
        }))));
        (hold.clone(), HoldGuard(hold))
    }

    /// Whether the body is still there to decide. If not, the answer is settled at its head.
    pub(crate) fn is_wanted(&self) -> bool {
        matches!(self.0.lock().fate, Fate::Open { .. })
    }

    /// Whether the body failed before the head got here: nothing to commit, whatever the head says.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.0.lock().fate, Fate::Over { failed: true })
    }

    /// From here on the body decides.
    ///
    /// # Errors
    ///
    /// Gives `finish` back if the body will not be read to its end from here: it was dropped, or
    /// read, or its `Content-Length` is met. The answer is then settled at its head.
    pub(crate) fn engage(&self, finish: Finish, content_length: Option<u64>) -> Result<(), Finish> {
        let mut state = self.0.lock();
        let Fate::Open { read } = state.fate else {
            return Err(finish);
        };
        if content_length.is_some_and(|length| length <= read) {
            state.fate = Fate::Passed;
            return Err(finish);
        }
        state.fate = Fate::Engaged {
            finish,
            terms: Terms { content_length },
        };
        state.due = Some(Instant::now());
        Ok(())
    }

    /// The head decides: the body goes through as it is.
    pub(crate) fn pass(&self) {
        let mut state = self.0.lock();
        if let Fate::Open { .. } = state.fate {
            state.fate = Fate::Passed;
        }
    }

    /// The session is over: the body is not to be completed, and whoever waits for more of it is told now.
    pub(crate) fn break_off(&self, why: Error) {
        self.0.break_off(why);
    }

    pub(crate) fn downgrade(&self) -> WeakHold {
        WeakHold(Arc::downgrade(&self.0))
    }
}

impl WeakHold {
    /// [`Hold::break_off`], if the body is still there.
    pub(crate) fn break_off(&self, why: Error) {
        if let Some(shared) = self.0.upgrade() {
            shared.break_off(why);
        }
    }

    /// For how long the body that decides has waited for its reader.
    pub(crate) fn unread_for(&self) -> Option<Duration> {
        let shared = self.0.upgrade()?;
        let state = shared.lock();
        state
            .due
            .filter(|_| matches!(state.fate, Fate::Engaged { .. }))
            .map(|due| due.elapsed())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn break_off(&self, why: Error) {
        let mut state = self.lock();
        if !matches!(state.fate, Fate::Open { .. } | Fate::Engaged { .. }) {
            return;
        }
        let before = mem::replace(&mut state.fate, Fate::Broken(why));
        let reader = state.reader.take();
        drop(state);
        // Not under the lock: a rollback begins where `finish` is dropped.
        drop(before);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut state = self.lock();
        state.due.get_or_insert_with(Instant::now);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl HoldGuard {
    /// The reader asks for more: returns the waker for the inner body.
    ///
    /// # Errors
    ///
    /// If the session was cut off.
    pub(super) fn ask(&self, reader: &Waker) -> Result<Waker, Error> {
        let mut state = self.0.0.lock();
        if let Fate::Broken(why) = &state.fate {
            return Err(why.clone());
        }
        state.due = None;
        let is_known = state
            .reader
            .as_ref()
            .is_some_and(|known| known.will_wake(reader));
        let before = if is_known {
            None
        } else {
            state.reader.replace(reader.clone())
        };
        drop(state);
        // Not under the lock: with the last waker of a task goes all that the task owns.
        drop(before);
        Ok(self.0.0.clone().into())
    }

    /// Tells what was read, and asks in the same step whether this body decides.
    pub(super) fn report(&self, total: u64, seen: Seen) -> Option<Terms> {
        let mut state = self.0.0.lock();
        match state.fate {
            Fate::Open { .. } => {
                state.fate = match seen {
                    Seen::More => Fate::Open { read: total },
                    Seen::End => Fate::Over { failed: false },
                    Seen::Error => Fate::Over { failed: true },
                };
                None
            }
            Fate::Engaged { terms, .. } => {
                state.due = Some(Instant::now());
                Some(terms)
            }
            Fate::Passed | Fate::Broken(_) | Fate::Over { .. } => None,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(
            self.0.0.lock().fate,
            Fate::Open { .. } | Fate::Engaged { .. } | Fate::Broken(_)
        )
    }

    /// How the body is to be settled.
    ///
    /// # Errors
    ///
    /// If the session was cut off meanwhile.
    pub(super) fn finish(self) -> Result<Option<Finish>, Error> {
        match self.leave() {
            Fate::Engaged { finish, .. } => Ok(Some(finish)),
            Fate::Broken(why) => Err(why),
            _ => Ok(None),
        }
    }

    fn leave(&self) -> Fate {
        let mut state = self.0.0.lock();
        let failed = matches!(state.fate, Fate::Over { failed: true });
        mem::replace(&mut state.fate, Fate::Over { failed })
    }
}

impl Drop for HoldGuard {
    fn drop(&mut self) {
        // Not under the lock: a rollback begins where `finish` is dropped.
        drop(self.leave());
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fate = match self.0.lock().fate {
            Fate::Open { .. } => "open",
            Fate::Engaged { .. } => "engaged",
            Fate::Passed => "passed",
            Fate::Broken(_) => "broken",
            Fate::Over { .. } => "over",
        };
        f.debug_tuple("Hold").field(&fate).finish()
    }
}
