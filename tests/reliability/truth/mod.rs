//! Handlers drawn by lot: what they and their clients are told is what others see in the database.
//!
//! A failing case prints its seed and its script; `TRUTH_SEED` runs that one alone.

mod handler;
mod notes;
mod operation;
mod script;

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::AtomicI64},
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use http_body_util::BodyExt;
use sea_orm::{
    ConnectionTrait, Database, DatabaseConnection, DatabaseTransaction, Statement, TransactionError, TransactionTrait,
    sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous},
};
use tower_sea_orm::{DbSession, DbTx, Outcome};

use self::{
    handler::Handler,
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
    tell_the_truth(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_is_what_stands_on_mysql() {
    tell_the_truth(Kind::MySql).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_is_what_stands_on_sqlite() {
    tell_the_truth(Kind::SqliteFile).await;
}

async fn tell_the_truth(kind: Kind) {
    let asked = std::env::var("TRUTH_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut left = asked.map_or(0..cases(if is_long() { 10_000 } else { 300 }).into(), |seed: u64| seed..seed + 1);
    while !left.is_empty() {
        let court = Court::new(kind).await;
        if kind == Kind::MySql && !is_mariadb(court.site.view()).await {
            // MySQL has neither RETURNING nor EXECUTE IMMEDIATE.
            return;
        }
        for seed in left.by_ref().take(A_DATABASE) {
            let mut dice = Dice::new(seed.wrapping_add(1).wrapping_mul(0xd134_2543_de82_ef95));
            let script = Script::draw(kind, &mut dice);
            let wrong = court.hear(&script).await;
            assert!(wrong.is_empty(), "TRUTH_SEED={seed}\n{script:#?}\n{wrong:#?}");
        }
        court.close().await;
    }
}

/// How many handlers have a database in common: fewer than the statements that their connection keeps
/// prepared, because MySQL forgets each further one with a delay.
const A_DATABASE: usize = 150;

/// A service on one connection, and somebody else's view.
struct Court {
    site: Site,
    next: Arc<AtomicI64>,
    /// Holds a lock that no other gets.
    blocker: Option<DatabaseTransaction>,
}

impl Court {
    async fn new(kind: Kind) -> Self {
        let test = TestDb::new(kind).await;
        let db = connect(&test).await;
        let site = Site::with(test, db, 1).await;
        for sql in schema(kind) {
            site.run(sql).await;
        }
        let mut blocker = None;
        if kind != Kind::SqliteFile {
            let locked = site.view().begin().await.expect("a transaction");
            locked.execute_unprepared("SELECT id FROM locked FOR UPDATE").await.expect("a lock");
            blocker = Some(locked);
        }
        Self { site, next: Arc::new(AtomicI64::new(ROWS)), blocker }
    }

    /// Runs the script, then requests on the same connection. Returns what was not true.
    async fn hear(&self, script: &Script) -> Vec<String> {
        let handler = Handler::new(self.site.kind(), self.next.clone(), script.mode != Mode::Autocommit);
        let heard = tokio::time::timeout(BOUND, self.serve(script, &handler)).await;
        heard.expect("an answer, not a hang");
        let (alone, refused) = (self.probe(Mode::Autocommit, 200).await, self.probe(Mode::Argument, 409).await);
        eventually("no session is out", async || self.site.layer.pool().status().in_use == 0).await;
        let (seen, mut wrong) = (self.rows().await, Vec::new());
        for handler in [handler, alone, refused] {
            let mut notes = handler.notes();
            notes.compare(&seen);
            wrong.append(&mut notes.wrong);
        }
        wrong
    }

    /// A plain insert by the next request.
    async fn probe(&self, mode: Mode, status: u16) -> Handler {
        let handler = Handler::new(self.site.kind(), self.next.clone(), mode != Mode::Autocommit);
        let steps = vec![Step::Run(Operation::Plain, Way::Execute, Taken::Passed(500))];
        let answered = self.serve(&Script { mode, steps, status }, &handler).await;
        if answered != status {
            handler.notes().wrong.push(format!("the next request on this connection was answered by {answered}"));
        }
        handler
    }

    async fn serve(&self, script: &Script, handler: &Handler) -> u16 {
        let (script, at_work) = (script.clone(), handler.clone());
        let transactional = self.site.layer.clone().transaction();
        let response = match script.mode {
            Mode::Job => return self.job(&script, handler).await,
            Mode::Autocommit => self.site.call(async move |db: DbSession| answer(&script, &at_work, &db).await).await,
            Mode::Layer => {
                let app = axum::Router::new().fallback(async move |db: DbSession| answer(&script, &at_work, &db).await);
                crate::support::site::call(app.layer(transactional)).await
            }
            Mode::Argument => self.site.call(async move |tx: DbTx| answer(&script, &at_work, &tx).await).await,
            Mode::Held(to_its_end) => {
                let serving = async move |tx: DbTx| {
                    let (head, _) = answer(&script, &at_work, &tx).await.into_parts();
                    Response::from_parts(head, Body::new(tx.hold_until_body_end(Body::from("the body"))))
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
        let rows = view.query_all_raw(Statement::from_string(view.get_database_backend(), sql)).await;
        let rows = rows.expect("the table can be read");
        rows.iter().map(|row| row.try_get_by_index(0).expect("a number")).collect()
    }

    async fn close(self) {
        if let Some(blocker) = self.blocker {
            blocker.rollback().await.expect("a rollback");
        }
        self.site.assert_whole().await;
    }
}

/// A pool of one, on a database that is soon full.
async fn connect(test: &TestDb) -> DatabaseConnection {
    let mut options = match test.kind {
        Kind::MySql => test.options_at(&format!("{}?statement-cache-capacity=4000", test.url()), 1),
        _ => test.options(1),
    };
    if test.kind == Kind::SqliteFile {
        options.map_sqlx_sqlite_opts(|options| {
            let options = options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Off);
            options.busy_timeout(BOUND).pragma("max_page_count", "2000")
        });
    }
    Database::connect(options).await.expect("the database can be reached")
}

async fn answer(script: &Script, handler: &Handler, db: &DbSession) -> Response {
    let status = handler.run(db, &script.steps).await.err().unwrap_or(script.status);
    StatusCode::from_u16(status).expect("a status").into_response()
}

/// The client reads the body to its end, or leaves.
async fn held(response: Response, handler: &Handler, to_its_end: bool) -> u16 {
    let Some(own) = handler.own() else { return 500 };
    let status = response.status();
    let outcome = response.extensions().get::<Outcome>().cloned();
    if !outcome.as_ref().is_some_and(Outcome::is_pending) {
        handler.notes().tell(own, Told::by_outcome(outcome.as_ref()));
        note_contradiction(handler, status, outcome.as_ref());
    } else if !to_its_end {
        drop(response);
        handler.notes().dropped(own);
    } else if response.into_body().collect().await.is_ok() {
        handler.notes().tell(own, if status.as_u16() < 400 { Told::Committed } else { Told::RolledBack });
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
        handler.notes().wrong.push(format!("{status} with {outcome:?}"));
    }
}
