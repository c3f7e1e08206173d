//! Handlers drawn by lot: what they and their clients are told is what others see in the database.
//!
//! A failing case prints its seed and its script; `TRUTH_SEED` runs that one alone, and `TRUTH_FROM` begins
//! with another one than the first.

mod handler;
mod notes;
mod operation;
mod script;

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use futures_util::future::join_all;
use http::StatusCode;
use http_body_util::BodyExt;
use sea_orm::{
    ConnectionTrait, Database, DatabaseConnection, DatabaseTransaction, IsolationLevel, Statement,
    TransactionError, TransactionOptions, TransactionTrait,
    sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous},
};
use tower_sea_orm::{DbSession, DbTx, Outcome};

use self::{
    handler::{Handler, after_polls},
    notes::Told,
    operation::{Operation, ROWS, schema},
    script::{Mode, Script, Step, Taken, Way},
};
use super::{
    is_long,
    load::Dice,
    support::{
        cases,
        database::{Kind, TestDb},
        site::{BOUND, Site, is_mariadb},
        wait::eventually,
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_is_what_stands_on_postgres() {
    tell_the_truth(Kind::Postgres, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_is_what_stands_on_mysql() {
    tell_the_truth(Kind::MySql, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_is_what_stands_on_sqlite() {
    tell_the_truth(Kind::SqliteFile, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_two_requests_at_a_time_are_told_is_what_stands_on_postgres() {
    tell_the_truth(Kind::Postgres, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_two_requests_at_a_time_are_told_is_what_stands_on_mysql() {
    tell_the_truth(Kind::MySql, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_two_requests_at_a_time_are_told_is_what_stands_on_sqlite() {
    tell_the_truth(Kind::SqliteFile, 2).await;
}

/// What an environment variable asks for.
fn asked(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .and_then(|number| number.parse().ok())
}

/// Handlers, so many `at_a_time`.
async fn tell_the_truth(kind: Kind, at_a_time: u32) {
    let first = asked("TRUTH_FROM").unwrap_or(0);
    let all = first..first + u64::from(cases(if is_long() { 10_000 } else { 300 }));
    let mut left = asked("TRUTH_SEED").map_or(all, |seed| seed..seed + 1);
    while !left.is_empty() {
        let court = Court::new(kind, at_a_time).await;
        if kind == Kind::MySql && !is_mariadb(court.site.view()).await {
            // MySQL has neither RETURNING nor EXECUTE IMMEDIATE.
            return;
        }
        for seed in left.by_ref().take(A_DATABASE) {
            let mut dice = Dice::new(seed.wrapping_add(1).wrapping_mul(0xd134_2543_de82_ef95));
            let scripts: Vec<_> = (0..at_a_time)
                .map(|_| Script::draw(kind, &mut dice))
                .collect();
            let wrong = court.hear(&scripts).await;
            assert!(
                wrong.is_empty(),
                "TRUTH_SEED={seed}\n{scripts:#?}\n{wrong:#?}"
            );
        }
        court.close().await;
    }
}

/// How many handlers have a database in common: fewer than the statements that their connection keeps
/// prepared, because MySQL forgets each further one with a delay.
const A_DATABASE: usize = 150;

/// A service on one connection, or two, and somebody else's view.
struct Court {
    site: Site,
    at_a_time: u32,
    next: Arc<AtomicI64>,
    /// Holds a lock that no other gets.
    blocker: Option<DatabaseTransaction>,
}

impl Court {
    async fn new(kind: Kind, at_a_time: u32) -> Self {
        let test = TestDb::new(kind).await;
        let db = connect(&test, at_a_time).await;
        let site = Site::with(test, db, at_a_time).await;
        for sql in schema(kind) {
            site.run(sql).await;
        }
        let mut blocker = None;
        if kind != Kind::SqliteFile {
            let locked = site.view().begin().await.expect("a transaction");
            locked
                .execute_unprepared("SELECT id FROM locked FOR UPDATE")
                .await
                .expect("a lock");
            blocker = Some(locked);
        }
        Self {
            site,
            at_a_time,
            next: Arc::new(AtomicI64::new(ROWS)),
            blocker,
        }
    }

    /// Runs the scripts, then requests on the same connections. Returns what was not true.
    async fn hear(&self, scripts: &[Script]) -> Vec<String> {
        let mut handlers: Vec<_> = scripts.iter().map(|script| self.handler(script)).collect();
        let serving = handlers.iter().zip(scripts).map(async |(handler, script)| {
            handler.notes().is_contended = self.at_a_time > 1;
            after_polls(
                script.leaves.unwrap_or(u32::MAX),
                self.serve(script, handler),
            )
            .await;
        });
        let heard = tokio::time::timeout(BOUND, join_all(serving)).await;
        heard.expect("answers, not a hang");
        let pool = self.site.layer.pool();
        eventually("no session is out", async || pool.status().used == 0).await;
        let mut held = Vec::new();
        for _ in 0..self.at_a_time {
            handlers.push(self.probe(Mode::Autocommit, 200).await);
            handlers.push(self.probe(Mode::Argument, 409).await);
            // The next ones are on another connection.
            held.push(pool.session().await.expect("a connection"));
        }
        drop(held);
        eventually("no session is out", async || pool.status().used == 0).await;
        let (seen, mut wrong) = (self.rows().await, Vec::new());
        for handler in handlers {
            let mut notes = handler.notes();
            notes.compare(&seen);
            wrong.append(&mut notes.wrong);
        }
        wrong
    }

    fn handler(&self, script: &Script) -> Handler {
        Handler::new(
            self.site.kind(),
            self.next.clone(),
            script.mode != Mode::Autocommit,
        )
    }

    /// A plain insert by the next request.
    async fn probe(&self, mode: Mode, status: u16) -> Handler {
        let steps = vec![Step::Run(
            Operation::Plain,
            Way::Execute,
            Taken::Passed(500),
        )];
        let script = Script {
            mode,
            steps,
            status,
            leaves: None,
        };
        let handler = self.handler(&script);
        let answered = self.serve(&script, &handler).await;
        if answered != status {
            handler.notes().wrong.push(format!(
                "the next request on this connection was answered by {answered}"
            ));
        }
        handler
    }

    async fn serve(&self, script: &Script, handler: &Handler) -> u16 {
        let (script, at_work) = (script.clone(), handler.clone());
        let options = match script.mode {
            Mode::Serializable => TransactionOptions {
                isolation_level: Some(IsolationLevel::Serializable),
                ..Default::default()
            },
            _ => TransactionOptions::default(),
        };
        let transactional = self.site.layer.clone().transaction_with(options);
        let response = match script.mode {
            Mode::Job => return self.job(&script, handler).await,
            Mode::Autocommit => {
                self.site
                    .call(async move |db: DbSession| answer(&script, &at_work, &db).await)
                    .await
            }
            Mode::Layer | Mode::Serializable => {
                let app = axum::Router::new()
                    .fallback(async move |db: DbSession| answer(&script, &at_work, &db).await);
                crate::support::site::call(app.layer(transactional)).await
            }
            Mode::Argument => {
                self.site
                    .call(async move |tx: DbTx| answer(&script, &at_work, &tx).await)
                    .await
            }
            Mode::Held(to_its_end) => {
                let serving = async move |tx: DbTx| {
                    let (head, _) = answer(&script, &at_work, &tx).await.into_parts();
                    Response::from_parts(
                        head,
                        Body::new(tx.hold_until_body_end(Body::from("the body"))),
                    )
                };
                return held(self.site.call(serving).await, handler, to_its_end).await;
            }
        };
        if let Some(own) = handler.own() {
            let outcome = response.extensions().get::<Outcome>();
            handler.notes().tell(own, Told::by_outcome(outcome));
            note_contradiction(handler, response.status(), outcome);
        }
        response.status().as_u16()
    }

    async fn job(&self, script: &Script, handler: &Handler) -> u16 {
        let done = self
            .site
            .layer
            .pool()
            .transaction(async |tx| match handler.run(tx, &script.steps).await {
                Ok(()) if script.status < 400 => Ok(()),
                Ok(()) => Err(script.status),
                Err(status) => Err(status),
            })
            .await;
        let (told, status) = match done {
            Ok(()) => (Told::Committed, script.status),
            Err(TransactionError::Transaction(status)) => (Told::RolledBack, status),
            Err(TransactionError::Connection(error)) => (Told::by_end(&Err(error), true), 500),
        };
        if let Some(own) = handler.own() {
            handler.notes().tell(own, told);
        }
        status
    }

    async fn rows(&self) -> BTreeSet<i64> {
        // Only the last requests' rows are of interest.
        let end = self.next.load(std::sync::atomic::Ordering::Relaxed);
        let sql = format!("SELECT n FROM truth WHERE n >= {}", end - 200 * ROWS);
        let view = self.site.view();
        let rows = view
            .query_all_raw(Statement::from_string(view.get_database_backend(), sql))
            .await;
        let rows = rows.expect("the table can be read");
        rows.iter()
            .map(|row| row.try_get_by_index(0).expect("a number"))
            .collect()
    }

    async fn close(self) {
        if let Some(blocker) = self.blocker {
            blocker.rollback().await.expect("a rollback");
        }
        self.site.assert_whole().await;
    }
}

/// A small pool on a database that is soon full. Where there is more than one connection, SQLite does not wait
/// for long.
async fn connect(test: &TestDb, size: u32) -> DatabaseConnection {
    let mut options = match test.kind {
        Kind::MySql => test.options_at(
            &format!("{}?statement-cache-capacity=4000", test.url()),
            size,
        ),
        _ => test.options(size),
    };
    if test.kind == Kind::SqliteFile {
        let busy = if size == 1 {
            BOUND
        } else {
            Duration::from_millis(5)
        };
        options.map_sqlx_sqlite_opts(move |options| {
            let options = options
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Off);
            options.busy_timeout(busy).pragma("max_page_count", "2000")
        });
    }
    Database::connect(options)
        .await
        .expect("the database can be reached")
}

async fn answer(script: &Script, handler: &Handler, db: &DbSession) -> Response {
    let status = handler
        .run(db, &script.steps)
        .await
        .err()
        .unwrap_or(script.status);
    StatusCode::from_u16(status)
        .expect("a status")
        .into_response()
}

/// The client reads the body to its end, or leaves.
async fn held(response: Response, handler: &Handler, to_its_end: bool) -> u16 {
    let Some(own) = handler.own() else { return 500 };
    let status = response.status();
    let outcome = response.extensions().get::<Outcome>().cloned();
    if !outcome.as_ref().is_some_and(Outcome::is_pending) {
        handler
            .notes()
            .tell(own, Told::by_outcome(outcome.as_ref()));
        note_contradiction(handler, status, outcome.as_ref());
    } else if !to_its_end {
        drop(response);
        handler.notes().dropped(own);
    } else if response.into_body().collect().await.is_ok() {
        handler.notes().tell(
            own,
            if status.as_u16() < 400 {
                Told::Committed
            } else {
                Told::RolledBack
            },
        );
    }
    status.as_u16()
}

/// A success is committed, and nothing else is.
fn note_contradiction(handler: &Handler, status: StatusCode, outcome: Option<&Outcome>) {
    let fits = match outcome {
        Some(outcome) if outcome.is_committed() => status.as_u16() < 400,
        Some(outcome) if outcome.is_untouched() => true,
        Some(_) => status.as_u16() >= 400,
        None => false,
    };
    if !fits {
        handler
            .notes()
            .wrong
            .push(format!("{status} with {outcome:?}"));
    }
}
