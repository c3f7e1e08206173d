//! G7, G12: random programs on a session, statement by statement, against a model of what must be in the table.
//!
//! `PROPTEST_CASES=2000` makes it a long run.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use axum::{Extension, Router, body::Body, routing::any};
use http::{Request, StatusCode};
use proptest::{
    collection::vec,
    option,
    prelude::{Just, Strategy, any as anything},
    prop_oneof,
    test_runner::{Config, TestCaseError, TestRunner},
};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, Statement, TransactionTrait};
use tokio::runtime::Runtime;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_sea_orm::{DbSession, Reset, SessionPool, SessionTransaction};

use crate::support::{
    cases,
    database::{Kind, TestDb, insert_item, unique_name},
    futures::after_polls,
    pool::{assert_whole, layer_with},
    wait::eventually,
};

const SIZE: u32 = 2;

/// One step of a handler. It speaks to the innermost transaction that is open, or to the session.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// Inserts a row.
    Insert,
    /// Inserts a row; the future is dropped after so many polls.
    InsertDropped(u32),
    /// Inserts what is there already.
    Fail,
    Begin,
    Commit,
    RollBack,
    DropTransaction,
    /// On the session itself.
    CommitEarly,
    RollBackEarly,
    Release,
    /// A setting for good, so that a reset comes in between.
    Set,
    /// Raw code that leaves a transaction alone.
    Raw,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Answer(u16),
    Panic,
}

#[derive(Clone, Debug)]
struct Program {
    steps: Vec<Step>,
    end: End,
    transaction: bool,
    lazy: bool,
    /// Dropped after so many polls, if it has not answered by then.
    cancelled: Option<u32>,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Insert),
        1 => (0..6_u32).prop_map(Step::InsertDropped),
        1 => Just(Step::Fail),
        4 => Just(Step::Begin),
        3 => Just(Step::Commit),
        2 => Just(Step::RollBack),
        1 => Just(Step::DropTransaction),
        1 => Just(Step::CommitEarly),
        1 => Just(Step::RollBackEarly),
        1 => Just(Step::Release),
        1 => Just(Step::Set),
        1 => Just(Step::Raw),
    ]
}

fn program() -> impl Strategy<Value = Program> {
    let end = prop_oneof![4 => Just(End::Answer(200)), 1 => Just(End::Answer(404)), 1 => Just(End::Answer(500)), 1 => Just(End::Panic)];
    (
        vec(step(), 0..12),
        end,
        anything::<bool>(),
        anything::<bool>(),
        option::weighted(0.4, 0..40_u32),
    )
        .prop_map(|(steps, end, transaction, lazy, cancelled)| Program {
            steps,
            end,
            transaction,
            lazy,
            cancelled,
        })
}

/// Rows by the number of the step that inserts them.
type Rows = BTreeSet<usize>;

#[derive(Clone, Debug, Default)]
struct Level {
    rows: Rows,
    /// The rows of statements whose futures were dropped: they may have run or not.
    maybe: Rows,
    aborted: bool,
}

/// A session with a perfect database.
#[derive(Clone, Debug, Default)]
struct Model {
    kind: Option<Kind>,
    transaction: bool,
    own: Option<Level>,
    nested: Vec<Level>,
    committed: Level,
    commit_failed: bool,
    /// Whether the session's own transaction has begun is up to a statement that was dropped.
    unsure: bool,
}

impl Model {
    /// Returns the level that the work belongs to; begins the session's own transaction.
    fn target(&mut self) -> &mut Level {
        if self.transaction && self.own.is_none() {
            self.own = Some(Level::default());
        }
        if let Some(level) = self.nested.last_mut() {
            return level;
        }
        self.own.as_mut().unwrap_or(&mut self.committed)
    }

    fn is_open(&self) -> bool {
        self.own.is_some() || !self.nested.is_empty()
    }

    /// Takes a step; whether it must succeed, if that is known.
    fn step(&mut self, number: usize, step: Step) -> Option<bool> {
        let postgres = self.kind == Some(Kind::Postgres);
        match step {
            Step::Insert => {
                let target = self.target();
                if !target.aborted {
                    target.rows.insert(number);
                }
                Some(!target.aborted)
            }
            Step::InsertDropped(_) => {
                self.unsure |= self.transaction && self.own.is_none();
                self.target().maybe.insert(number);
                None
            }
            Step::Fail => {
                let target = self.target();
                target.aborted |= postgres;
                self.committed.aborted = false;
                Some(false)
            }
            Step::Set | Step::Raw => {
                let target = self.target();
                Some(!target.aborted)
            }
            Step::Begin => {
                let aborted = self.target().aborted;
                if !aborted {
                    self.nested.push(Level::default());
                }
                Some(!aborted)
            }
            Step::Commit => {
                let level = self.nested.pop()?;
                if !level.aborted {
                    let around = self.target();
                    around.rows.extend(level.rows);
                    around.maybe.extend(level.maybe);
                }
                Some(!level.aborted)
            }
            Step::RollBack => self.nested.pop().map(|_| true),
            Step::DropTransaction => {
                self.nested.pop();
                None
            }
            Step::CommitEarly | Step::RollBackEarly
                if !self.transaction || !self.nested.is_empty() =>
            {
                Some(false)
            }
            Step::CommitEarly => Some(self.commit_own()),
            Step::RollBackEarly => {
                self.own = None;
                Some(true)
            }
            Step::Release if self.unsure => None,
            Step::Release => Some(!self.is_open()),
        }
    }

