//! [`Hold`]: whether the head of a response decides its transaction, or the end of its body.

use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Wake, Waker},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use http::HeaderMap;

use crate::{Error, pool::Scope};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Settles the transaction of a body that has come to its end.
///
/// `Ok` lets the rest of the body out, whether that was a commit or, by the
/// trailers, a rollback; `Err` breaks the body. Dropped without being called,
/// it has to roll back. The future may be dropped as well, when the client
/// leaves meanwhile: it must see a COMMIT through that was sent.
// A boxed closure: `body` stands below `session` (`tests/it/structure.rs`), and
// its type has no session's tag in it, which a handler would have to name.
pub(crate) type Finish = Box<dyn FnOnce(End) -> BoxFuture<'static, Result<(), BoxError>> + Send>;

/// The end of a body.
#[derive(Debug)]
pub(crate) struct End {
    /// They go to the client once the future of `finish` returns `Ok`.
    pub(crate) trailers: Option<HeaderMap>,
}

/// Shared by a [`SessionBody`](super::SessionBody) and the response future that
/// it goes through.
#[derive(Clone)]
pub(crate) struct Hold(Arc<Shared>);

/// The session's reference to the body that it lives for. Weak, because the
/// body owns the session's guard: a strong one would be a cycle.
#[derive(Clone)]
pub(crate) struct WeakHold(Weak<Shared>);

/// The body's side of a [`Hold`]. Dropped, it leaves the decision to the head,
/// or rolls back.
pub(super) struct HoldGuard(Hold);

/// Also the waker of the inner body, so that it is known for how long the
/// reader leaves news unread.
struct Shared(Mutex<HoldState>);

// One lock around all of it: the head passes the layer in one task while
// another may read the body, and what the one decides the other has to see.
struct HoldState {
    phase: HoldPhase,
    /// Wakes the reader.
    reader: Option<Waker>,
    /// Since when it is the reader's turn: a frame was passed on, or the inner
    /// body was woken, and the reader has not polled since.
    due: Option<Instant>,
}

enum HoldPhase {
    /// The head has not passed the layer yet. A middleware below the layer has
    /// read this many bytes.
    Undecided { read: u64 },
    /// The body decides; while it is polled, the session is the current one.
    BodyDecides {
        finish: Finish,
        terms: Terms,
        scope: Option<Scope>,
    },
    /// The head has decided.
    HeadDecides,
    /// The session was cut off.
    CutOff(CutOff),
    /// The body is empty, was read to its end, has failed or was dropped.
    Over { failed: bool },
}

/// The terms of a body that decides.
#[derive(Clone, Copy, Default)]
pub(crate) struct Terms {
    pub(crate) content_length: Option<u64>,
    /// The client reads a status in the trailers, and takes no response without
    /// one for a success.
    pub(crate) has_grpc_trailers: bool,
}

/// Why a body has lost its session, and whether its client can be told so by
/// trailers.
#[derive(Clone)]
pub(super) struct CutOff {
    pub(super) why: Error,
    pub(super) has_grpc_trailers: bool,
}

/// An item of the inner body.
#[derive(Clone, Copy)]
pub(super) enum Seen {
    More,
    End,
    Error,
}

impl Seen {
    pub(super) fn of<T, E>(item: &Option<Result<T, E>>, is_complete: bool) -> Self {
        match item {
            // Before the arm below: an error at the declared length is no end,
            // and must not commit.
            Some(Err(_)) => Self::Error,
            _ if is_complete => Self::End,
            _ => Self::More,
        }
    }
}

impl Hold {
    pub(super) fn new(is_empty: bool) -> (Self, HoldGuard) {
        let phase = if is_empty {
            // A server does not poll it, so that no end of it would ever be
            // seen (H24).
            HoldPhase::Over { failed: false }
        } else {
            HoldPhase::Undecided { read: 0 }
        };
        // One allocation for both sides and the waker.
        let hold = Self(Arc::new(Shared(Mutex::new(HoldState {
            phase,
            reader: None,
            due: None,
        }))));
        (hold.clone(), HoldGuard(hold))
    }

    /// Returns whether the body can still decide. If not, the response is
    /// settled at its head.
    pub(crate) fn is_wanted(&self) -> bool {
        matches!(self.0.lock().phase, HoldPhase::Undecided { .. })
    }

