//! [`Transaction`]: BEGIN, COMMIT, ROLLBACK and savepoints, also where the server has ended the transaction already.

use sea_orm::{AccessMode, DbBackend, DbErr, TransactionOptions};

use super::{
    begin::{Timeouts, begin_statement},
    chain::Chain,
    failure::{Failure, has_vanished},
    link::{Around, Link},
    operation::Operation,
    position::{Demand, parse_position},
    settings::Settings,
};
use crate::{
    error::{Kind, server},
    position::Position,
};

/// Checks deferred constraints, as the COMMIT that a test's sessions do not
/// send would, and leaves them deferred.
const CHECK_CONSTRAINTS: &str = "SAVEPOINT tower_sea_orm_check; SET CONSTRAINTS ALL IMMEDIATE; \
     ROLLBACK TO SAVEPOINT tower_sea_orm_check; RELEASE SAVEPOINT tower_sea_orm_check";

/// The state of the session's open transactions, beyond the driver's count of
/// them.
#[derive(Default)]
pub(crate) struct Transaction {
    failure: Option<Failure>,
    /// A transaction was ended by something else than the session, which does
    /// not know it yet.
    ended_elsewhere: bool,
    access: Access,
    /// The options with which the outermost one was begun last.
    options: TransactionOptions,
    timeouts: Timeouts,
    /// DDL has run in it: what was prepared since then does not outlive its
    /// rollback.
    has_outdated: bool,
    /// A savepoint may still be there that was rolled back to.
    leaves_savepoint: bool,
    /// The one that is open was begun with the COMMIT of the last session, for
    /// the next.
    pub(super) chain: Option<Chain>,
    /// Its COMMIT is to say which position it has made.
    is_tracked: bool,
    /// The position that the last COMMIT has made.
    position: Option<Position>,
}

/// The access mode of the open transaction.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Access {
    #[default]
    ReadWrite,
    /// It was begun READ ONLY.
    ReadOnly,
    /// SQLite's stand-in: a setting of the connection, to be undone.
    QueryOnly,
}

impl Transaction {
    pub(crate) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Returns whether it was begun READ ONLY.
    pub(super) fn is_read_only(&self) -> bool {
        self.access != Access::ReadWrite
    }

    /// Returns whether the outermost one was begun with these options.
    pub(super) fn was_begun_with(&self, options: TransactionOptions) -> bool {
        self.options == options
    }

    /// Returns whether nothing of it is left on the connection, apart from its
    /// depth.
    pub(super) fn is_clean(&self) -> bool {
        self.access != Access::QueryOnly && self.timeouts == Timeouts::Own
    }

    /// Returns the position that a COMMIT has made since this was last asked.
    pub(crate) fn take_position(&mut self) -> Option<Position> {
        self.position.take()
    }

    /// Returns whether a transaction was ended behind the session's back since
    /// this was last asked.
    pub(crate) fn take_ended_elsewhere(&mut self) -> bool {
        std::mem::take(&mut self.ended_elsewhere)
    }

    /// The error by which the server is known to have ended all of it.
    pub(super) fn ended(&self) -> Option<Kind> {
        self.failure.and_then(Failure::ended)
    }

    /// The server has ended all of it.
    pub(super) fn end(&mut self, kind: Kind) {
        self.failure = Some(Failure::Ended(kind));
        // Beside the failure, which is forgotten with its transaction: the
        // session asks when the call has ended.
        self.ended_elsewhere |= kind == Kind::EndedElsewhere;
    }

    /// The error for `operation`, if it must not be sent.
    pub(super) fn refuses(&self, operation: &Operation) -> Option<Kind> {
        operation.refused_after(self.failure?)
    }

    /// Notes what a failed call did to the transaction around it.
    pub(super) fn note_failure(&mut self, link: &Link, error: &DbErr, depth: usize, commits: bool) {
        let Some(failure) = Failure::of(link, error, depth, commits) else {
            return;
        };
        // The first one counts: what fails after it fails because of it.
        self.failure.get_or_insert(failure);
    }

    /// Asks the server, where an error alone does not say whether it has ended
    /// the transaction.
    pub(super) async fn note_if_vanished(&mut self, link: &mut Link, error: &DbErr) {
        if !self.has_failed() && has_vanished(link, error).await {
            self.end(Kind::Aborted);
        }
    }

    /// Notes that a stream has failed, whose reader may not be there to see it.
    pub(super) fn note_unheard(&mut self, depth: usize) {
        self.failure = Some(Failure::unheard(self.failure, depth));
    }

    /// DDL has run, on PostgreSQL or SQLite.
    pub(super) fn note_outdated(&mut self) {
        self.has_outdated = true;
    }

