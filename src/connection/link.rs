//! [`Link`]: the driver's connection, and what is known of it; and [`Rest`]: for how long it was not used before its
//! session's first statement, and what follows from that.

use std::{mem, time::Duration};

use sea_orm::{DbBackend, DbErr};
use tokio::time::timeout;

use super::{
    driver::Driver,
    position::{Galera, is_of_node, read_position},
};
use crate::error::server;

pub(super) struct Link {
    pub(super) driver: Driver,
    pub(super) backend: DbBackend,
    /// Closing the connection would destroy its database.
    pub(super) in_memory: bool,
    /// Prepared statements are kept under a name. Behind a proxy that shares
    /// connections, another client may have taken it
    /// (<https://github.com/launchbadge/sqlx/issues/67>).
    pub(super) named: bool,
    // sqlx says nothing of it: an answer may be left unread, and a transaction
    // open that it does not count (H1, H23).
    pub(super) condition: Condition,
    pub(super) around: Around,
    /// Each statement commits by itself unless the session says otherwise. On
    /// MySQL, a setting from before this crate saw the connection may say so
    /// too.
    pub(super) is_autocommit_proven: bool,
    /// The network may have forgotten it, as the first BEGIN will show.
    pub(super) is_doubted: bool,
    /// sqlx counts a transaction that was committed in a text of ours.
    is_overcounted: bool,
    /// Raw code has left an answer unread of which sqlx knows nothing.
    pub(super) is_out_of_step: bool,
    /// A node of a Galera cluster acknowledges a COMMIT with a question behind
    /// it in its text even if it has refused it (H36). PostgreSQL's servers are
    /// none.
    galera: Galera,
}

/// The condition of a connection between two calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nothing in flight, nothing unread, no transaction but those that the
    /// driver counts.
    Known,
    /// A transaction may be open that the driver knows nothing of.
    Suspect,
    /// A call is running, or ended without reading all there was.
    Busy,
    /// Not to be used again.
    Broken,
    /// The same, because nothing arrives on it any more.
    Lost,
}

/// The transaction around all sessions, which none of them may end; only tests
/// have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Around {
    Nothing,
    Test,
    /// Code that cannot be looked into has ended it.
    EndedTest,
}

/// How long the server may take to answer what sets a connection up. A longer
/// silence means that the network has lost the connection, which cannot be
/// found by asking the server about a process that is not known.
pub(super) const SET_UP: Duration = Duration::from_secs(15);

/// Has each statement of a MySQL connection commit by itself again. A plain
/// ROLLBACK would begin the next transaction, or end the connection, if
/// `completion_type` says so
/// (<https://dev.mysql.com/doc/refman/8.4/en/server-system-variables.html#sysvar_completion_type>).
// Left off by one request or its procedure, autocommit lets the next one's
// acknowledged INSERT vanish
// (`modes_that_a_request_leaves_behind_are_restored`).
const TO_AUTOCOMMIT: &str =
    "ROLLBACK AND NO CHAIN NO RELEASE; SET autocommit = 1, completion_type = 0";

impl Link {
    pub(super) fn new(driver: Driver, backend: DbBackend, in_memory: bool) -> Self {
        Self {
            driver,
            backend,
            in_memory,
            named: true,
            condition: Condition::Known,
            around: Around::Nothing,
            // Only MySQL has a setting for it.
            is_autocommit_proven: backend != DbBackend::MySql,
            is_doubted: false,
            is_overcounted: false,
            is_out_of_step: false,
            galera: match backend {
                DbBackend::MySql => Galera::Unknown,
                _ => Galera::No,
            },
        }
    }

    /// The number of transactions (the outermost and its savepoints) that the
    /// session has open.
    pub(super) fn depth(&self) -> usize {
        self.counted()
            // The test's own is none of the session's.
            .saturating_sub(usize::from(self.is_test()))
    }

    /// The number of transactions that are open on the driver's connection, a
    /// test's own among them.
    pub(super) fn counted(&self) -> usize {
        self.driver
            .depth()
            .saturating_sub(usize::from(self.is_overcounted))
    }

    /// Returns whether a statement may turn out to be prepared no more, with
    /// nothing lost by it: sqlx keeps statements prepared and never looks
    /// whether the server still has them. A migration of another session and a
    /// `DISCARD ALL` of an earlier request fail what comes next, for as long as
    /// the connection lives
    /// (<https://github.com/launchbadge/sqlx/issues/1250>).
    ///
    /// Only outside a transaction: inside, PostgreSQL has aborted that by the
    /// failure. MySQL and SQLite prepare such statements anew by themselves.
    pub(super) fn may_be_stale(&self) -> bool {
        // A statement without a name is prepared each time, and cannot be
        // stale.
        self.backend == DbBackend::Postgres && self.named && self.counted() == 0
    }

    pub(super) fn is_test(&self) -> bool {
        self.around != Around::Nothing
    }

