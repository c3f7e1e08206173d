//! [`Hold`]: where the fate of an answer is decided, at its head or at its body's end.

use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::BoxFuture;
use http::HeaderMap;

use super::BoxError;

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
pub(crate) struct Hold(Arc<Mutex<Fate>>);

/// The body's end of a [`Hold`]. Dropped, it gives the decision back, or rolls back.
pub(super) struct HoldGuard(Hold);

enum Fate {
    /// The head has not passed the layer yet. So many bytes were read below it.
    Open { read: u64 },
    /// The body decides.
    Engaged { finish: Finish, terms: Terms },
    /// The head has decided.
    Passed,
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
        let fate = if is_empty { Fate::Over { failed: false } } else { Fate::Open { read: 0 } };
        let hold = Self(Arc::new(Mutex::new(fate)));
        (hold.clone(), HoldGuard(hold))
    }

    /// Whether the body is still there to decide. If not, the answer is settled at its head.
    pub(crate) fn is_wanted(&self) -> bool {
        matches!(*self.lock(), Fate::Open { .. })
    }

    /// Whether the body failed before the head got here: nothing to commit, whatever the head says.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(*self.lock(), Fate::Over { failed: true })
    }

    /// From here on the body decides.
    ///
    /// # Errors
    ///
    /// Gives `finish` back if the body will not be read to its end from here: it was dropped, or
    /// read, or its `Content-Length` is met. The answer is then settled at its head.
    pub(crate) fn engage(&self, finish: Finish, content_length: Option<u64>) -> Result<(), Finish> {
        let mut fate = self.lock();
        let Fate::Open { read } = *fate else { return Err(finish) };
        if content_length.is_some_and(|length| length <= read) {
            *fate = Fate::Passed;
            return Err(finish);
        }
        *fate = Fate::Engaged { finish, terms: Terms { content_length } };
        Ok(())
    }

    /// The head decides: the body goes through as it is.
    pub(crate) fn pass(&self) {
        let mut fate = self.lock();
        if let Fate::Open { .. } = *fate {
            *fate = Fate::Passed;
        }
    }
}

impl Hold {
    fn lock(&self) -> MutexGuard<'_, Fate> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HoldGuard {
    /// Tells what was read, and asks in the same step whether this body decides.
    pub(super) fn report(&self, total: u64, seen: Seen) -> Option<Terms> {
        let mut fate = self.0.lock();
        match &*fate {
            Fate::Open { .. } => {
                *fate = match seen {
                    Seen::More => Fate::Open { read: total },
                    Seen::End => Fate::Over { failed: false },
                    Seen::Error => Fate::Over { failed: true },
                };
                None
            }
            Fate::Engaged { terms, .. } => Some(*terms),
            Fate::Passed | Fate::Over { .. } => None,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(*self.0.lock(), Fate::Open { .. } | Fate::Engaged { .. })
    }

    pub(super) fn finish(self) -> Option<Finish> {
        self.leave()
    }

    fn leave(&self) -> Option<Finish> {
        let mut fate = self.0.lock();
        let failed = matches!(*fate, Fate::Over { failed: true });
        match mem::replace(&mut *fate, Fate::Over { failed }) {
            Fate::Engaged { finish, .. } => Some(finish),
            _ => None,
        }
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
        let fate = match *self.lock() {
            Fate::Open { .. } => "open",
            Fate::Engaged { .. } => "engaged",
            Fate::Passed => "passed",
            Fate::Over { .. } => "over",
        };
        f.debug_tuple("Hold").field(&fate).finish()
    }
}
