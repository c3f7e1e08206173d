//! G7, G8: whatever a request in a transaction does, however it ends and wherever it is dropped: an acknowledged
//! write is there, one answered as rolled back is not, and the pool is whole.

use std::sync::{Arc, Mutex};

use axum::{Extension, Router, body::Body, response::Response, routing::get};
use futures_util::future::join_all;
use http::{Request, StatusCode};
use proptest::{
    collection::vec,
    option,
    prelude::{Just, Strategy, any, prop_oneof},
    test_runner::{Config, TestRunner},
};
use sea_orm::{ConnectionTrait, DbErr, TransactionTrait};
use tokio::runtime::Runtime;
use tower::{ServiceExt, service_fn};
use tower_sea_orm::{DbSessionLayer, DbTx, Error, Outcome};

use crate::support::{
    cases,
    database::{Kind, insert_item, unique_name},
    futures::after_polls,
    pool::{hands_over, lends},
    site::Site,
    statements::{insert_unprepared, raw},
    wait::eventually,
};

/// One request.
#[derive(Clone, Debug)]
struct Plan {
    steps: Vec<Step>,
    exit: Exit,
    lazy: bool,
    /// Dropped after so many polls, if it has not answered by then.
    cancelled: Option<u32>,
}

/// Its steps, one after the other. Each inserts a separate row.
#[derive(Clone, Copy, Debug)]
enum Step {
    Insert,
    /// In a savepoint that is committed, rolled back, or dropped.
    Nested(End),
    /// In a savepoint with an error in it.
    NestedError,
    /// An error that the handler swallows, after its row.
    Swallow,
    Commit,
    RollBack,
    RollbackOnly,
    Raw,
    RawRollBack,
    /// A statement that is dropped after so many polls.
    Dropped(u32),
}

