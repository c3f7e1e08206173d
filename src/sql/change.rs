//! [`Change`]: what a text of SQL may leave behind on its connection.

/// What a text of SQL may leave behind; the worst of its statements counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Change {
    /// Nothing but data.
    #[default]
    None,
    /// Settings that end with the transaction.
    Transaction,
    /// Locks of MySQL, which it can give back without knowing them.
    Locks,
    /// What the connection is told to be: settings, role, locks, temporary objects, cursors.
    Session,
    /// What no statement takes back.
    Beyond,
}
