//! [`Chain`]: a transaction that begins in the round trip of the COMMIT before it.

use std::sync::Arc;

use sea_orm::{DbErr, TransactionOptions};

use super::{begin::begin_statement, link::Link, transaction::Transaction};

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
    /// Not by `COMMIT AND CHAIN`, whose transaction would inherit what the last session has set of its own by `SET
    /// TRANSACTION` (H35).
    pub(super) async fn begin(
        self,
        link: &mut Link,
        transaction: &mut Transaction,
    ) -> Result<(), DbErr> {
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
