//! G16: random handlers whose futures are polled, half-polled, kept and dropped.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
};

use futures_util::{StreamExt, future::join_all};
use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    test_runner::{Config, TestRunner},
};
use sea_orm::{ConnectionTrait, DbErr, TransactionTrait};
use tokio::{runtime::Runtime, time::timeout};
use tower_sea_orm::{DbSession, SessionPool};

use crate::support::{
    cases,
    database::{Kind, TestDb, unique_name},
    futures::once,
    pool::{assert_whole, returned, session_pool},
    site::{BOUND, SIZE},
    statements::{insert, slow},
};

/// One step of a handler that treats its futures badly.
#[derive(Clone, Copy, Debug)]
struct Step {
    op: Op,
    fate: Fate,
    /// On the session itself, even if a transaction of the handler's is open.
    outside: bool,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Insert,
    Slow,
    Fail,
    Begin,
    End { commit: bool },
    DropTransaction,
    Stream,
    Commit,
    RollBack,
    Release,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Finish,
    /// Polled so often, and never again.
    Keep(u8),
    /// Polled so often, then dropped.
    Drop(u8),
    /// Polled once, and to its end after the others.
    Later,
}

fn step() -> impl Strategy<Value = Step> {
    let op = prop_oneof![
        4 => Just(Op::Insert),
        3 => Just(Op::Slow),
        1 => Just(Op::Fail),
        2 => Just(Op::Begin),
        1 => any::<bool>().prop_map(|commit| Op::End { commit }),
        1 => Just(Op::DropTransaction),
        1 => Just(Op::Stream),
        1 => Just(Op::Commit),
        1 => Just(Op::RollBack),
        1 => Just(Op::Release),
    ];
    let fate = prop_oneof![
        3 => Just(Fate::Finish),
        3 => (1..3_u8).prop_map(Fate::Keep),
        1 => (0..3_u8).prop_map(Fate::Drop),
        3 => Just(Fate::Later),
    ];
    (op, fate, any::<bool>()).prop_map(|(op, fate, outside)| Step { op, fate, outside })
}

/// The state that the futures of a session share.
#[derive(Clone)]
struct Shared {
    db: DbSession,
    kind: Kind,
    /// Transactions of the handler's, outermost first.
    open: Arc<Mutex<Vec<Arc<tower_sea_orm::SessionTransaction>>>>,
    /// Inserted rows, in the order in which their statements ended.
    inserted: Arc<Mutex<Vec<String>>>,
}

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Shared {
    fn start(&self, Step { op, outside, .. }: Step) -> Running {
        let this = self.clone();
        let innermost = this
            .open
            .lock()
            .unwrap()
            .last()
            .cloned()
            .filter(|_| !outside);
        Box::pin(async move {
            // An error may be what a session used out of turn is told; the property is that it ends.
            match op {
                Op::Insert => {
                    let name = unique_name();
                    if run(&this.db, innermost.as_deref(), &insert(&name))
                        .await
                        .is_ok()
                    {
                        this.inserted.lock().unwrap().push(name);
                    }
                }
                Op::Slow => {
                    let _ = match innermost {
                        Some(tx) => tx.query_one_raw(slow(this.kind, 0.003)).await,
                        None => this.db.query_one_raw(slow(this.kind, 0.003)).await,
                    };
                }
                Op::Fail => drop(
                    run(
                        &this.db,
                        innermost.as_deref(),
                        "SELECT nothing FROM nowhere",
                    )
                    .await,
                ),
                Op::Begin => {
                    let begun = match innermost {
                        Some(tx) => tx.begin().await,
                        None => this.db.begin().await,
                    };
                    this.open.lock().unwrap().extend(begun.ok().map(Arc::new));
                }
                Op::End { commit } => {
                    let last = this.open.lock().unwrap().pop();
                    drop(innermost);
                    match last.and_then(Arc::into_inner) {
                        Some(tx) if commit => drop(tx.commit().await),
                        Some(tx) => drop(tx.rollback().await),
                        None => {}
                    }
                }
                Op::DropTransaction => drop(this.open.lock().unwrap().pop()),
                Op::Stream => {
                    let Ok(mut rows) = this.db.rows(slow(this.kind, 0.001)).await else {
                        return;
                    };
                    while rows.next().await.is_some() {}
                }
                Op::Commit => drop(this.db.commit().await),
                Op::RollBack => drop(this.db.rollback().await),
                Op::Release => drop(this.db.release().await),
            }
        })
    }
}

