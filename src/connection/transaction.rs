//! Rolling back, also where the server has ended the transaction already.

use sea_orm::{DbBackend, DbErr};

use super::{Failed, Operation, PinnedConnection, State};
use crate::error::{Kind, server};

impl PinnedConnection {
    /// Why `operation` must not be sent: sqlx does not tell that a COMMIT was answered with ROLLBACK.
    pub(super) fn refuses(&self, operation: &Operation) -> Option<Kind> {
        match (operation, self.failed?) {
            (Operation::Rollback | Operation::Settle | Operation::Ping, _) => None,
            (_, Failed::Ended(kind)) => Some(kind),
            // Where a SAVEPOINT fails, sqlx rolls back what is around it.
            (Operation::Commit | Operation::Begin(_), Failed::Aborted(_) | Failed::Unheard(_)) => {
                Some(Kind::Aborted)
            }
            // PostgreSQL refuses by itself.
            (_, Failed::Aborted(_) | Failed::Unheard(_)) => None,
        }
    }

    /// Notes what a failed call did to the transaction around it. A COMMIT that failed has ended it,
    /// or it is about to be rolled back.
    pub(super) fn note_failure(&mut self, error: &DbErr, depth: usize, commits: bool) {
        // A test's COMMIT is the release of a savepoint.
        let failed = if commits && self.base == 0 {
            Failed::Ended(Kind::Aborted)
        } else if !server::aborts(self.backend, error) {
            return;
        } else if self.backend == DbBackend::Postgres {
            Failed::Aborted(depth)
        } else {
            Failed::Ended(Kind::Aborted)
        };
        self.failed.get_or_insert(failed);
    }

    /// Forgets what belongs to transactions that are not open any more, whoever has ended them.
    pub(super) fn forget_what_is_over(&mut self) {
        let depth = self.depth();
        self.is_set_locally &= depth > 0;
        self.reads_only &= depth > 0;
        self.failed = self.failed.filter(|failed| match failed {
            Failed::Aborted(at) | Failed::Unheard(at) => *at <= depth,
            Failed::Ended(_) => depth > 0,
        });
    }

    /// Whether a statement's failure has ended the whole transaction where its error alone does not tell.
    pub(super) async fn has_vanished(&mut self, error: &DbErr) -> bool {
        // What each server refuses inside of a transaction, and does without harm outside.
        let (sql, undo) = match self.backend {
            _ if server::is_harmless(error) => return false,
            DbBackend::MySql => ("SET TRANSACTION READ WRITE", None),
            DbBackend::Sqlite => ("BEGIN", Some("ROLLBACK")),
            _ => return false,
        };
        let Err(error) = self.driver.execute_unprepared(sql.to_owned()).await else {
            if let Some(undo) = undo {
                let _ = self.driver.execute_unprepared(undo.to_owned()).await;
            }
            return true;
        };
        if server::is_fatal(&error) {
            self.state = State::Broken;
        }
        !server::is_within_transaction(&error)
    }

    /// Puts MySQL's connections right that come from elsewhere: the server, `init_connect` or another user
    /// of the pool may have switched autocommit off. Costs nothing where that was done before.
    pub(super) async fn prove(&mut self) -> Result<(), DbErr> {
        if !self.is_proven {
            if self.driver.is_new().await? {
                self.driver
                    .execute_unprepared(TO_AUTOCOMMIT.to_owned())
                    .await?;
            }
            self.is_proven = true;
        }
        Ok(())
    }

    /// Ends a transaction that may be open without the driver's knowledge.
    pub(super) async fn end_stray(&mut self) -> Result<(), DbErr> {
        if self.base > 0 {
            return Ok(());
        }
        let rolled_back = self
            .driver
            .execute_unprepared(self.stray_rollback().to_owned())
            .await;
        // SQLite calls a ROLLBACK without a transaction an error; the others only warn.
        if self.backend != DbBackend::Sqlite {
            rolled_back?;
        }
        self.driver.drain().await.map(drop)
    }

    /// What ends a stray transaction.
    pub(super) fn stray_rollback(&self) -> &'static str {
        if self.backend == DbBackend::MySql {
            TO_AUTOCOMMIT
        } else {
            "ROLLBACK"
        }
    }

    /// Whether code that cannot be looked into has left a transaction open. It is rolled back, and the
    /// code has failed: it would have to be committed by somebody.
    pub(super) async fn was_left_open(&mut self) -> Result<bool, DbErr> {
        let open = self.driver.adopts_transaction().await?;
        if open {
            self.driver.rollback().await?;
        }
        Ok(open)
    }

    pub(super) async fn roll_back_to(&mut self, depth: usize) -> Result<(), DbErr> {
        while self.depth() > depth {
            self.roll_back_one().await?;
        }
        Ok(())
    }

    /// Rolls back the innermost transaction. A savepoint is released as well: rolled back only, as by sqlx, it would
    /// stay, and a loop would pile them up (<https://github.com/launchbadge/sqlx/issues/3634>). MySQL replaces a savepoint
    /// of the same name.
    pub(super) async fn roll_back_one(&mut self) -> Result<(), DbErr> {
        let depth = self.driver.depth();
        if matches!(self.failed, Some(Failed::Ended(_))) {
            self.reopen(depth).await;
        }
        self.driver.rollback().await?;
        self.failed = self.failed.filter(|failed| match failed {
            Failed::Aborted(at) | Failed::Unheard(at) => *at < depth - self.base,
            Failed::Ended(_) => depth - self.base > 1,
        });
        let is_replaced = self.backend == DbBackend::MySql;
        self.leaves_savepoint |= depth > 1 && is_replaced;
        if depth > 1 && !is_replaced {
            let release = format!("RELEASE SAVEPOINT _sqlx_savepoint_{}", depth - 1);
            self.driver.execute_unprepared(release).await?;
        }
        self.end_query_only().await
    }

    /// Releases the savepoint that [`roll_back_one`](Self::roll_back_one) leaves on MySQL. Code that released it
    /// would take what was set after it along.
    pub(super) async fn release_leftover(&mut self) {
        if std::mem::take(&mut self.leaves_savepoint) {
            let release = format!("RELEASE SAVEPOINT _sqlx_savepoint_{}", self.driver.depth());
            // It may have gone with its transaction.
            let _ = self.driver.execute_unprepared(release).await;
        }
    }

    /// Gives a transaction that is gone from the server a shape that sqlx's count, which goes on
    /// (<https://github.com/launchbadge/sqlx/issues/3742>), can be rolled back by.
    async fn reopen(&mut self, depth: usize) {
        if depth == 1 && self.backend == DbBackend::MySql {
            // A ROLLBACK without a transaction is fine there; PostgreSQL warns of it.
            return;
        }
        let savepoints = (1..depth).map(|level| format!("; SAVEPOINT _sqlx_savepoint_{level}"));
        let text = std::iter::once("BEGIN".to_owned())
            .chain(savepoints)
            .collect();
        // It may not have ended after all, and the server says so.
        let _ = self.driver.execute_unprepared(text).await;
    }

    pub(super) async fn end_query_only(&mut self) -> Result<(), DbErr> {
        if self.query_only && self.depth() == 0 {
            self.driver
                .execute_unprepared("PRAGMA query_only = 0".to_owned())
                .await?;
            self.query_only = false;
        }
        Ok(())
    }
}

/// Has each statement of a MySQL connection commit by itself again. A plain ROLLBACK would begin the next
/// transaction, or end the connection, if `completion_type` says so.
const TO_AUTOCOMMIT: &str =
    "ROLLBACK AND NO CHAIN NO RELEASE; SET autocommit = 1, completion_type = 0";
