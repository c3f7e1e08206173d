//! [`Change`]: the session state that a text of SQL may leave behind.

/// The session state that a text of SQL may leave behind; the worst of its statements counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Change {
    /// Nothing but data.
    #[default]
    None,
    /// Settings that end with the transaction.
    Transaction,
    /// Locks of MySQL, which can be released without being known.
    Locks,
    /// State of the connection that can be put back: settings, role, locks, temporary objects, cursors.
    Session,
    /// State that no statement puts back.
    Beyond,
}
