//! Opening sessions, for requests and for work outside of them.

use std::time::Instant;

use super::{DbSession, core::Core, guard::SessionGuard};
use crate::{Error, SessionPool};

impl SessionPool {
    /// Opens a session: acquires a connection and pins it until the returned handle is dropped.
    ///
    /// # Errors
    ///
    /// [`is_exhausted`](Error::is_exhausted), [`is_down`](Error::is_down) or
    /// [`is_closing`](Error::is_closing).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in the queue; no connection is lost.
    pub async fn session(&self) -> Result<PoolSession, Error> {
        let (session, guard) = self.eager_session().await?;
        Ok(PoolSession { session, _guard: guard })
    }

    pub(crate) async fn eager_session<Tag>(&self) -> Result<(DbSession<Tag>, SessionGuard), Error> {
        if self.is_direct() {
            return Ok(self.lazy_session());
        }
        let started = Instant::now();
        let lease = self.acquire().await?;
        Ok(DbSession::guarded(Core::with_connection(self.clone(), lease, started.elapsed())))
    }

    pub(crate) fn lazy_session<Tag>(&self) -> (DbSession<Tag>, SessionGuard) {
        DbSession::guarded(Core::new(self.clone()))
    }
}

/// A session taken from a [`SessionPool`] outside of a request.
///
/// It is a [`DbSession`] by [`Deref`](std::ops::Deref), and ends when it is dropped: what is not
/// committed is rolled back and the connection returns.
#[derive(Debug)]
#[must_use = "the session ends when it is dropped"]
pub struct PoolSession {
    session: DbSession,
    _guard: SessionGuard,
}

impl std::ops::Deref for PoolSession {
    type Target = DbSession;

    fn deref(&self) -> &DbSession {
        &self.session
    }
}