#[derive(Clone, Copy, Debug)]
enum End {
    Commit,
    RollBack,
    Drop,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Exit {
    Ok,
    NotFound,
    Fail,
    Panic,
    Inner,
    /// A 200 with a savepoint kept open.
    Kept,
}

/// The rows that were acknowledged so far.
#[derive(Clone, Debug, Default)]
struct Ledger {
    /// Rows whose early COMMIT was acknowledged.
    committed: Vec<String>,
    /// Rows of the open transaction, that stand if it is committed.
    open: Vec<String>,
    /// Rows that may stand with it: nobody has seen their statement's end.
    perhaps: Vec<String>,
    /// Rows that nothing may make stand.
    lost: Vec<String>,
    /// An early COMMIT was sent that has not been answered.
    committing: bool,
    /// A statement has failed, or raw code has rolled back: it must not be committed.
    spoiled: bool,
    only_rollback: bool,
}

impl Ledger {
    fn lose(&mut self) {
        self.lost.append(&mut self.open);
        self.lost.append(&mut self.perhaps);
    }
}

type Shared = Arc<Mutex<Ledger>>;

async fn step(step: Step, tx: &DbTx, ledger: &Shared) -> Result<(), DbErr> {
    let name = unique_name();
    let note =
        |change: &dyn Fn(&mut Ledger, String)| change(&mut ledger.lock().unwrap(), name.clone());
    // Until it is acknowledged, it may be there or not.
    let (sure, lost) = (
        |ledger: &mut Ledger, name| ledger.open.push(name),
        |ledger: &mut Ledger, name| ledger.lost.push(name),
    );
    match step {
        Step::Insert => {
            insert_unprepared(tx, &name).await?;
            note(&sure);
        }
        Step::Nested(end) => {
            let inner = tx.begin().await?;
            insert_unprepared(&inner, &name).await?;
            match end {
                End::Commit => {
                    inner.commit().await?;
                    note(&sure);
                }
                End::RollBack => {
                    note(&lost);
                    inner.rollback().await?;
                }
                End::Drop => note(&lost),
            }
        }
        Step::NestedError => {
            note(&lost);
            let inner = tx.begin().await?;
            insert_unprepared(&inner, &name).await?;
            inner
                .execute_unprepared("INSERT INTO item (name) VALUES ('taken')")
                .await
                .unwrap_err();
            inner.rollback().await?;
        }
        Step::Swallow => {
            insert_unprepared(tx, &name).await?;
            note(&sure);
            ledger.lock().unwrap().spoiled |= tx.backend() == sea_orm::DbBackend::Postgres;
            let _ = tx
                .execute_unprepared("INSERT INTO item (name) VALUES ('taken')")
                .await;
        }
        Step::Commit => {
            ledger.lock().unwrap().committing = true;
            let result = tx.commit().await;
            let mut ledger = ledger.lock().unwrap();
            ledger.committing = false;
            match &result {
                Ok(()) => {
                    assert!(
                        !ledger.spoiled && !ledger.only_rollback,
                        "a commit that cannot be: {ledger:?}"
                    );
                    let Ledger {
                        committed,
                        open,
                        perhaps,
                        ..
                    } = &mut *ledger;
                    committed.append(open);
                    // Whether they were sent, nobody has seen.
                    perhaps.clear();
                }
                // The handler was told: what follows is another transaction, which may be committed.
                Err(_) if !ledger.only_rollback => {
                    ledger.lose();
                    ledger.spoiled = false;
                }
                Err(_) => {}
            }
            drop(ledger);
            result?;
        }
        Step::RollBack => {
            ledger.lock().unwrap().lose();
            // Too late where raw code has ended the transaction, and over nevertheless.
            let rolled_back = tx.rollback().await;
            ledger.lock().unwrap().spoiled = false;
            rolled_back?;
        }
        Step::RollbackOnly => {
            ledger.lock().unwrap().only_rollback = true;
            tx.set_rollback_only()?;
        }
        Step::Raw => {
            insert_unprepared(tx, &name).await?;
            note(&sure);
            raw(tx, "UPDATE item SET hits = hits + 1 WHERE name = 'taken'").await;
        }
        Step::RawRollBack => {
            insert_unprepared(tx, &name).await?;
            note(&lost);
            {
                let mut ledger = ledger.lock().unwrap();
                ledger.lose();
                ledger.spoiled = true;
            }
            raw(tx, "ROLLBACK").await;
        }
        Step::Dropped(polls) => {
            note(&|ledger, name| ledger.perhaps.push(name));
            let _ = after_polls(polls, insert_unprepared(tx, &name)).await;
        }
    }
    Ok(())
}

async fn handle(
    tx: DbTx,
    Extension(plan): Extension<Plan>,
    Extension(ledger): Extension<Shared>,
) -> Response {
    let mut response = Response::new(Body::from("planned"));
    for one in &plan.steps {
        // A step that is refused has noted nothing, and the next one is tried nevertheless.
        let _ = step(*one, &tx, &ledger).await;
    }
    *response.status_mut() = match plan.exit {
        Exit::Ok | Exit::Inner => StatusCode::OK,
        Exit::NotFound => StatusCode::NOT_FOUND,
        Exit::Fail => StatusCode::INTERNAL_SERVER_ERROR,
        // Without the hook, whose backtraces would be all that is left in the log.
        Exit::Panic => std::panic::resume_unwind(Box::new("planned")),
        Exit::Kept => {
            if let Ok(inner) = tx.begin().await {
                response.extensions_mut().insert(Arc::new(inner));
            }
            StatusCode::OK
        }
    };
    response
}

fn plans() -> impl Strategy<Value = Plan> {
    let end = prop_oneof![Just(End::Commit), Just(End::RollBack), Just(End::Drop)];
    let step = prop_oneof![
        6 => Just(Step::Insert),
        4 => end.prop_map(Step::Nested),
        2 => Just(Step::NestedError),
        1 => Just(Step::Swallow),
        2 => Just(Step::Commit),
        2 => Just(Step::RollBack),
        1 => Just(Step::RollbackOnly),
        2 => Just(Step::Raw),
        1 => Just(Step::RawRollBack),
        2 => (0..4_u32).prop_map(Step::Dropped),
    ];
    let exit = prop_oneof![
        5 => Just(Exit::Ok),
        1 => Just(Exit::NotFound),
        1 => Just(Exit::Fail),
        1 => Just(Exit::Panic),
        1 => Just(Exit::Inner),
        1 => Just(Exit::Kept),
    ];
    (vec(step, 0..5), exit, any::<bool>(), option::of(0..24_u32)).prop_map(
        |(steps, exit, lazy, cancelled)| Plan {
            steps,
            exit,
            lazy,
            cancelled,
        },
    )
}

/// The answer of one request, `None` if it was dropped before; and whether it was an inner error.
async fn serve(
    site: &Site,
    plan: &Plan,
    ledger: &Shared,
) -> Option<Result<Response, &'static str>> {
    let routes = Router::new().route("/", get(handle));
    let inner = plan.exit == Exit::Inner;
    // An inner service's own error, with the request's work done.
    let service = service_fn(move |request: Request<Body>| {
        let routes = routes.clone();
        async move {
            let response = routes
                .oneshot(request)
                .await
                .unwrap_or_else(|never| match never {});
            if inner { Err("inner") } else { Ok(response) }
        }
    });
    let layer = if plan.lazy {
        site.layer.clone().lazy()
    } else {
        site.layer.clone()
    };
    let service = tower::ServiceBuilder::new().layer(layer).service(service);
    let mut request = Request::new(Body::empty());
    request.extensions_mut().insert(plan.clone());
    request.extensions_mut().insert(ledger.clone());
    let answer = std::panic::AssertUnwindSafe(service.oneshot(request));
    let answer = futures_util::FutureExt::catch_unwind(answer);
    let answer = after_polls(plan.cancelled.unwrap_or(u32::MAX), answer).await?;
    Some(answer.unwrap_or(Err("panic")))
}

