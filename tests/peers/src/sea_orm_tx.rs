//! axum-sea-orm-tx: a middleware that begins a transaction for every request.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State},
    middleware::from_fn_with_state,
    response::Response,
    routing::{MethodRouter, any},
};
use axum_sea_orm_tx::{Tx, transaction};
use sea_orm::DatabaseConnection;
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    service::{KEPT, ON_PURPOSE, answer},
    site::{Idle, Plan, all_idle},
    witness::Provokes,
    work::{Court, Kind},
};

type Shared = State<Arc<Court>>;
type Numbers = Path<(i64, u16)>;

pub fn service(_: &Plan, db: DatabaseConnection, court: Arc<Court>) -> (Router, Idle) {
    let mut router = Router::new();
    for (kind, handler) in handlers() {
        router = router.route(&format!("/{}/{{number}}/{{status}}", kind.path()), handler);
    }
    let router = router.route_layer(from_fn_with_state(db.clone(), transaction));
    (
        router.layer(CatchPanicLayer::new()).with_state(court),
        Box::new(move || all_idle(&db)),
    )
}

fn handlers() -> [(Kind, MethodRouter<Arc<Court>>); 12] {
    macro_rules! handler {
        ($provokes:expr, $method:ident) => {
            any(
                async |tx: Tx, State(court): Shared, Path((number, status)): Numbers| {
                    let done = court.$method(&*tx, number).await;
                    answer(&court, number, status, $provokes, done)
                },
            )
        };
    }
    [
        (Kind::Read, handler!(Provokes::Nothing, read)),
        (Kind::Write, handler!(Provokes::Nothing, write)),
        (Kind::Stream, handler!(Provokes::Nothing, stream)),
        (Kind::Clash, handler!(Provokes::Clash, clash)),
        (Kind::Late, handler!(Provokes::Late, late)),
        (Kind::Slow, handler!(Provokes::Nothing, slow)),
        (Kind::Transaction, handler!(Provokes::Nothing, transact)),
        (Kind::Nested, handler!(Provokes::Nothing, nest)),
        (Kind::Swallow, handler!(Provokes::Nothing, swallow)),
        (Kind::Timeout, handler!(Provokes::Timeout, time_out)),
        (Kind::Stray, any(stray)),
        (Kind::Panic, any(panicking)),
    ]
}

async fn stray(tx: Tx, State(court): Shared, Path((number, status)): Numbers) -> Response {
    let done = court.transact(&*tx, number).await;
    tokio::spawn(async move {
        tokio::time::sleep(KEPT).await;
        drop(tx);
    });
    answer(&court, number, status, Provokes::Nothing, done)
}

async fn panicking(tx: Tx, State(court): Shared, Path((number, _)): Numbers) -> Response {
    match court.transact(&*tx, number).await {
        Ok(()) => panic!("{ON_PURPOSE}"),
        Err(error) => answer(&court, number, 500, Provokes::Nothing, Err(error)),
    }
}
