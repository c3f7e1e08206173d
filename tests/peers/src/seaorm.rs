//! SeaORM as its guide has it: the pool is the router's state, transactions are begun and ended by hand.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State},
    response::Response,
    routing::{MethodRouter, any},
};
use futures_util::future::BoxFuture;
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, TransactionTrait};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    ledger::Note,
    service::{KEPT, ON_PURPOSE, answer},
    site::{Idle, Plan, all_idle},
    witness::Provokes,
    work::{Court, Kind},
};

#[derive(Clone)]
struct Shared {
    db: DatabaseConnection,
    court: Arc<Court>,
}

type Numbers = Path<(i64, u16)>;

pub fn service(_: &Plan, db: DatabaseConnection, court: Arc<Court>) -> (Router, Idle) {
    let mut router = Router::new();
    for (kind, handler) in handlers() {
        router = router.route(&format!("/{}/{{number}}/{{status}}", kind.path()), handler);
    }
    let state = Shared {
        db: db.clone(),
        court,
    };
    (
        router.layer(CatchPanicLayer::new()).with_state(state),
        Box::new(move || all_idle(&db)),
    )
}

fn handlers() -> [(Kind, MethodRouter<Shared>); 13] {
    macro_rules! plain {
        ($provokes:expr, $method:ident) => {
            any(
                async |State(Shared { db, court }): State<Shared>,
                       Path((number, status)): Numbers| {
                    let done = court.$method(&db, number).await;
                    answer(&court, number, status, $provokes, done)
                },
            )
        };
    }
    macro_rules! transaction {
        ($provokes:expr, $method:ident) => {
            any(
                async |State(shared): State<Shared>, Path((number, status)): Numbers| {
                    let court = shared.court.clone();
                    let work = move |tx| -> Work {
                        Box::pin(async move { (court.$method(&tx, number).await, tx) })
                    };
                    in_transaction(shared, number, status, $provokes, work).await
                },
            )
        };
    }
    [
        (Kind::Read, plain!(Provokes::Nothing, read)),
        (Kind::Write, plain!(Provokes::Nothing, write)),
        (Kind::Stream, plain!(Provokes::Nothing, stream)),
        (Kind::Clash, plain!(Provokes::Clash, clash)),
        (Kind::Late, plain!(Provokes::Late, late)),
        (Kind::Slow, plain!(Provokes::Nothing, slow)),
        (Kind::Transaction, transaction!(Provokes::Nothing, transact)),
        (Kind::Nested, transaction!(Provokes::Nothing, nest)),
        (Kind::Swallow, transaction!(Provokes::Nothing, swallow)),
        (Kind::Timeout, transaction!(Provokes::Timeout, time_out)),
        (Kind::Early, any(early)),
        (Kind::Stray, any(stray)),
        (Kind::Panic, any(panicking)),
    ]
}

type Work = BoxFuture<'static, (Result<(), DbErr>, DatabaseTransaction)>;

async fn in_transaction(
    Shared { db, court }: Shared,
    number: i64,
    status: u16,
    provokes: Provokes,
    work: impl FnOnce(DatabaseTransaction) -> Work,
) -> Response {
    let done = async {
        let (worked, tx) = work(db.begin().await?).await;
        match worked {
            Ok(()) if status < 400 => tx.commit().await,
            worked => {
                tx.rollback().await?;
                worked
            }
        }
    };
    // A COMMIT that fails may have taken effect: `answer` marks what the handler knows.
    let done = done.await;
    answer(&court, number, status, provokes, done)
}

async fn early(
    State(Shared { db, court }): State<Shared>,
    Path((number, status)): Numbers,
) -> Response {
    let done = async {
        let tx = db.begin().await?;
        court.transact(&tx, number).await?;
        tx.commit().await?;
        court.ledger.note(number, Note::Acknowledged);
        db.execute_unprepared("SELECT 1").await.map(drop)
    };
    let done = done.await;
    answer(&court, number, status, Provokes::Nothing, done)
}

/// By hand, there is a COMMIT before the answer; a task can only keep the pool.
async fn stray(State(shared): State<Shared>, Path((number, status)): Numbers) -> Response {
    let (court, db) = (shared.court.clone(), shared.db.clone());
    let work =
        move |tx| -> Work { Box::pin(async move { (court.transact(&tx, number).await, tx) }) };
    let response = in_transaction(shared, number, status, Provokes::Nothing, work).await;
    tokio::spawn(async move {
        tokio::time::sleep(KEPT).await;
        drop(db);
    });
    response
}

async fn panicking(
    State(Shared { db, court }): State<Shared>,
    Path((number, _)): Numbers,
) -> Response {
    let done = async {
        let tx = db.begin().await?;
        court.transact(&tx, number).await?;
        panic!("{ON_PURPOSE}");
    };
    let done = done.await;
    answer(&court, number, 500, Provokes::Nothing, done)
}