async fn run(
    db: &DbSession,
    tx: Option<&tower_sea_orm::SessionTransaction>,
    sql: &str,
) -> Result<(), DbErr> {
    match tx {
        Some(tx) => tx.execute_unprepared(sql).await.map(drop),
        None => db.execute_unprepared(sql).await.map(drop),
    }
}

/// Runs random handlers whose futures are polled, half-polled, kept and dropped.
fn every_polled_future_ends(kind: Kind) {
    let runtime = Runtime::new().unwrap();
    let test = runtime.block_on(TestDb::new(kind));
    let db = runtime.block_on(test.connect(SIZE));
    let config = Config {
        cases: cases(48),
        failure_persistence: None,
        max_shrink_iters: 60,
        ..Config::default()
    };
    let handlers = (vec(step(), 1..16), any::<bool>(), any::<bool>());
    let result = TestRunner::new(config).run(&handlers, |(steps, transactional, lazy)| {
        let pool = session_pool(db.clone());
        runtime.block_on(async {
            let handled =
                timeout(2 * BOUND, handle(&pool, kind, &steps, transactional, lazy)).await;
            assert!(handled.is_ok(), "{kind:?} hangs");
            returned(&pool).await;
        });
        Ok(())
    });
    result.unwrap();
    runtime.block_on(assert_whole(&test, &db, SIZE));
}

async fn handle(pool: &SessionPool, kind: Kind, steps: &[Step], transactional: bool, lazy: bool) {
    let session = pool.session().await.unwrap();
    if transactional {
        session.tx();
    }
    if lazy {
        session.release().await.unwrap();
    }
    let db = DbSession::clone(&session);
    let shared = Shared {
        db,
        kind,
        open: Arc::default(),
        inserted: Arc::default(),
    };
    let (mut kept, mut later) = (Vec::new(), Vec::new());
    for step in steps {
        let mut future = shared.start(*step);
        match step.fate {
            Fate::Finish => future.await,
            Fate::Later => {
                if once(future.as_mut()).await.is_pending() {
                    later.push(future);
                }
            }
            Fate::Keep(polls) | Fate::Drop(polls) => {
                let mut is_pending = true;
                for _ in 0..polls {
                    is_pending = is_pending && once(future.as_mut()).await.is_pending();
                    tokio::task::yield_now().await;
                }
                if is_pending && matches!(step.fate, Fate::Keep(_)) {
                    kept.push(future);
                }
            }
        }
    }
    // A stream that is kept refuses others; what else is kept holds nobody up.
    later.reverse();
    join_all(later).await;
    drop(kept);
    shared.open.lock().unwrap().clear();
    shared.db.rollback().await.ok();
    shared.db.query_one_raw(slow(kind, 0.0001)).await.unwrap();
}

#[test]
fn g16_every_polled_future_ends_on_postgres() {
    every_polled_future_ends(Kind::Postgres);
}

#[test]
fn g16_every_polled_future_ends_on_mysql() {
    every_polled_future_ends(Kind::MySql);
}

#[test]
fn g16_every_polled_future_ends_on_a_sqlite_file() {
    every_polled_future_ends(Kind::SqliteFile);
}

#[test]
fn g16_every_polled_future_ends_in_memory() {
    every_polled_future_ends(Kind::SqliteMemory);
}