    /// The reader of the stream that has failed knows it now.
    #[cfg(feature = "stream")]
    pub(crate) fn was_heard(&mut self) {
        self.failure = self
            .failure
            .filter(|failure| !matches!(failure, Failure::Unheard { is_only: true, .. }));
    }

    /// Forgets what belongs to transactions that are not open any more, however
    /// they have ended.
    pub(super) fn forget_beyond(&mut self, depth: usize) {
        // Not `QueryOnly`: that is a setting of the connection, which does not
        // end with the transaction.
        if depth == 0 && self.access == Access::ReadOnly {
            self.access = Access::ReadWrite;
        }
        self.has_outdated &= depth > 0;
        self.failure = self.failure.filter(|failure| failure.is_within(depth));
    }

    pub(super) async fn begin(
        &mut self,
        link: &mut Link,
        options: TransactionOptions,
        settings: Option<&Settings>,
        demand: &Demand,
    ) -> Result<(), DbErr> {
        // A test's sessions have a savepoint where others have a transaction.
        let options = match link.is_test() && link.depth() == 0 {
            true => TransactionOptions::default(),
            false => demand.options(options),
        };
        let depth = link.counted();
        let mut begin = begin_statement(link.backend, options, depth)?;
        let query_only = begin.query_only;
        if let Demand::Read(read) = demand {
            read.check(&mut begin, options);
        }
        if let Some(settings) = settings {
            begin = begin.with(settings, link.backend, depth)?;
            // Before BEGIN, which may have to wait for a lock itself. Boxed,
            // since few transactions have settings.
            Box::pin(self.timeouts.set(link, settings)).await?;
        }
        let begun = match demand {
            Demand::Read(read) => read.begin(link, begin).await,
            Demand::None | Demand::Track => begin.send(link).await,
        };
        if begun.is_err() {
            // BEGIN has failed, and the time-outs that came before it are set:
            // no other session gets them (G13).
            self.put_back(link).await?;
        }
        begun?;
        // A savepoint belongs to the transaction around it; a test's
        // transaction is one.
        if depth == 0 {
            self.is_tracked = matches!(demand, Demand::Track);
        }
        if !query_only {
            self.note_options(options, depth);
            return Ok(());
        }
        // Before it is sent: an answer that is lost must not leave it set.
        self.access = Access::QueryOnly;
        link.run("PRAGMA query_only = 1").await
    }

    /// Notes the options of a transaction that was begun inside `depth` others.
    pub(super) fn note_options(&mut self, options: TransactionOptions, depth: usize) {
        if depth == 0 {
            self.options = options;
        }
        // A savepoint has no mode of its own, and leaves the one that there is.
        if options.access_mode == Some(AccessMode::ReadOnly) {
            self.access = Access::ReadOnly;
        }
    }

    /// COMMIT travels alone, or on PostgreSQL with the BEGIN of a [`Chain`]: an
    /// error of any other statement in the same text would belong to a
    /// transaction that is committed (H32).
    pub(super) async fn commit(&mut self, link: &mut Link) -> Result<(), DbErr> {
        if link.is_test() && link.depth() == 1 && link.backend == DbBackend::Postgres {
            // A test whose COMMIT succeeds must not fail in production. Shown
            // by `a_deferred_constraint_is_checked_at_commit_on_postgres`.
            // Boxed, as what follows: each call would have room for it.
            Box::pin(link.run(CHECK_CONSTRAINTS)).await?;
        }
        if link.counted() == 1 && self.is_tracked {
            // Boxed: only on a primary with replicas is there a position to ask
            // for, and each COMMIT would have room for it.
            let answer = Box::pin(link.commit_and_ask()).await?;
            let position = answer.and_then(|answer| parse_position(link.backend, &answer));
            self.position = Some(position.unwrap_or(Position::PRIMARY));
        } else {
            link.driver.commit().await?;
        }
        if !self.is_clean() && Box::pin(self.put_back(link)).await.is_err() {
            // Committed it is nevertheless.
            link.give_up();
        }
        Ok(())
    }

    /// Rolls back for a handler, which learns here if the transaction was ended
    /// behind its back.
    pub(super) async fn rollback(&mut self, link: &mut Link) -> Result<(), DbErr> {
        // Asked before, since the rollback clears it.
        let ended = self.ended();
        self.roll_back_one(link).await?;
        match ended {
            // By an `Ok`, the handler would take for undone what stored code
            // has committed (`a_rollback_that_comes_too_late_is_an_error`).
            Some(kind @ Kind::EndedElsewhere) => Err(kind.into_db_err()),
            _ => Ok(()),
        }
    }

