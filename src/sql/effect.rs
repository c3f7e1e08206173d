//! [`Effect`]: what a text of SQL may do to the transaction around it.

/// What a text of SQL may do to the transaction around it; the worst of its statements counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Effect {
    /// None of its statements touches transactions.
    None,
    /// It cannot be told: stored code or an unknown statement of MySQL, a text that ends inside of a quote.
    Unknown,
    /// A statement that commits what came before by itself (MySQL, MariaDB only).
    CommitsImplicitly,
    /// Transaction control, to be refused always.
    Control(Control),
}

/// What a statement asks for that is the session's to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Control {
    Begin,
    Commit,
    Rollback,
    /// To set one, to roll back to it or to release it.
    Savepoint,
    /// The next transaction's properties, or whether statements have one of their own.
    SetTransaction,
    /// A transaction that outlives the connection.
    TwoPhase,
}
