//! [`Classified`]: the answers that a statement's text gives: its [`Effect`] on the transaction, its [`Change`] of the
//! session.

/// The answers that a statement's text gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Classified {
    /// Its effect on the transaction around it.
    pub(crate) effect: Effect,
    /// The session state that it may leave behind.
    pub(crate) change: Change,
    /// It is one statement that only reads, so that nothing is lost if the
    /// server stops it half-way. In doubt it is not.
    pub(crate) reads_only: bool,
    /// Behind it, statements that are prepared may not fit their tables any
    /// more, or be gone. PostgreSQL refuses such a one; SQLite prepares it
    /// anew, but sqlx goes on with the columns from before. MySQL needs
    /// nothing.
    pub(crate) outdates: bool,
    /// It does nothing lasting unless a transaction is open.
    pub(crate) needs_transaction: bool,
    /// The earlier statement of the same connection that its answer is about.
    pub(crate) asks: Earlier,
    /// What it is itself to a later statement that asks.
    pub(crate) is: Earlier,
}

impl Classified {
    /// The session's own COMMIT and the like, whose consequences it knows.
    pub(crate) const OWN: Self = Self::plain(false, Earlier::Any);

    /// Code without a text, which may do anything but end PostgreSQL's session.
    pub(crate) const OPAQUE: Self = Self {
        effect: Effect::Unknown,
        change: Change::Session,
        reads_only: false,
        outdates: false,
        needs_transaction: false,
        asks: Earlier::None,
        is: Earlier::Insert,
    };

    /// A statement that works on rows and on nothing else.
    pub(super) const fn plain(reads_only: bool, is: Earlier) -> Self {
        Self {
            effect: Effect::None,
            change: Change::None,
            reads_only,
            outdates: false,
            needs_transaction: false,
            asks: Earlier::None,
            is,
        }
    }

    /// Returns whether its text does not say what it does to the transaction
    /// around it.
    pub(crate) fn is_doubtful(self) -> bool {
        self.effect == Effect::Unknown
    }
}

/// A statement that a later one of the same connection may ask about, from the
/// one that all are to the rarest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
// The order counts, for `max`.
pub(crate) enum Earlier {
    None,
    /// Any: about its warnings, or the rows that it found or changed.
    Any,
    /// One that writes: about the number of its rows, on SQLite.
    Write,
    /// One that inserts: about its last identifier.
    Insert,
}

/// The effect of a text of SQL on the transaction around it; the worst of its
/// statements counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
// In order of severity, for `max`. Sorted otherwise, a COMMIT beside a CALL
// would count as unknown and be sent (H15).
pub(crate) enum Effect {
    /// None of its statements touches transactions.
    None,
    /// Unknown by its text: stored code or an unknown statement of MySQL, a
    /// text that ends inside a quote.
    Unknown,
    /// The server commits the open transaction before it (MySQL, MariaDB only).
    CommitsImplicitly,
    /// Transaction control, to be refused always.
    Control(TransactionControl),
}

/// A statement that begins, ends or sets a transaction, which only the session
/// may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TransactionControl {
    Begin,
    Commit,
    Rollback,
    /// To set one, to roll back to it or to release it.
    Savepoint,
    /// The next transaction's properties, or whether statements have one of
    /// their own.
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

/// The session state that a text of SQL may leave behind; the worst of its
/// statements counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
// In order of severity, for `max`: nothing milder may hide what only a new
// connection undoes (G13).
pub(crate) enum Change {
    /// Nothing but data.
    #[default]
    None,
    /// Settings that end with the transaction.
    Transaction,
    /// Locks of MySQL, which can be released without being known.
    Locks,
    /// State of the connection that can be put back: settings, role, locks,
    /// temporary objects, cursors.
    Session,
    /// State that no statement puts back.
    Beyond,
}
