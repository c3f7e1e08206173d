//! G3, G7, G8: whatever requests do, and however they end: acknowledged is present, rolled back is absent,
//! cancelled is all or nothing, and the pool is whole.

use std::sync::{Arc, Mutex};

use axum::{Extension, Router, body::Body, routing::get};
use futures_util::future::join_all;
use http::{Request, StatusCode};
use proptest::{
    collection::vec,
    option,
    prelude::{Just, Strategy, any, prop_oneof},
    test_runner::{Config, TestRunner},
};
use sea_orm::{DatabaseConnection, DbErr, TransactionTrait};
use tokio::runtime::Runtime;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_sea_orm::{DbSession, SessionTransaction};

use crate::support::{
    cases,
    database::{Kind, TestDb, count_items, unique_name},
    futures::after_polls,
    pool::{assert_whole, session_layer},
    requests::{Failed, text},
    statements::insert_unprepared,
    wait::eventually,
};

const SIZE: u32 = 2;

/// One request.
#[derive(Clone, Debug)]
struct Plan {
    work: Work,
    exit: Exit,
    lazy: bool,
    /// Dropped after so many polls, if it has not answered by then.
    cancelled: Option<u32>,
}

/// Its work on the database: two rows are inserted in every case.
#[derive(Clone, Copy, Debug)]
enum Work {
    Autocommit,
    Commit,
    RollBack,
    DropTransaction,
    /// The handle is kept alive elsewhere.
    KeepTransaction,
    /// Both levels commit; the second row is the inner one's.
    Nested,
    /// The inner one rolls back, the outer one commits.
    NestedRollBack,
    /// The inner one is dropped, the outer one commits.
    NestedDrop,
    /// The inner one commits, the outer one rolls back.
    OuterRollBack,
}

#[derive(Clone, Copy, Debug)]
enum Exit {
    Answer,
    Fail,
    Panic,
}

/// The names of a request's two rows.
#[derive(Clone)]
struct Rows([String; 2]);

/// Handles that outlive their requests.
type Kept = Arc<Mutex<Vec<SessionTransaction>>>;

impl Work {
    /// Returns the rows that are there when it has run to its end.
    fn outcome(self) -> [bool; 2] {
        match self {
            Self::Autocommit | Self::Commit | Self::Nested => [true, true],
            Self::NestedRollBack | Self::NestedDrop => [true, false],
            Self::RollBack
            | Self::DropTransaction
            | Self::KeepTransaction
            | Self::OuterRollBack => [false, false],
        }
    }

    /// Returns whether these rows may be there when it was cancelled.
    fn allows(self, rows: [bool; 2]) -> bool {
        match self {
            // One after the other.
            Self::Autocommit => rows != [false, true],
            _ => rows == [false, false] || rows == self.outcome(),
        }
    }

    async fn run(
        self,
        db: &DbSession,
        Rows([first, second]): &Rows,
        kept: &Kept,
    ) -> Result<(), DbErr> {
        if matches!(self, Self::Autocommit) {
            insert_unprepared(db, first).await?;
            return insert_unprepared(db, second).await;
        }
        let tx = db.begin().await?;
        insert_unprepared(&tx, first).await?;
        match self {
            Self::Nested | Self::NestedRollBack | Self::NestedDrop | Self::OuterRollBack => {
                let inner = tx.begin().await?;
                insert_unprepared(&inner, second).await?;
                match self {
                    Self::NestedRollBack => inner.rollback().await?,
                    Self::NestedDrop => drop(inner),
                    _ => inner.commit().await?,
                }
            }
            _ => insert_unprepared(&tx, second).await?,
        }
        match self {
            Self::RollBack | Self::OuterRollBack => tx.rollback().await,
            Self::DropTransaction => Ok(()),
            Self::KeepTransaction => {
                kept.lock().unwrap().push(tx);
                Ok(())
            }
            _ => tx.commit().await,
        }
    }
}

fn plan() -> impl Strategy<Value = Plan> {
    let work = prop_oneof![
        Just(Work::Autocommit),
        Just(Work::Commit),
        Just(Work::RollBack),
        Just(Work::DropTransaction),
        Just(Work::KeepTransaction),
        Just(Work::Nested),
        Just(Work::NestedRollBack),
        Just(Work::NestedDrop),
        Just(Work::OuterRollBack),
    ];
    let exit = prop_oneof![Just(Exit::Answer), Just(Exit::Fail), Just(Exit::Panic)];
    (work, exit, any::<bool>(), option::of(0..16_u32)).prop_map(|(work, exit, lazy, cancelled)| {
        Plan {
            work,
            exit,
            lazy,
            cancelled,
        }
    })
}

