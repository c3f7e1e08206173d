//! [`OpenSession`]: a session that is open around a retry layer, whatever its tag is.

use std::{
    any::TypeId,
    sync::{Arc, Weak},
};

use http::Extensions;

use super::{
    core::Core,
    db_session::{DbSession, DefaultDatabase},
    end::refuse,
};
use crate::error::Kind;

/// A session in its request's extensions, by which a retry layer that is further in finds it whatever its tag is.
#[derive(Clone)]
pub(crate) struct OpenSession(Weak<Core>);

impl OpenSession {
    /// Notes a session in its request's extensions.
    pub(crate) fn note<Tag: 'static>(session: &DbSession<Tag>, extensions: &mut Extensions) {
        // The default tag's is found without, and costs nothing.
        if TypeId::of::<Tag>() != TypeId::of::<DefaultDatabase>() {
            extensions.insert(Self::of(session));
        }
    }

    fn of<Tag>(session: &DbSession<Tag>) -> Self {
        Self(Arc::downgrade(session.handle().core))
    }

    /// Returns a session that is open around what gets a request with these extensions.
    pub(crate) fn find(extensions: &Extensions) -> Option<Self> {
        let session = extensions.get::<DbSession>();
        // A request that was kept carries the handle of a session that is over.
        let session = session.filter(|session| !session.has_ended());
        let tagged = || {
            extensions
                .get::<Self>()
                .filter(|one| one.is_open())
                .cloned()
        };
        session.map(Self::of).or_else(tagged)
    }

    fn is_open(&self) -> bool {
        self.0.upgrade().is_some_and(|core| !core.is_over())
    }

    /// Ends it: with a retry layer inside, its response is an error.
    pub(crate) fn refuse_retries(&self) {
        if let Some(core) = self.0.upgrade() {
            refuse(&core, Kind::RetryInside);
        }
    }
}
