//! axum-sqlx-tx: a transaction per request, begun by its extractor, on sqlx without SeaORM.

use std::sync::Arc;

use axum::{
    Router,
    extract::{FromRef, Path, State},
    response::Response,
    routing::any,
};
use futures_util::{FutureExt, TryStreamExt, future::BoxFuture};
use sea_orm::{DatabaseConnection, DbErr, RuntimeErr};
use sqlx::{Acquire, Executor, PgConnection, Postgres, query};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    ledger::Note,
    service::{KEPT, ON_PURPOSE, answer},
    site::{Idle, Plan, all_idle},
    witness::Provokes,
    work::{Court, Kind, STREAMED},
};

type Tx = axum_sqlx_tx::Tx<Postgres>;
type Numbers = Path<(i64, u16)>;
type Done<'c> = BoxFuture<'c, Result<(), sqlx::Error>>;

#[derive(Clone, FromRef)]
struct Shared {
    court: Arc<Court>,
    tx: axum_sqlx_tx::State<Postgres>,
}

pub fn service(_: &Plan, db: DatabaseConnection, court: Arc<Court>) -> (Router, Idle) {
    let (tx, layer) = Tx::setup(db.get_postgres_connection_pool().clone());
    let route = |kind: Kind| format!("/{}/{{number}}/{{status}}", kind.path());
    let mut router = Router::new();
    for (kind, provokes, work) in works() {
        let handler = async move |mut tx: Tx,
                                  State(court): State<Arc<Court>>,
                                  Path((number, status)): Numbers| {
            let done = work(&mut tx, &court, number).await;
            answer(&court, number, status, provokes, done.map_err(error))
        };
        router = router.route(&route(kind), any(handler));
    }
    let router = router
        .route(&route(Kind::Early), any(early))
        .route(&route(Kind::Stray), any(stray))
        .route(&route(Kind::Panic), any(panicking))
        .layer(layer)
        .layer(CatchPanicLayer::new())
        .with_state(Shared { court, tx });
    (router, Box::new(move || all_idle(&db)))
}

type WorkOf = for<'c> fn(&'c mut PgConnection, &'c Court, i64) -> Done<'c>;

/// What [`Court`] does, on sqlx.
fn works() -> [(Kind, Provokes, WorkOf); 10] {
    [
        (Kind::Read, Provokes::Nothing, |c, court, number| {
            read(c, court, number).boxed()
        }),
        (Kind::Write, Provokes::Nothing, |c, court, number| {
            write(c, court, number).boxed()
        }),
        (Kind::Stream, Provokes::Nothing, |c, _, _| stream(c).boxed()),
        (Kind::Transaction, Provokes::Nothing, |c, court, number| {
            transact(c, court, number).boxed()
        }),
        (Kind::Nested, Provokes::Nothing, |c, court, number| {
            nest(c, court, number).boxed()
        }),
        (Kind::Swallow, Provokes::Nothing, |c, _, number| {
            swallow(c, number).boxed()
        }),
        (Kind::Clash, Provokes::Clash, |c, _, number| {
            clash(c, number).boxed()
        }),
        (Kind::Late, Provokes::Late, |c, _, _| late(c).boxed()),
        (Kind::Slow, Provokes::Nothing, |c, _, number| {
            slow(c, number).boxed()
        }),
        (Kind::Timeout, Provokes::Timeout, |c, _, number| {
            time_out(c, number).boxed()
        }),
    ]
}

async fn read(c: &mut PgConnection, court: &Court, number: i64) -> Result<(), sqlx::Error> {
    expect(c, court, number, "").await?;
    query("SELECT half FROM ledger WHERE number = $1")
        .bind(number)
        .fetch_all(c)
        .await
        .map(drop)
}

async fn write(c: &mut PgConnection, court: &Court, number: i64) -> Result<(), sqlx::Error> {
    expect(c, court, number, "").await?;
    query("INSERT INTO ledger VALUES ($1, 1), ($1, 2)")
        .bind(number)
        .execute(c)
        .await
        .map(drop)
}

async fn stream(c: &mut PgConnection) -> Result<(), sqlx::Error> {
    let rows = query("SELECT n, repeat('-', 100) FROM generate_series(1, $1) AS n")
        .bind(STREAMED)
        .fetch(c);
    rows.try_for_each(async |_| Ok(())).await
}