    pub(super) async fn roll_back_to(
        &mut self,
        link: &mut Link,
        depth: usize,
    ) -> Result<(), DbErr> {
        while link.depth() > depth {
            self.roll_back_one(link).await?;
        }
        Ok(())
    }

    /// Rolls back the innermost transaction. A savepoint is released as well:
    /// rolled back only, as by sqlx, it would stay, and a loop would pile them
    /// up (<https://github.com/launchbadge/sqlx/issues/3634>). MySQL replaces a
    /// savepoint of the same name.
    async fn roll_back_one(&mut self, link: &mut Link) -> Result<(), DbErr> {
        let counted = link.counted();
        let depth = link.depth();
        // SQLite refuses a ROLLBACK without a transaction, and all of them a
        // ROLLBACK TO a savepoint that has gone: sqlx's count would stay where
        // it is.
        if self.ended().is_some() {
            link.reopen(counted).await;
        }
        // sqlx's own, which keeps its count; a ROLLBACK as text would leave
        // that behind.
        link.driver.rollback().await?;
        self.chain = None;
        // An error inside a savepoint is undone with it.
        let outer = depth.checked_sub(1);
        self.failure = self
            .failure
            .filter(|failure| outer.is_some_and(|outer| failure.is_within(outer)));
        if counted > 1 && link.backend == DbBackend::MySql {
            // No further round trip: the next savepoint of this depth replaces
            // it (H27).
            self.leaves_savepoint = true;
        // sqlx 0.9 names its savepoints so.
        } else if counted > 1 {
            let release = format!("RELEASE SAVEPOINT _sqlx_savepoint_{}", counted - 1);
            link.run(release).await?;
        }
        if self.has_outdated {
            // The tables are as before, and what was prepared behind the DDL
            // does not fit them. Shown by
            // `a_rollback_of_ddl_leaves_no_stale_plan_behind`.
            link.driver.forget_statements().await?;
        }
        self.put_back(link).await
    }

    /// Releases the savepoint that [`roll_back_one`](Self::roll_back_one)
    /// leaves on MySQL. Code that released it would take what was set after it
    /// along.
    pub(super) async fn release_leftover(&mut self, link: &mut Link) {
        if std::mem::take(&mut self.leaves_savepoint) {
            let release = format!("RELEASE SAVEPOINT _sqlx_savepoint_{}", link.counted());
            // It may have gone with its transaction.
            let _ = link.run(release).await;
        }
    }

    /// Returns whether the transaction that was open before an opaque operation
    /// is still the same: then the savepoint from before it is still there.
    pub(super) async fn is_guarded(&mut self, link: &mut Link, depth: usize) -> bool {
        // Raw code may have begun transactions through sqlx, which sqlx counts:
        // they are rolled back. Where it has ended one so, the count says
        // nothing any more.
        if link.depth() < depth || self.roll_back_to(link, depth).await.is_err() {
            link.give_up();
            return false;
        }
        let Err(error) = link.release_guard().await else {
            return true;
        };
        if link.is_out_of_step {
            // The same one, and rolled back: the savepoint has shown it.
            self.end(Kind::OutOfStep);
            return true;
        }
        if server::is_fatal(&error) {
            link.give_up();
        // Only inside a transaction does PostgreSQL answer so: it is still the
        // same one. Shown by
        // `h8_an_error_that_raw_code_swallows_is_no_commit_on_postgres`.
        } else if server::is_aborted(&error) {
            // PostgreSQL has aborted it.
            self.failure.get_or_insert(Failure::Aborted(depth));
            return true;
        }
        false
    }

    /// Puts back the settings of the connection that stood in for the
    /// transaction's.
    pub(super) async fn put_back(&mut self, link: &mut Link) -> Result<(), DbErr> {
        if link.depth() > 0 || self.is_clean() || link.is_broken() {
            return Ok(());
        }
        if self.access == Access::QueryOnly {
            link.run("PRAGMA query_only = 0").await?;
            self.access = Access::ReadWrite;
        }
        Box::pin(self.timeouts.put_back(link)).await
    }

    /// Opens the transaction around a test's sessions.
    pub(super) async fn begin_around(link: &mut Link) -> Result<(), DbErr> {
        link.prove_autocommit().await?;
        link.driver.begin(None).await?;
        link.around = Around::Test;
        Ok(())
    }

    /// The transaction around a test's sessions is one that can be rolled back,
    /// from here on.
    pub(super) fn end_around(&mut self, link: &mut Link) {
        if link.around == Around::EndedTest {
            self.failure = Some(Failure::Ended(Kind::TestEnded));
        }
        // The rollback that follows is one of the session's own, and ends all
        // of it.
        link.around = Around::Nothing;
    }
}