    /// Code has ended the transaction around a test, if there is one.
    pub(super) fn end_test(&mut self) {
        if self.is_test() {
            self.around = Around::EndedTest;
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        matches!(self.condition, Condition::Broken | Condition::Lost)
    }

    /// The connection must serve no session any more.
    pub(super) fn give_up(&mut self) {
        // `Lost` says more: such a connection is closed without a goodbye, for
        // which nothing would make room in the send buffer.
        if !self.is_lost() {
            self.condition = Condition::Broken;
        }
    }

    /// The network has lost the connection.
    pub(super) fn lose(&mut self) {
        self.condition = Condition::Lost;
    }

    pub(super) fn is_lost(&self) -> bool {
        self.condition == Condition::Lost
    }

    /// Opens a transaction, with `statement` if there is one.
    pub(super) async fn begin(&mut self, statement: Option<String>) -> Result<(), DbErr> {
        let is_doubted = mem::take(&mut self.is_doubted);
        let begun = self.send_begin(statement);
        if !is_doubted {
            return begun.await;
        }
        // Nothing has happened yet, so that it may be given up for one on
        // another connection. No server takes long for it. Shown by
        // `forgotten_connections_of_the_pools_own_cost_about_two_seconds_and_no_request`.
        let answered = timeout(SILENCE, begun).await;
        answered.unwrap_or_else(|_| {
            self.lose();
            Err(server::unanswered())
        })
    }

    async fn send_begin(&mut self, statement: Option<String>) -> Result<(), DbErr> {
        if !mem::take(&mut self.is_overcounted) {
            return self.driver.begin(statement).await;
        }
        let begun = self
            .run(statement.unwrap_or_else(|| "BEGIN".to_owned()))
            .await;
        // Behind a BEGIN, sqlx's count is right; without one, it still is not.
        self.is_overcounted = begun.is_err();
        begun
    }

    /// Commits the outermost transaction and returns its position as the server
    /// writes it, in one round trip where that is safe; `None` if it is
    /// committed and the question has failed.
    pub(super) async fn commit_and_ask(&mut self) -> Result<Option<String>, DbErr> {
        // Also before it is known: an acknowledged COMMIT that was refused is
        // worse than one round trip more, once for each connection (H36;
        // `a_commit_that_is_alone_in_its_text_is_acknowledged_only_if_it_is_there`).
        if self.galera != Galera::No {
            self.driver.commit().await?;
            return Ok(self.ask_behind_commit().await);
        }
        let question = read_position(self.backend, self.galera);
        let answer = self.driver.commit_with(&question).await?;
        // sqlx goes on counting the transaction, since it ends one by a text of
        // its own only. The next BEGIN sets that right.
        self.is_overcounted = true;
        Ok(self.hear(answer))
    }

    /// Asks for the position behind a COMMIT that was alone, and first whether
    /// the server is a node of a Galera cluster.
    async fn ask_behind_commit(&mut self) -> Option<String> {
        let answer = self.ask(self.galera).await?;
        if self.galera == Galera::Node {
            return Some(answer);
        }
        // For as long as the connection lives: a server becomes a node by a
        // restart.
        if is_of_node(&answer) {
            self.galera = Galera::Node;
            return self.ask(self.galera).await;
        }
        self.galera = Galera::No;
        Some(answer)
    }

    async fn ask(&mut self, galera: Galera) -> Option<String> {
        let question = read_position(self.backend, galera).into_owned();
        let asked = timeout(SILENCE, self.driver.query_unprepared(question)).await;
        // The transaction is committed, and does not become unknown because
        // this has no answer.
        let row = asked.unwrap_or_else(|_| Err(server::unanswered()));
        let answer = row.map(|row| row.and_then(|row| row.try_get_by_index(0).ok()));
        self.hear(answer)
    }

    /// Returns the answer to a question behind COMMIT. Committed it is, but the
    /// connection may be lost.
    fn hear(&mut self, answer: Result<Option<String>, DbErr>) -> Option<String> {
        // A failure behind COMMIT cannot unmake it (G7;
        // `g7_a_connection_lost_behind_commit_has_committed`).
        if answer.as_ref().is_err_and(server::is_fatal) {
            self.give_up();
        }
        answer.ok().flatten()
    }

    /// Has sqlx count right again, for those that do not ask this crate: its
    /// own pool, and raw code.
    pub(super) async fn recount(&mut self) -> Result<(), DbErr> {
        if mem::take(&mut self.is_overcounted) {
            // A ROLLBACK without a transaction would be a warning in the log.
            self.run("BEGIN").await?;
            self.driver.rollback().await?;
        }
        Ok(())
    }

    /// Runs a text of this crate.
    pub(super) async fn run(&mut self, sql: impl Into<String>) -> Result<(), DbErr> {
        // Unprepared, since some of these texts have several statements, and
        // none is to push a handler's out of sqlx's cache.
        self.driver.execute_unprepared(sql.into()).await.map(drop)
    }
}

/// Transactions that the driver knows nothing of: left open by raw or stored
/// code, or begun by each statement because MySQL's autocommit is off.
impl Link {
    /// Switches autocommit on: the server, `init_connect` or another user of
    /// the pool may have switched it off before this crate saw the connection.
    /// Costs nothing where that was done before.
    pub(super) async fn prove_autocommit(&mut self) -> Result<(), DbErr> {
        if !self.is_autocommit_proven {
            if self.driver.is_new().await? {
                let answered = timeout(SET_UP, self.run(TO_AUTOCOMMIT)).await;
                answered.map_err(|_| server::unanswered())??;
            }
            self.is_autocommit_proven = true;
        }
        Ok(())
    }

