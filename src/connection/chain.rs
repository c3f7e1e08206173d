//! [`Chain`]: a transaction that begins in the round trip of the COMMIT before it.

use std::sync::Arc;

use sea_orm::{DbBackend, DbErr, TransactionOptions};

use super::{begin::begin_statement, link::Link, transaction::Transaction};
use crate::error::{Error, Kind};

/// A transaction that begins in the round trip of the COMMIT before it, for a session that waits for one.
pub(crate) struct Chain {
    /// The options that the session wants.
    pub(crate) options: TransactionOptions,
    /// The newest of the waiters that it may go to. The server takes the arrival of that COMMIT for its beginning: for a
    /// request that came later, `now()` would lie before its arrival.
    pub(crate) newest: u64,
    /// One for each that is on its way to a waiter.
    pub(crate) _counted: Arc<()>,
}

impl Chain {
    /// Commits, and begins the transaction. Where the one is committed and the other has not begun, the connection is given
    /// up.
    ///
    /// On PostgreSQL not by `COMMIT AND CHAIN`, whose transaction would inherit what the last session has set of its own by
    /// `SET TRANSACTION` (H35). MySQL refuses that inside a transaction, and there COMMIT has to be alone in its text (H36).
    pub(super) async fn begin(
        self,
        link: &mut Link,
        transaction: &mut Transaction,
    ) -> Result<(), DbErr> {
        if link.backend == DbBackend::MySql {
            commit_and_chain(link).await?;
            transaction.chain = Some(self);
            return Ok(());
        }
        let begin = begin_statement(link.backend, self.options, 0)?.statement;
        let begin = begin.as_deref().unwrap_or("BEGIN");
        if link.driver.commit_and_begin(begin).await? {
            transaction.chain = Some(self);
        } else {
            link.give_up();
        }
        Ok(())
    }
}

/// Commits, and begins another transaction like it. If the answer is an error, neither has happened and none is open, as
/// after a COMMIT that was refused.
async fn commit_and_chain(link: &mut Link) -> Result<(), DbErr> {
    let Err(error) = link.driver.commit_and_chain().await else {
        return Ok(());
    };
    // With `wsrep_sync_wait`, a Galera node waits before the new transaction for what the others have written: the answer
    // may be that it has waited too long, and the old one is committed (G7).
    if Error::of(&error).is_some_and(|error| error.is_lock_not_available()) {
        link.give_up();
        return Err(Kind::OutcomeUnknown.into_db_err());
    }
    Err(error)
}
