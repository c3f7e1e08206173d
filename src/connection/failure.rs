//! [`Failure`]: how the open transaction has failed.

use sea_orm::{DbBackend, DbErr};

use super::link::Link;
use crate::error::{Kind, server};

/// The way the open transaction failed. sqlx keeps it to itself: it throws the
/// answer of a COMMIT away, even if that is ROLLBACK.
#[derive(Clone, Copy)]
pub(super) enum Failure {
    /// PostgreSQL refuses everything until the transaction of this depth is
    /// rolled back.
    Aborted(usize),
    /// A stream of the transaction of this depth has failed, and its reader
    /// does not know it. If no other one has, all is well when the reader does.
    #[cfg_attr(
        not(feature = "stream"),
        allow(dead_code, reason = "only a stream's reader asks")
    )]
    Unheard { depth: usize, is_only: bool },
    /// All of it is gone from the server: what followed would commit by itself.
    Ended(Kind),
}

impl Failure {
    /// The failure of a stream at this `depth`, behind what has failed `before`.
    pub(super) fn unheard(before: Option<Self>, depth: usize) -> Self {
        match before {
            // To have heard of one says nothing of the other
            // (`a_later_failure_that_was_read_does_not_hide_an_unread_one`).
            Some(Self::Unheard { depth, .. }) => Self::Unheard {
                depth,
                is_only: false,
            },
            Some(failure) => failure,
            None => Self::Unheard {
                depth,
                is_only: true,
            },
        }
    }

    /// What a failed call did to the transaction around it, of this `depth`. A
    /// COMMIT that failed has ended it, or it is about to be rolled back.
    pub(super) fn of(link: &Link, error: &DbErr, depth: usize, commits: bool) -> Option<Self> {
        // A test's COMMIT is the release of a savepoint.
        if commits && !link.is_test() {
            Some(Self::Ended(Kind::Aborted))
        } else if link.backend == DbBackend::MySql || !server::aborts(link.backend, error) {
            // On MySQL the server is asked, since stored code may raise the
            // code of a deadlock. What has ended is given the shape of a
            // transaction by a BEGIN before its rollback, and that would commit
            // one that is open (`an_imitated_deadlock_commits_nothing`).
            None
        } else if link.backend == DbBackend::Postgres {
            // Still open, and good again once it is rolled back to the
            // savepoint before the failure (H8). Shown by
            // `h8_an_error_rolled_back_to_its_savepoint_spares_the_outer_level`.
            Some(Self::Aborted(depth))
        } else {
            // SQLite has rolled back all of it: what follows would commit by
            // itself (H8).
            Some(Self::Ended(Kind::Aborted))
        }
    }

    /// The error by which the server is known to have ended all of it.
    pub(super) fn ended(self) -> Option<Kind> {
        match self {
            Self::Ended(kind) => Some(kind),
            _ => None,
        }
    }

    /// Returns whether it is one of a transaction that is still open if this
    /// many are.
    pub(super) fn is_within(self, depth: usize) -> bool {
        match self {
            Self::Aborted(at) | Self::Unheard { depth: at, .. } => at <= depth,
            Self::Ended(_) => depth > 0,
        }
    }
}

/// Asks the server whether an `error` has ended the transaction, where that
/// alone does not say so. Each server is sent a statement that it refuses
/// inside a transaction, and that does no harm outside.
pub(super) async fn has_vanished(link: &mut Link, error: &DbErr) -> bool {
    if server::is_fatal(error) || server::is_harmless(error) {
        return false;
    }
    let sql = match link.backend {
        // Error 1568 inside a transaction; outside, it only makes the next one
        // READ WRITE.
        DbBackend::MySql => "SET TRANSACTION READ WRITE",
        DbBackend::Sqlite => "BEGIN",
        // PostgreSQL ends no transaction by an error: it aborts it, and that is
        // noted already.
        _ => return false,
    };
    // A list of errors would never be complete; this question has the same
    // answer whatever the error was (G7). Shown by
    // `a_transaction_that_an_error_has_ended_neither_goes_on_nor_commits`.
    let answer = link.run(sql).await;
    if answer.as_ref().is_err_and(server::is_within_transaction) {
        return false;
    }
    if answer.as_ref().is_err_and(server::is_fatal) {
        link.give_up();
    }
    // The BEGIN has succeeded, and is not to stay.
    if answer.is_ok() && link.backend == DbBackend::Sqlite {
        let _ = link.run("ROLLBACK").await;
    }
    // Also where the question itself has failed: what is not proven to be open
    // counts as gone.
    true
}