    /// Ends a transaction that may be open without the driver's knowledge.
    pub(super) async fn end_stray(&mut self) -> Result<(), DbErr> {
        // It would end the transaction around the test.
        if self.is_test() {
            return Ok(());
        }
        // As text: sqlx counts no transaction here, and its own rollback would
        // send nothing
        // (`a_transaction_left_open_by_raw_code_swallows_no_later_write`).
        match self.backend {
            DbBackend::Sqlite => {
                // It calls a ROLLBACK without a transaction an error.
                let _ = self.run("ROLLBACK").await;
                self.driver.drain().await.map(drop)
            }
            _ => self.end_stray_and("").await,
        }
    }

    /// Ends a stray transaction and runs `behind` in the same round trip.
    /// SQLite has no use for it.
    pub(super) async fn end_stray_and(&mut self, behind: &str) -> Result<(), DbErr> {
        if self.backend == DbBackend::MySql {
            self.run(format!("{TO_AUTOCOMMIT}{behind}")).await?;
        } else {
            // A ROLLBACK alone would be a warning in the driver's log and in
            // the server's wherever nothing is open, which is with nearly each
            // request that runs raw code
            // (`after_raw_code_the_driver_logs_no_warning`).
            let text = format!("BEGIN; ROLLBACK{behind}");
            match self.driver.count_answers(text).await {
                // One is open, and was aborted: nothing but a ROLLBACK is run.
                (0, Err(error)) if server::is_aborted(&error) => {
                    self.driver.drain().await?;
                    self.run(format!("ROLLBACK{behind}")).await?;
                }
                // The answers of both, so that nothing was unread before.
                (2.., ended) => ended?,
                (_, Err(error)) if server::has_lost_connection(&error) => return Err(error),
                _ => return Err(self.fall_out_of_step()),
            }
        }
        self.driver.drain().await.map(drop)
    }

    /// Returns whether stored code has left a transaction open. It is rolled
    /// back, and the code has failed: nothing would commit it.
    pub(super) async fn was_left_open(&mut self) -> Result<bool, DbErr> {
        if self.is_overcounted {
            // sqlx would take it for a savepoint.
            let answer = self.run("SET TRANSACTION READ WRITE").await;
            let open = answer.as_ref().is_err_and(server::is_within_transaction);
            if open {
                self.run("ROLLBACK").await?;
            } else {
                answer?;
            }
            return Ok(open);
        }
        // sqlx looks at the status that comes with the answer, and shows it in
        // no other way: without a transaction it says `BeginFailed`
        // (`stored_code_that_leaves_a_transaction_open_has_failed`).
        match self.driver.begin(Some("DO 0".to_owned())).await {
            // sqlx counts the transaction from there on. By its own ROLLBACK,
            // the count is right afterwards.
            Ok(()) => self.driver.rollback().await.map(|()| true),
            Err(error) if server::is_fatal(&error) => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Gives a transaction that is gone from the server a shape that sqlx's
    /// count, which goes on
    /// (<https://github.com/launchbadge/sqlx/issues/3742>), can be rolled back
    /// by.
    pub(super) async fn reopen(&mut self, depth: usize) {
        if depth == 1 && self.backend == DbBackend::MySql {
            // A ROLLBACK without a transaction is fine there; PostgreSQL warns
            // of it.
            return;
        }
        // Without it, the ROLLBACK that sqlx still owes would be a warning of
        // the server's, in the driver's log
        // (`a_refused_commit_makes_the_driver_log_no_warning`).
        let savepoints = (1..depth).map(|level| format!("; SAVEPOINT _sqlx_savepoint_{level}"));
        let text: String = std::iter::once("BEGIN".to_owned())
            .chain(savepoints)
            .collect();
        // It may not have ended after all, and the server says so.
        let _ = self.run(text).await;
    }
}

/// The server may close an idle connection after this time. Shorter than any
/// setting of a server, and longer than a connection rests where requests wait
/// for the next one.
const SHORT: Duration = Duration::from_millis(1);

/// A network that forgets idle connections takes longer.
const LONG: Duration = Duration::from_secs(1);

/// A connection that is silent for this long is taken for lost.
pub(crate) const SILENCE: Duration = Duration::from_millis(900);

/// For how long the server has heard nothing on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// It was in use just now. A session's later statements always count as
    /// this, since its first one has just used the connection.
    None,
    /// The server may have closed it since: what can be run again is kept for
    /// that.
    Short,
    /// The network may have forgotten it, too, and no answer would ever say so:
    /// what cannot be run again is not risked on it.
    Long,
}

impl Rest {
    pub(crate) fn of(time: Duration) -> Self {
        if time >= LONG {
            Self::Long
        } else if time >= SHORT {
            Self::Short
        } else {
            Self::None
        }
    }
}
