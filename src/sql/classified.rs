//! [`Classified`]: the answers that a statement's text gives.

use super::{change::Change, effect::Effect};

/// The answers that a statement's text gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Classified {
    /// Its effect on the transaction around it.
    pub(crate) effect: Effect,
    /// The session state that it may leave behind.
    pub(crate) change: Change,
    /// It is one statement that only reads, so that nothing is lost if the server stops it half-way. In doubt it is
    /// not.
    pub(crate) reads_only: bool,
    /// It does nothing lasting unless a transaction is open.
    pub(crate) needs_transaction: bool,
}

impl Classified {
    /// The session's own COMMIT and the like, whose consequences it knows.
    pub(crate) const OWN: Self = Self::plain(false);

    /// Code without a text, which may do anything but end PostgreSQL's session.
    pub(crate) const OPAQUE: Self = Self {
        effect: Effect::Unknown,
        change: Change::Session,
        reads_only: false,
        needs_transaction: false,
    };

    /// A statement that works on rows and on nothing else.
    pub(super) const fn plain(reads_only: bool) -> Self {
        Self {
            effect: Effect::None,
            change: Change::None,
            reads_only,
            needs_transaction: false,
        }
    }

    /// Returns whether its text does not say what it does to the transaction around it.
    pub(crate) fn is_doubtful(self) -> bool {
        self.effect == Effect::Unknown
    }
}
