//! Prepared statements that are gone from the server, or do not fit their tables any more.
//!
//! sqlx keeps statements prepared and never looks whether the server still has them: a migration of another session
//! and a `DISCARD ALL` of an earlier request fail what comes next, for as long as the connection lives
//! (<https://github.com/launchbadge/sqlx/issues/1250>).

use sea_orm::{DbBackend, DbErr};

use super::{Operation, Output, PinnedConnection};
use crate::{error::server, sql::Change};

impl PinnedConnection {
    /// `operation` once more, for the case that its prepared statement is stale.
    ///
    /// Only outside of a transaction: inside, PostgreSQL has aborted that by the failure. MySQL and SQLite prepare
    /// such statements anew by themselves.
    pub(super) fn spare(&self, operation: &Operation) -> Option<Operation> {
        if self.backend != DbBackend::Postgres || !self.named || self.driver.depth() > 0 {
            return None;
        }
        // Without a plan of its own, a text has none that is stale.
        operation
            .copy()
            .filter(|again| !matches!(again, Operation::Unprepared(_)))
    }

    /// After a statement found its plan stale: has all statements prepared anew, and runs `again`, since nothing of
    /// it has run.
    pub(super) async fn prepare_anew(
        &mut self,
        error: DbErr,
        again: Option<Operation>,
        reads_only: bool,
    ) -> Result<Output, DbErr> {
        self.driver.forget_statements().await?;
        let Some(again) = again.filter(|_| server::has_not_run(&error)) else {
            return Err(error);
        };
        tracing::debug!(target: "tower_sea_orm::session", "a prepared statement was stale, and runs once more: {error}");
        let output = self.perform_once(again, reads_only).await;
        if output.as_ref().is_err_and(server::is_stale) && !self.in_memory {
            // It is more that this connection remembers wrongly.
            self.change = Change::Beyond;
        }
        output
    }
}