async fn check(
    site: &Site,
    plan: &Plan,
    answer: Option<Result<Response, &'static str>>,
    ledger: Ledger,
) {
    let count = async |names: &[String]| {
        let mut found = 0;
        for name in names {
            found += usize::try_from(site.count(name).await).unwrap();
        }
        found
    };
    let case = format!("{plan:?} {ledger:?}");
    assert_eq!(
        count(&ledger.lost).await,
        0,
        "what was rolled back is not there: {case}"
    );
    let perhaps_there = count(&ledger.perhaps).await;
    let open = count(&ledger.open).await;
    assert_eq!(
        count(&ledger.committed).await,
        ledger.committed.len(),
        "committed early is there: {case}"
    );
    let all_or_nothing = open == 0 || open == ledger.open.len();
    match answer {
        None => {
            assert!(all_or_nothing, "{open}: {case}");
            assert!(open == 0 || !ledger.spoiled || ledger.committing, "{case}");
        }
        Some(Ok(response)) if response.status() == StatusCode::OK => {
            let outcome = response.extensions().get::<Outcome>().unwrap();
            if ledger.only_rollback {
                assert!(outcome.is_rolled_back() || outcome.is_untouched(), "{case}");
                assert_eq!(
                    (open, perhaps_there),
                    (0, 0),
                    "rolled back is not there: {case}"
                );
            } else {
                assert!(!ledger.spoiled, "{case}");
                assert_eq!(open, ledger.open.len(), "acknowledged is there: {case}");
            }
        }
        Some(answer) => {
            let status = answer.as_ref().map(Response::status);
            assert_eq!(
                (open, perhaps_there),
                (0, 0),
                "rolled back is not there: {status:?} {case}"
            );
            if let Ok(response) = &answer {
                // Raw code has ended the transaction: a 404 would say that nothing of it stands.
                let outcome = response.extensions().get::<Outcome>();
                let has_ended_it = plan
                    .steps
                    .iter()
                    .any(|step| matches!(step, Step::RawRollBack));
                let is_told =
                    has_ended_it && outcome.is_some_and(|outcome| outcome.error().is_some());
                // The plans run at the same time, and MySQL's inserts may meet in a gap of the index.
                let is_deadlock =
                    outcome.is_some_and(|outcome| outcome.error().is_some_and(Error::is_conflict));
                let expected = match plan.exit {
                    Exit::NotFound if !is_told => StatusCode::NOT_FOUND,
                    _ if is_deadlock => StatusCode::SERVICE_UNAVAILABLE,
                    _ => StatusCode::INTERNAL_SERVER_ERROR,
                };
                assert_eq!(response.status(), expected, "{case} {outcome:?}");
            }
        }
    }
}

fn every_promise_is_kept(kind: Kind) {
    let runtime = Runtime::new().unwrap();
    let site = runtime.block_on(Site::new(kind));
    every_promise_is_kept_at(&runtime, site);
}

/// With one connection for all: a COMMIT begins the next request's transaction.
fn every_promise_is_kept_in_a_queue(kind: Kind) {
    let runtime = Runtime::new().unwrap();
    let (site, proxy) = runtime.block_on(Site::queued(kind));
    every_promise_is_kept_at(&runtime, site.layered(DbSessionLayer::transaction));
    assert!(proxy.chained() > 0 || lends() || !hands_over());
}

fn every_promise_is_kept_at(runtime: &Runtime, site: Site) {
    runtime.block_on(insert_item(&site.db, "taken"));
    let config = Config {
        cases: cases(100),
        failure_persistence: None,
        max_shrink_iters: 300,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&vec(plans(), 1..4), |plans| {
        runtime.block_on(async {
            let requests = plans.iter().map(async |plan| {
                let ledger = Shared::default();
                let answer = serve(&site, plan, &ledger).await;
                (plan, answer, ledger)
            });
            let requests = join_all(requests).await;
            eventually("the slots are free", async || {
                let status = site.layer.pool().status();
                (status.used, status.acquiring, status.pending) == (0, 0, 0)
            })
            .await;
            for (plan, answer, ledger) in requests {
                let ledger = ledger.lock().unwrap().clone();
                check(&site, plan, answer, ledger).await;
            }
        });
        Ok(())
    });
    runtime.block_on(site.assert_whole());
    result.unwrap();
}

#[test]
fn g7_every_promise_is_kept_on_postgres() {
    every_promise_is_kept(Kind::Postgres);
}

#[test]
fn g7_every_promise_is_kept_on_mysql() {
    every_promise_is_kept(Kind::MySql);
}

#[test]
fn g7_every_promise_is_kept_in_a_queue_on_postgres() {
    every_promise_is_kept_in_a_queue(Kind::Postgres);
}

#[test]
fn g7_every_promise_is_kept_in_a_queue_on_mysql() {
    every_promise_is_kept_in_a_queue(Kind::MySql);
}

#[test]
fn g7_every_promise_is_kept_on_a_sqlite_file() {
    every_promise_is_kept(Kind::SqliteFile);
}