    fn commit_own(&mut self) -> bool {
        let Some(own) = self.own.take() else {
            return true;
        };
        if own.aborted {
            self.commit_failed = true;
        } else {
            self.committed.rows.extend(own.rows);
            self.committed.maybe.extend(own.maybe);
        }
        !own.aborted
    }

    /// The end of the request; whether the answer says that all is well, if that is known.
    fn end(&mut self, end: End) -> Option<bool> {
        self.nested.clear();
        if !matches!(end, End::Answer(200)) {
            return None;
        }
        let before = self.commit_failed;
        let committed = self.commit_own();
        (!before).then_some(committed)
    }
}

/// The task of a request, and how far it got.
#[derive(Clone)]
struct Order {
    program: Program,
    kind: Kind,
    name: String,
    /// How each step ended.
    log: Arc<Mutex<Vec<Result<(), String>>>>,
}

async fn handle(db: DbSession, Extension(order): Extension<Order>) -> StatusCode {
    if order.program.transaction {
        db.tx();
    }
    let mut nested: Vec<SessionTransaction> = Vec::new();
    for (number, step) in order.program.steps.iter().enumerate() {
        let result = match nested.last() {
            Some(tx) => run(tx, &order, number, *step).await,
            None => run(&db, &order, number, *step).await,
        };
        let result = match (step, result) {
            (Step::Begin, _) => match nested.last() {
                Some(tx) => tx.begin().await,
                None => db.begin().await,
            }
            .map(|tx| nested.push(tx)),
            (Step::Commit, _) => match nested.pop() {
                Some(tx) => tx.commit().await,
                None => Ok(()),
            },
            (Step::RollBack, _) => match nested.pop() {
                Some(tx) => tx.rollback().await,
                None => Ok(()),
            },
            (Step::DropTransaction, _) => {
                drop(nested.pop());
                Ok(())
            }
            (Step::CommitEarly, _) => db.commit().await,
            (Step::RollBackEarly, _) => db.rollback().await,
            (Step::Release, _) => db.release().await,
            (Step::Raw, _) if nested.is_empty() => raw(&db).await,
            (_, result) => result,
        };
        order
            .log
            .lock()
            .unwrap()
            .push(result.map_err(|error| error.to_string()));
    }
    match order.program.end {
        End::Answer(status) => StatusCode::from_u16(status).unwrap(),
        End::Panic => std::panic::resume_unwind(Box::new("planned")),
    }
}

/// The steps that are statements.
async fn run<C: ConnectionTrait>(
    db: &C,
    order: &Order,
    number: usize,
    step: Step,
) -> Result<(), DbErr> {
    let insert = format!(
        "INSERT INTO item (name, hits) VALUES ('{}-{number}', {number})",
        order.name
    );
    let sql = match step {
        Step::Insert | Step::InsertDropped(_) => insert,
        Step::Fail => "INSERT INTO item (name) VALUES ('taken')".to_owned(),
        Step::Set | Step::Raw if order.kind == Kind::MySql => "DO GET_LOCK('mine', 0)".to_owned(),
        Step::Set if order.kind == Kind::Postgres => "SET lock_timeout = '60s'".to_owned(),
        Step::Set | Step::Raw => "SELECT 1".to_owned(),
        _ => return Ok(()),
    };
    match step {
        Step::InsertDropped(polls) => {
            let _ = after_polls(polls, db.execute_unprepared(&sql)).await;
            Ok(())
        }
        _ => db.execute_unprepared(&sql).await.map(drop),
    }
}

/// A harmless statement on the driver's own connection.
async fn raw(db: &DbSession) -> Result<(), DbErr> {
    use sea_orm::{DbBackend, sqlx::Executor};
    let failed = |error: sea_orm::sqlx::Error| DbErr::Custom(error.to_string());
    match db.backend() {
        DbBackend::Postgres => {
            let raw = db.with_postgres(|db| {
                Box::pin(async move { db.execute("SELECT 1").await.map(drop) })
            });
            raw.await?.map_err(failed)
        }
        DbBackend::MySql => {
            let raw =
                db.with_mysql(|db| Box::pin(async move { db.execute("SELECT 1").await.map(drop) }));
            raw.await?.map_err(failed)
        }
        _ => {
            let raw = db
                .with_sqlite(|db| Box::pin(async move { db.execute("SELECT 1").await.map(drop) }));
            raw.await?.map_err(failed)
        }
    }
}