    /// Returns whether the body failed before the head got here. There is
    /// nothing to commit then, even if the head is a success.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.0.lock().phase, HoldPhase::Over { failed: true })
    }

    /// From here on the body decides.
    ///
    /// # Errors
    ///
    /// Returns `finish` if the body will not be read to its end from here: it
    /// was dropped, or read, or its `Content-Length` is met. The response is
    /// then settled at its head.
    pub(crate) fn engage(
        &self,
        finish: Finish,
        terms: Terms,
        scope: Option<Scope>,
    ) -> Result<(), Finish> {
        let mut state = self.0.lock();
        // Handed back, not dropped: dropped, it would roll back what the head
        // can still commit.
        let HoldPhase::Undecided { read } = state.phase else {
            return Err(finish);
        };
        // The server will not ask for more, so that no end would ever be seen.
        if terms.content_length.is_some_and(|length| length <= read) {
            state.phase = HoldPhase::HeadDecides;
            return Err(finish);
        }
        state.phase = HoldPhase::BodyDecides {
            finish,
            terms,
            scope,
        };
        // From here on the reader's time counts (`body_timeout`).
        state.due = Some(Instant::now());
        Ok(())
    }

    /// The head decides: the body goes through as it is.
    pub(crate) fn pass(&self) {
        let mut state = self.0.lock();
        // A body that decides already goes on to: its `finish` was handed over.
        if let HoldPhase::Undecided { .. } = state.phase {
            state.phase = HoldPhase::HeadDecides;
        }
    }

    /// Fails the body, whose session is over, and wakes its reader.
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

    /// Returns for how long a body that decides has waited for its reader.
    pub(crate) fn unread_for(&self) -> Option<Duration> {
        let shared = self.0.upgrade()?;
        let state = shared.lock();
        state
            .due
            // Before that and behind it, no session is kept for this reader
            // (`body_timeout`).
            .filter(|_| matches!(state.phase, HoldPhase::BodyDecides { .. }))
            .map(|due| due.elapsed())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HoldState> {
        // Whatever has poisoned it, a waker's `clone` for example: a panic here
        // would be one in `Drop` (G11).
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn break_off(&self, why: Error) {
        let mut state = self.lock();
        let has_grpc_trailers = match &state.phase {
            // Its terms are not known yet.
            HoldPhase::Undecided { .. } => false,
            HoldPhase::BodyDecides { terms, .. } => terms.has_grpc_trailers,
            // Where the head has decided, or the body is over, the body does
            // without its session.
            _ => return,
        };
        let cut_off = CutOff {
            why,
            has_grpc_trailers,
        };
        let before = mem::replace(&mut state.phase, HoldPhase::CutOff(cut_off));
        let reader = state.reader.take();
        drop(state);
        // Not under the lock: a rollback begins where `finish` is dropped.
        drop(before);
        if let Some(reader) = reader {
            // A body that streams for ever would otherwise keep a graceful
            // shutdown waiting.
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
        // The first wake counts: later ones do not make the reader any faster.
        state.due.get_or_insert_with(Instant::now);
        let reader = state.reader.take();
        drop(state);
        // Without the lock: a waker may poll at once, and the poll takes it.
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl HoldGuard {
    /// Notes that the reader polls, and returns the waker for the inner body,
    /// and the scope to poll it in.
    ///
    /// # Errors
    ///
    /// If the session was cut off.
    pub(super) fn ask(&self, reader: &Waker) -> Result<(Waker, Option<Scope>), CutOff> {
        let mut state = self.0.0.lock();
        let scope = match &state.phase {
            HoldPhase::CutOff(cut_off) => return Err(cut_off.clone()),
            HoldPhase::BodyDecides { scope, .. } => scope.clone(),
            // In the poll of its request, or without a session.
            _ => None,
        };
        // The inner body's turn, until it has a frame or wakes its reader.
        state.due = None;
        // A reader that polls again has most often the same waker: no clone for
        // each frame.
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
        // Not under the lock: with the last waker of a task goes all that the
        // task owns.
        drop(before);
        Ok((self.0.0.clone().into(), scope))
    }

    /// Notes what was read, and returns the terms if this body decides. One
    /// step, because the head may pass the layer in between.
    ///
    /// # Errors
    ///
    /// If the session was cut off while the inner body was polled: what was
    /// read may be the end, which must not go through.
    pub(super) fn report(&self, total: u64, seen: Seen) -> Result<Option<Terms>, CutOff> {
        let mut state = self.0.0.lock();
        Ok(match &state.phase {
            HoldPhase::Undecided { .. } => {
                state.phase = match seen {
                    Seen::More => HoldPhase::Undecided { read: total },
                    // Read to its end below the layer: nothing will poll it
                    // behind the head, which has to decide.
                    Seen::End => HoldPhase::Over { failed: false },
                    Seen::Error => HoldPhase::Over { failed: true },
                };
                None
            }
            HoldPhase::BodyDecides { terms, .. } => {
                let terms = *terms;
                state.due = Some(Instant::now());
                Some(terms)
            }
            HoldPhase::CutOff(cut_off) => return Err(cut_off.clone()),
            // Read on after the head has decided: the body is like any other.
            HoldPhase::HeadDecides | HoldPhase::Over { .. } => None,
        })
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(
            self.0.0.lock().phase,
            // Cut off as well: a server must not take it for complete (G7).
            HoldPhase::Undecided { .. } | HoldPhase::BodyDecides { .. } | HoldPhase::CutOff(_)
        )
    }

    /// Returns what settles the transaction, and the terms, if this body
    /// decides.
    ///
    /// # Errors
    ///
    /// If the session was cut off meanwhile.
    pub(super) fn finish(self) -> Result<Option<(Finish, Terms)>, CutOff> {
        match self.leave() {
            HoldPhase::BodyDecides { finish, terms, .. } => Ok(Some((finish, terms))),
            HoldPhase::CutOff(cut_off) => Err(cut_off),
            _ => Ok(None),
        }
    }

    fn leave(&self) -> HoldPhase {
        let mut state = self.0.0.lock();
        // Kept, since the head may still ask.
        let failed = matches!(state.phase, HoldPhase::Over { failed: true });
        mem::replace(&mut state.phase, HoldPhase::Over { failed })
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
        let phase = match self.0.lock().phase {
            HoldPhase::Undecided { .. } => "undecided",
            HoldPhase::BodyDecides { .. } => "the body decides",
            HoldPhase::HeadDecides => "the head decides",
            HoldPhase::CutOff(_) => "cut off",
            HoldPhase::Over { .. } => "over",
        };
        f.debug_tuple("Hold").field(&phase).finish()
    }
}
