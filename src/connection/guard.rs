//! The guard: a savepoint by which code that cannot be looked into gives away
//! what it has done; and connections that such code has left out of step.

use sea_orm::{DbBackend, DbErr};

use super::link::Link;
use crate::error::{Kind, server};

// A name that is free: sqlx's are `_sqlx_savepoint_N`, and savepoints in a
// handler's SQL are refused (H15).
const GUARD: &str = "tower_sea_orm_guard";

/// The savepoint around code that cannot be looked into, such as raw code or a
/// `CALL`. Its absence afterwards gives away that the transaction around it was
/// ended.
impl Link {
    pub(super) async fn set_guard(&mut self) -> Result<(), DbErr> {
        self.run(format!("SAVEPOINT {GUARD}")).await
    }

    pub(super) async fn release_guard(&mut self) -> Result<(), DbErr> {
        let release = format!("RELEASE SAVEPOINT {GUARD}");
        if self.backend != DbBackend::Postgres {
            return self.run(release).await;
        }
        // With a second answer, which no other text leaves behind. SHOW looks
        // at no data, so that the transaction's snapshot is still to come.
        let text = format!("{release}; SHOW transaction_isolation");
        match self.driver.count_answers(text).await {
            (2.., released) => released,
            (_, Err(error)) if is_of_guard(&error) => Err(error),
            (_, Err(error)) if server::has_lost_connection(&error) => Err(error),
            // The answer of something else: the guard's comes behind it.
            _ => Err(Box::pin(self.roll_back_out_of_step()).await),
        }
    }

    /// Rolls back to the savepoint, and releases it.
    pub(super) async fn undo_guard(&mut self) -> Result<(), DbErr> {
        self.run(format!("ROLLBACK TO SAVEPOINT {GUARD}")).await?;
        self.release_guard().await
    }
}

/// Connections to PostgreSQL on which an answer is unread of which sqlx knows
/// nothing: each statement would get the answer of the one before it.
///
/// sqlx does not count the COPY that a `PgCopyIn` has begun, so that one which
/// is dropped leaves its error and the server's readiness unread, and sqlx has
/// no way to read one message more than it counts. The answers of this crate's
/// own statements can still be waited for: that shows what has become of the
/// transaction. Then the connection is closed.
impl Link {
    /// Notes that such an answer was found. Nothing of the session runs on the
    /// connection any more.
    pub(super) fn fall_out_of_step(&mut self) -> DbErr {
        // Not throttled: it is a mistake in a program.
        tracing::warn!(target: "tower_sea_orm::session", "raw code has left its connection out of step with the server, as a COPY does that is neither finished nor aborted: the connection is closed, and what was open on it is rolled back");
        self.give_up();
        self.is_out_of_step = true;
        Kind::OutOfStep.into_db_err()
    }

    /// Finds out whether the transaction of the guard is still open, and rolls
    /// it back. Returns the error of the guard if it is gone.
    async fn roll_back_out_of_step(&mut self) -> DbErr {
        // The guard's own answer, or that the transaction has failed, which
        // nothing but a transaction can.
        let guard = self.hear_late(2, is_of_guard).await;
        let rolled_back = match guard {
            Ok(None) => self.send_rollback().await,
            Ok(Some(error)) if server::is_aborted(&error) => self.send_rollback().await,
            Ok(Some(gone)) => Err(gone),
            Err(lost) => Err(lost),
        };
        self.end_test();
        match rolled_back {
            // Before the response that says so (G8).
            Ok(()) => self.fall_out_of_step(),
            Err(error) => {
                self.give_up();
                error
            }
        }
    }

    async fn send_rollback(&mut self) -> Result<(), DbErr> {
        // The answers to what was sent before it have no statement in them.
        let (answers, ended) = self.driver.count_answers("ROLLBACK".to_owned()).await;
        if answers == 1 {
            return ended;
        }
        self.hear_late(1, |_| false).await.map(drop)
    }

    /// Waits for the answer of a statement that was sent already: `answers`
    /// successes, or an error that it `may_have`.
    async fn hear_late(
        &mut self,
        answers: usize,
        may_have: impl Fn(&DbErr) -> bool,
    ) -> Result<Option<DbErr>, DbErr> {
        // Raw code leaves one answer unread for each COPY.
        for _ in 0..64 {
            self.driver.drain().await?;
            // A text without a statement, whose answer is left unread instead.
            match self.driver.count_answers(String::new()).await {
                (count, Ok(())) if count == answers => return Ok(None),
                (_, Err(error)) if may_have(&error) => return Ok(Some(error)),
                (_, Err(error)) if server::has_lost_connection(&error) => return Err(error),
                _ => {}
            }
        }
        Err(server::unanswered())
    }
}

/// Returns whether an error may be that of the guard's release: there is no
/// such savepoint, or no transaction, or it has failed.
fn is_of_guard(error: &DbErr) -> bool {
    server::is_aborted(error) || matches!(server::code(error).as_deref(), Some("3B001" | "25P01"))
}