/// Returns the rows of a request that others see.
async fn seen(observer: &DatabaseConnection, name: &str) -> Rows {
    let sql = format!("SELECT hits FROM item WHERE name LIKE '{name}-%'");
    let rows = observer
        .query_all_raw(Statement::from_string(observer.get_database_backend(), sql))
        .await
        .unwrap();
    rows.iter()
        .map(|row| row.try_get_by_index::<i32>(0).unwrap() as usize)
        .collect()
}

/// Returns whether these may be the rows of a session that has come so far.
fn allows(model: &Model, rows: &Rows) -> bool {
    rows.is_superset(&model.committed.rows)
        && rows
            .iter()
            .all(|row| model.committed.rows.contains(row) || model.committed.maybe.contains(row))
}

/// Waits until all connections have been given back.
async fn at_rest(pool: &SessionPool) {
    eventually("the slots are free", async || {
        let status = pool.status();
        (status.used, status.acquiring, status.pending) == (0, 0, 0)
    })
    .await;
}

/// Runs one program and compares.
async fn check(
    app: [&Router; 2],
    pool: &SessionPool,
    observer: &DatabaseConnection,
    kind: Kind,
    program: &Program,
) -> Result<(), String> {
    let order = Order {
        program: program.clone(),
        kind,
        name: unique_name(),
        log: Arc::default(),
    };
    let mut request = Request::new(Body::empty());
    request.extensions_mut().insert(order.clone());
    let app = app[usize::from(program.lazy)].clone();
    let answer = after_polls(program.cancelled.unwrap_or(u32::MAX), app.oneshot(request)).await;
    let mut model = Model {
        kind: Some(kind),
        transaction: program.transaction,
        ..Model::default()
    };
    // What may be there after each step, if the request was dropped.
    let mut states = vec![model.clone()];
    let mut expected = Vec::new();
    for (number, step) in program.steps.iter().enumerate() {
        expected.push(model.step(number, *step));
        states.push(model.clone());
    }
    let well = model.end(program.end);
    let log = order.log.lock().unwrap().clone();
    for (number, (is, must)) in log.iter().zip(&expected).enumerate() {
        if must.is_some_and(|must| must != is.is_ok()) {
            return Err(format!(
                "step {number}: {:?} gave {is:?}",
                program.steps[number]
            ));
        }
    }
    let Some(answer) = answer else {
        states.push(model);
        at_rest(pool).await;
        let rows = seen(observer, &order.name).await;
        let allowed = states.iter().any(|state| allows(state, &rows));
        return if allowed {
            Ok(())
        } else {
            Err(format!("{rows:?} after {} steps", log.len()))
        };
    };
    let status = answer.unwrap().status();
    let told = match program.end {
        End::Answer(200) => status == StatusCode::OK,
        End::Answer(code) => status.as_u16() == code,
        End::Panic => status == StatusCode::INTERNAL_SERVER_ERROR,
    };
    let planned = well.unwrap_or(!matches!(program.end, End::Answer(200)));
    if told != planned && (well.is_some() || !matches!(program.end, End::Answer(200))) {
        return Err(format!("answered {status}"));
    }
    // At once, not eventually.
    let rows = seen(observer, &order.name).await;
    if allows(&model, &rows) {
        Ok(())
    } else {
        Err(format!("{rows:?} instead of {:?}", model.committed))
    }
}

fn every_program_does_what_the_model_does(kind: Kind, reset: Reset) {
    let runtime = Runtime::new().unwrap();
    let (test, db, observer) = runtime.block_on(async {
        let test = TestDb::new(kind).await;
        let (db, observer) = (test.connect(SIZE).await, test.observer().await.unwrap());
        insert_item(&db, "taken").await;
        (test, db, observer)
    });
    let layer = layer_with(&db, |pool| pool.reset(reset));
    let pool = layer.pool().clone();
    let routes = Router::new()
        .route("/", any(handle))
        .layer(CatchPanicLayer::new());
    let (eager, lazy) = (
        routes.clone().layer(layer.clone()),
        routes.layer(layer.lazy()),
    );
    let config = Config {
        cases: cases(120),
        failure_persistence: None,
        max_shrink_iters: 300,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&vec(program(), 1..4), |programs| {
        runtime.block_on(async {
            for program in &programs {
                if let Err(error) = check([&eager, &lazy], &pool, &observer, kind, program).await {
                    return Err(TestCaseError::fail(format!(
                        "{kind:?}: {error}: {program:?}"
                    )));
                }
            }
            at_rest(&pool).await;
            Ok(())
        })
    });
    result.unwrap();
    runtime.block_on(assert_whole(&test, &db, SIZE));
}

#[test]
fn every_program_does_what_the_model_does_on_postgres() {
    every_program_does_what_the_model_does(Kind::Postgres, Reset::RollbackOnly);
    every_program_does_what_the_model_does(Kind::Postgres, Reset::SessionState);
}

#[test]
fn every_program_does_what_the_model_does_on_mysql() {
    every_program_does_what_the_model_does(Kind::MySql, Reset::SessionState);
}

#[test]
fn every_program_does_what_the_model_does_on_a_sqlite_file() {
    every_program_does_what_the_model_does(Kind::SqliteFile, Reset::RollbackOnly);
}
