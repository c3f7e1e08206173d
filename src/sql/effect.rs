//! [`Effect`]: the effect of a text of SQL on the transaction around it.

/// The effect of a text of SQL on the transaction around it; the worst of its statements counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Effect {
    /// None of its statements touches transactions.
    None,
    /// Unknown by its text: stored code or an unknown statement of MySQL, a text that ends inside a quote.
    Unknown,
    /// The server commits the open transaction before it (MySQL, MariaDB only).
    CommitsImplicitly,
    /// Transaction control, to be refused always.
    Control(TransactionControl),
}

/// A statement that begins, ends or sets a transaction, which only the session may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TransactionControl {
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

impl TransactionControl {
    pub(crate) const ALL: [Self; 6] = [
        Self::Begin,
        Self::Commit,
        Self::Rollback,
        Self::Savepoint,
        Self::SetTransaction,
        Self::TwoPhase,
    ];
}