async fn transact(c: &mut PgConnection, court: &Court, number: i64) -> Result<(), sqlx::Error> {
    mark(c, number).await?;
    insert(c, number, 1).await?;
    expect(c, court, number, &number.to_string()).await?;
    insert(c, number, 2).await
}

async fn nest(c: &mut PgConnection, court: &Court, number: i64) -> Result<(), sqlx::Error> {
    mark(c, number).await?;
    insert(c, number, 1).await?;
    let mut inner = c.begin().await?;
    insert(&mut inner, number, 3).await?;
    inner.rollback().await?;
    let mut inner = c.begin().await?;
    insert(&mut inner, number, 2).await?;
    inner.commit().await?;
    expect(c, court, number, &number.to_string()).await
}

async fn swallow(c: &mut PgConnection, number: i64) -> Result<(), sqlx::Error> {
    insert(c, number, 1).await?;
    let _ = insert(c, number, 1).await;
    let _ = insert(c, number, 2).await;
    Ok(())
}

async fn clash(c: &mut PgConnection, number: i64) -> Result<(), sqlx::Error> {
    for _ in 0..2 {
        query("INSERT INTO clash VALUES ($1)")
            .bind(number)
            .execute(&mut *c)
            .await?;
    }
    Ok(())
}

async fn late(c: &mut PgConnection) -> Result<(), sqlx::Error> {
    query("SELECT 1 / (2 - n) FROM generate_series(1, 9) AS n")
        .fetch_one(c)
        .await
        .map(drop)
}

async fn slow(c: &mut PgConnection, number: i64) -> Result<(), sqlx::Error> {
    query("SELECT pg_sleep($1)")
        .bind((number % 40) as f64 / 1000.0)
        .execute(c)
        .await
        .map(drop)
}

async fn time_out(c: &mut PgConnection, number: i64) -> Result<(), sqlx::Error> {
    insert(c, number, 1).await?;
    c.execute("SET LOCAL statement_timeout = 20").await?;
    c.execute("SELECT pg_sleep(5)").await.map(drop)
}

async fn early(
    mut tx: Tx,
    State(court): State<Arc<Court>>,
    Path((number, status)): Numbers,
) -> Response {
    let done = async {
        transact(&mut tx, &court, number).await?;
        tx.commit().await?;
        court.ledger.note(number, Note::Acknowledged);
        Ok(())
    };
    let done = done.await.map_err(error);
    answer(&court, number, status, Provokes::Nothing, done)
}

async fn stray(
    mut tx: Tx,
    State(court): State<Arc<Court>>,
    Path((number, status)): Numbers,
) -> Response {
    let done = transact(&mut tx, &court, number).await;
    tokio::spawn(async move {
        tokio::time::sleep(KEPT).await;
        drop(tx);
    });
    answer(
        &court,
        number,
        status,
        Provokes::Nothing,
        done.map_err(error),
    )
}

async fn panicking(
    mut tx: Tx,
    State(court): State<Arc<Court>>,
    Path((number, _)): Numbers,
) -> Response {
    match transact(&mut tx, &court, number).await {
        Ok(()) => panic!("{ON_PURPOSE}"),
        Err(failed) => answer(&court, number, 500, Provokes::Nothing, Err(error(failed))),
    }
}

async fn insert(c: &mut PgConnection, number: i64, half: i32) -> Result<(), sqlx::Error> {
    query("INSERT INTO ledger VALUES ($1, $2)")
        .bind(number)
        .bind(half)
        .execute(c)
        .await
        .map(drop)
}

async fn mark(c: &mut PgConnection, number: i64) -> Result<(), sqlx::Error> {
    query("SELECT set_config('app.req', $1, true)")
        .bind(number.to_string())
        .execute(c)
        .await
        .map(drop)
}

async fn expect(
    c: &mut PgConnection,
    court: &Court,
    number: i64,
    expected: &str,
) -> Result<(), sqlx::Error> {
    let found =
        sqlx::query_scalar::<_, String>("SELECT coalesce(current_setting('app.req', true), '')");
    court
        .witness
        .compare(number, expected, &found.fetch_one(c).await?);
    Ok(())
}

fn error(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(Arc::new(error)))
}
