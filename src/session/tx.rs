//! [`DbTx`]: a handle to a session that is in its own transaction.

use std::{fmt, ops::Deref};

use http::Extensions;
use sea_orm::DbBackend;

use super::{
    db_session::{DbSession, DefaultDatabase},
    statement::Handle,
};
use crate::error::Error;

/// A request's session in a transaction. As a handler argument, it makes
/// everything that the request does commit together, before a successful
/// response is sent, or not at all.
///
/// It is a handle like [`DbSession`] (and dereferences to one): you can use it
/// wherever generic code takes a `&DatabaseConnection`, clones are the same
/// session, and dropping it does nothing. A `DbSession` and a `DbTx` of one
/// request share one transaction.
///
/// BEGIN is sent before the first statement, so a request that runs none costs
/// nothing. The response ends the transaction: a status below 400 commits it,
/// anything else rolls it back (see
/// [`commit_when`](crate::DbSessionLayer::commit_when)).
/// [`commit`](DbSession::commit) and [`rollback`](DbSession::rollback) end it
/// early.
pub struct DbTx<Tag = DefaultDatabase>(pub(super) DbSession<Tag>);

impl DbTx {
    /// Returns a request's transaction from the extensions where the layer put
    /// its session; for handlers without axum.
    ///
    /// # Errors
    ///
    /// [`is_missing_layer`](Error::is_missing_layer) if there is none.
    pub fn from_extensions(extensions: &Extensions) -> Result<Self, Error> {
        Self::tagged(extensions)
    }
}

impl<Tag> DbTx<Tag> {
    /// [`from_extensions`](DbTx::from_extensions) for the sessions of a tag:
    /// `DbTx::<Analytics>::tagged(request.extensions())`.
    ///
    /// # Errors
    ///
    /// [`is_missing_layer`](Error::is_missing_layer) if there is none.
    pub fn tagged(extensions: &Extensions) -> Result<Self, Error>
    where
        Tag: 'static,
    {
        DbSession::tagged(extensions).map(|session| session.tx())
    }

    /// Returns the database's kind; the method has the name that SeaORM's own
    /// types use.
    pub fn get_database_backend(&self) -> DbBackend {
        self.backend()
    }

    pub(super) fn handle(&self) -> Handle<'_> {
        self.0.handle()
    }
}

impl<Tag> Deref for DbTx<Tag> {
    type Target = DbSession<Tag>;

    fn deref(&self) -> &DbSession<Tag> {
        &self.0
    }
}

// By hand, because a derived one would ask the tag to be `Clone`.
impl<Tag> Clone for DbTx<Tag> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<Tag> fmt::Debug for DbTx<Tag> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DbTx")
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
