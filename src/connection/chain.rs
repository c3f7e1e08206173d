//! [`Chain`]: a transaction that begins in the round trip of the COMMIT before it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use sea_orm::{DbBackend, DbErr, TransactionOptions};

use super::{begin::begin_statement, link::Link, transaction::Transaction};
use crate::error::{Error, Kind, server};

/// A transaction that begins in the round trip of the COMMIT before it, for a
/// session that waits for one.
pub(crate) struct Chain {
    /// The options that the session wants.
    pub(crate) options: TransactionOptions,
    /// The newest of the waiters that it may go to. The server takes the
    /// arrival of that COMMIT for its beginning: for a request that came later,
    /// `now()` would lie before its arrival.
    pub(crate) newest: u64,
    /// One for each that is on its way to a waiter.
    // Its copies are the count of those on their way: one that is lost with its
    // connection counts itself down.
    pub(crate) chains: Arc<Chains>,
}

/// What is known of `COMMIT AND CHAIN` on a pool's server.
#[derive(Debug, Default)]
pub(crate) struct Chains {
    /// A transaction was seen to begin by it.
    is_proven: AtomicBool,
    /// The server takes it for a COMMIT.
    is_ignored: AtomicBool,
}

impl Chains {
    pub(crate) fn is_ignored(&self) -> bool {
        self.is_ignored.load(Ordering::Relaxed)
    }
}

impl Chain {
    /// Commits, and begins the transaction. Where the one is committed and the
    /// other has not begun, the connection is given up.
    ///
    /// On PostgreSQL not by `COMMIT AND CHAIN`, whose transaction would inherit
    /// what the last session has set of its own by `SET TRANSACTION` (H35).
    /// MySQL refuses that inside a transaction, and there COMMIT has to be
    /// alone in its text (H36).
    pub(super) async fn commit_and_begin(
        self,
        link: &mut Link,
        transaction: &mut Transaction,
    ) -> Result<(), DbErr> {
        if link.backend == DbBackend::MySql {
            commit_and_chain(link).await?;
            if self.chains.prove(link).await {
                transaction.chain = Some(self);
            } else {
                link.give_up();
            }
            return Ok(());
        }
        let begin = begin_statement(link.backend, self.options, 0)?.statement;
        let begin = begin.as_deref().unwrap_or("BEGIN");
        match link.driver.commit_with(begin).await? {
            // Noted with the connection: sqlx counts this transaction, and no
            // session knows of it until one takes it
            // (`a_waiter_that_leaves_leaves_no_transaction_behind`).
            Ok(_) => transaction.chain = Some(self),
            // Committed, but the next transaction may not have begun.
            Err(_) => link.give_up(),
        }
        Ok(())
    }
}

impl Chains {
    /// Returns whether a transaction is open behind `COMMIT AND CHAIN`, which
    /// is asked once.
    ///
    /// TiDB reads the word and passes over it
    /// (<https://docs.pingcap.com/tidb/stable/sql-statement-commit>): each
    /// statement of the next session would commit by itself (G8).
    async fn prove(&self, link: &mut Link) -> bool {
        if self.is_proven.load(Ordering::Relaxed) {
            return true;
        }
        // Refused in a transaction, which it leaves as it is; outside of one,
        // it changes nothing. Asked by an error and not by a variable:
        // `@@in_transaction` is MariaDB's alone.
        let answer = link.run("SET TRANSACTION READ WRITE").await;
        let is_open = answer.as_ref().is_err_and(server::is_within_transaction);
        if is_open {
            self.is_proven.store(true, Ordering::Relaxed);
        } else if answer.is_ok() {
            self.is_ignored.store(true, Ordering::Relaxed);
        }
        is_open
    }
}

/// Commits on MySQL, and begins another transaction like it: sqlx's count stays
/// where it is. If the answer is an error, neither has happened and none is
/// open, as after a COMMIT that was refused.
///
/// The only statement in its text: of one that has another behind it, Galera
/// acknowledges a COMMIT that it has refused (H36).
async fn commit_and_chain(link: &mut Link) -> Result<(), DbErr> {
    let Err(error) = link.run("COMMIT AND CHAIN").await else {
        return Ok(());
    };
    // With `wsrep_sync_wait`, a Galera node waits before the new transaction
    // for what the others have written: the answer may be that it has waited
    // too long, and the old one is committed (G7).
    if Error::of(&error).is_some_and(|error| error.is_lock_not_available()) {
        link.give_up();
        return Err(Kind::OutcomeUnknown.into_db_err());
    }
    Err(error)
}