/// Runs batches of concurrent requests on a pool of two.
fn every_outcome_is_the_promised_one(kind: Kind) {
    let runtime = Runtime::new().unwrap();
    let (test, db, observer) = runtime.block_on(async {
        let test = TestDb::new(kind).await;
        let (db, observer) = (test.connect(SIZE).await, test.observer().await.unwrap());
        (test, db, observer)
    });
    let config = Config {
        cases: cases(24),
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    };
    let batches = vec(vec(plan(), 1..6), 1..5);
    let result = TestRunner::new(config).run(&batches, |batches| {
        runtime.block_on(serve(&db, &observer, &batches));
        runtime.block_on(assert_whole(&test, &db, SIZE));
        Ok(())
    });
    result.unwrap();
}

async fn serve(db: &DatabaseConnection, observer: &DatabaseConnection, batches: &[Vec<Plan>]) {
    let kept = Kept::default();
    let layer = session_layer(db.clone());
    let pool = layer.pool().clone();
    let routes = Router::new()
        .route("/", get(handle))
        .layer(CatchPanicLayer::new())
        .layer(Extension(kept.clone()));
    let (eager, lazy) = (
        routes.clone().layer(layer.clone()),
        routes.layer(layer.lazy()),
    );
    for batch in batches {
        let requests = batch.iter().map(async |plan| {
            let rows = Rows([unique_name(), unique_name()]);
            let mut request = Request::new(Body::empty());
            request.extensions_mut().insert(plan.clone());
            request.extensions_mut().insert(rows.clone());
            let app = if plan.lazy {
                lazy.clone()
            } else {
                eager.clone()
            };
            let answer =
                after_polls(plan.cancelled.unwrap_or(u32::MAX), app.oneshot(request)).await;
            let Some(answer) = answer else {
                return Some((plan, rows));
            };
            let answer = answer.unwrap();
            let (status, words) = match plan.exit {
                // An OK would be untrue.
                Exit::Answer if matches!(plan.work, Work::KeepTransaction) => {
                    (StatusCode::INTERNAL_SERVER_ERROR, "")
                }
                Exit::Answer => (StatusCode::OK, "planned"),
                Exit::Fail => (StatusCode::INTERNAL_SERVER_ERROR, "planned"),
                Exit::Panic => (StatusCode::INTERNAL_SERVER_ERROR, "Service panicked"),
            };
            assert_eq!(answer.status(), status, "{plan:?}");
            assert_eq!(text(answer).await, words, "{plan:?}");
            // At once, not eventually.
            assert_eq!(seen(observer, &rows).await, plan.work.outcome(), "{plan:?}");
            None
        });
        let cancelled = join_all(requests).await;
        // A connection that was sent for by a cancelled request may still be on its way.
        eventually("the slots are free", async || {
            let status = pool.status();
            (status.used, status.acquiring) == (0, 0)
        })
        .await;
        for (plan, rows) in cancelled.into_iter().flatten() {
            let seen = seen(observer, &rows).await;
            assert!(plan.work.allows(seen), "{plan:?}: {seen:?}");
        }
    }
    let status = pool.status();
    assert_eq!((status.used, status.acquiring, status.pending), (0, 0, 0));
    kept.lock().unwrap().clear();
}

async fn handle(
    db: DbSession,
    Extension(plan): Extension<Plan>,
    Extension(rows): Extension<Rows>,
    Extension(kept): Extension<Kept>,
) -> Result<(StatusCode, &'static str), Failed> {
    plan.work.run(&db, &rows, &kept).await?;
    match plan.exit {
        Exit::Answer => Ok((StatusCode::OK, "planned")),
        Exit::Fail => Ok((StatusCode::INTERNAL_SERVER_ERROR, "planned")),
        // Without the hook, whose backtraces would be all that is left in the log.
        Exit::Panic => std::panic::resume_unwind(Box::new("planned")),
    }
}

/// Returns the rows that others see.
async fn seen(observer: &DatabaseConnection, Rows([first, second]): &Rows) -> [bool; 2] {
    [
        count_items(observer, first).await == 1,
        count_items(observer, second).await == 1,
    ]
}

#[test]
fn every_outcome_is_the_promised_one_on_postgres() {
    every_outcome_is_the_promised_one(Kind::Postgres);
}

#[test]
fn every_outcome_is_the_promised_one_on_mysql() {
    every_outcome_is_the_promised_one(Kind::MySql);
}

#[test]
fn every_outcome_is_the_promised_one_on_a_sqlite_file() {
    every_outcome_is_the_promised_one(Kind::SqliteFile);
}
