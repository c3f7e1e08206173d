//! Rolling back, also where the server has ended the transaction already.

use sea_orm::{DbBackend, DbErr};

use super::{Failed, Operation, PinnedConnection, driver};
use crate::error::Kind;

impl PinnedConnection {
    /// Why `operation` must not be sent: sqlx does not tell that a COMMIT was answered with ROLLBACK.
    pub(super) fn refuses(&self, operation: &Operation) -> Option<Kind> {
        match (operation, self.failed?) {
            (Operation::Rollback | Operation::Settle | Operation::Ping, _) => None,
            (_, Failed::Ended(kind)) => Some(kind),
            (Operation::Commit, Failed::Aborted(_)) => Some(Kind::Aborted),
            // PostgreSQL refuses by itself.
            (_, Failed::Aborted(_)) => None,
        }
    }

    /// Notes what a failed call did to the transaction around it. A COMMIT that failed has ended it,
    /// or it is about to be rolled back.
    pub(super) fn note_failure(&mut self, error: &DbErr, depth: usize, commits: bool) {
        // A test's COMMIT is the release of a savepoint.
        let failed = if commits && self.base == 0 {
            Failed::Ended(Kind::Aborted)
        } else if !driver::aborts(self.backend, error) {
            return;
        } else if self.backend == DbBackend::Postgres {
            Failed::Aborted(depth)
        } else {
            Failed::Ended(Kind::Aborted)
        };
        self.failed.get_or_insert(failed);
    }

    pub(super) async fn roll_back_to(&mut self, depth: usize) -> Result<(), DbErr> {
        while self.depth() > depth {
            self.roll_back_one().await?;
        }
        Ok(())
    }

    /// Rolls back the innermost transaction. A savepoint is released as well: rolled back only, it
    /// would stay, and a loop would pile them up. MySQL replaces a savepoint of the same name.
    pub(super) async fn roll_back_one(&mut self) -> Result<(), DbErr> {
        let depth = self.driver.depth();
        if matches!(self.failed, Some(Failed::Ended(_))) {
            self.reopen(depth).await;
        }
        self.driver.rollback().await?;
        self.failed = self.failed.filter(|failed| match failed {
            Failed::Aborted(aborted) => *aborted < depth - self.base,
            Failed::Ended(_) => depth - self.base > 1,
        });
        if depth > 1 && self.backend != DbBackend::MySql {
            let release = format!("RELEASE SAVEPOINT _sqlx_savepoint_{}", depth - 1);
            self.driver.execute_unprepared(release).await?;
        }
        self.end_query_only().await
    }

    /// Gives a transaction that is gone from the server a shape that sqlx's count can be rolled back
    /// by.
    async fn reopen(&mut self, depth: usize) {
        if depth == 1 && self.backend != DbBackend::Sqlite {
            // A ROLLBACK without a transaction is no error there.
            return;
        }
        let savepoints = (1..depth).map(|level| format!("; SAVEPOINT _sqlx_savepoint_{level}"));
        let text = std::iter::once("BEGIN".to_owned()).chain(savepoints).collect();
        // It may not have ended after all, and the server says so.
        let _ = self.driver.execute_unprepared(text).await;
    }

    pub(super) async fn end_query_only(&mut self) -> Result<(), DbErr> {
        if self.query_only && self.depth() == 0 {
            self.driver.execute_unprepared("PRAGMA query_only = 0".to_owned()).await?;
            self.query_only = false;
        }
        Ok(())
    }
}
