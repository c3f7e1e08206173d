//! A transactional outbox: messages to other systems are written in the request's own transaction, and a relay delivers
//! them once it is committed (<https://microservices.io/patterns/data/transactional-outbox.html>).
//!
//! ```text
//! docker run --rm -p 5432:5432 -e POSTGRES_PASSWORD=secret postgres      # if there is no server yet
//! DATABASE_URL=postgres://postgres:secret@localhost/postgres cargo run --example outbox
//!
//! curl -i --json '{"item": "lamp"}' http://127.0.0.1:3000/orders     # 201, and the log shows the message
//! curl -i --json '{"item": ""}' http://127.0.0.1:3000/orders         # 422, and there is no message
//! ```
//!
//! Why not `after_commit`? A hook is lost if the service stops between COMMIT and the hook's end. Here the hook only wakes the relay, which
//! would find the message anyway.
//!
//! A message is delivered *at least* once: a relay that stops between delivery and COMMIT leaves it to the next one. Its
//! `id` lets the receiver recognise it. Relays of several instances share the work: `SKIP LOCKED` gives each of them messages that no
//! other one has, so that messages may overtake each other.

use std::{env, error::Error, process::ExitCode, sync::Arc, time::Duration};

use axum::{Extension, Json, Router, http::StatusCode, routing::post};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbErr, Statement, Value};
use serde::Deserialize;
use tokio::{net::TcpListener, sync::Notify, time::timeout};
use tower_sea_orm::{DbSessionLayer, DbTx, SessionPool, unsafe_methods};

/// Belongs in a service's migrations.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS purchase (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        item text NOT NULL
    );
    CREATE TABLE IF NOT EXISTS outbox (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        payload text NOT NULL
    );
";

/// How many messages a relay takes at once.
const BATCH: i64 = 10;

/// How long a relay waits for a wake-up: another instance wakes nothing here.
const INTERVAL: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().init();
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let url = env::var("DATABASE_URL").map_err(|_| "DATABASE_URL names no PostgreSQL")?;
    let db = Database::connect(url).await?;
    set_up(&db).await?;
    let pool = SessionPool::new(db);
    let outbox = Outbox::default();
    let relay = tokio::spawn(
        outbox
            .clone()
            .relay(pool.clone(), async |message: &Message| {
                // A service would publish it to its broker here, and return its error.
                tracing::info!("message {}: {}", message.id, message.payload);
                Ok(())
            }),
    );
    let listener = TcpListener::bind(("127.0.0.1", 3000)).await?;
    tracing::info!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app(pool.clone(), outbox))
        .with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        .await?;
    // What it has in hand is rolled back, and delivered after the next start.
    relay.abort();
    pool.close(Duration::from_secs(10)).await;
    Ok(())
}

pub(crate) async fn set_up(db: &DatabaseConnection) -> Result<(), DbErr> {
    db.execute_unprepared(SCHEMA).await.map(drop)
}

pub(crate) fn app(pool: SessionPool, outbox: Outbox) -> Router {
    Router::new()
        .route("/orders", post(order))
        .layer(Extension(outbox))
        .layer(
            DbSessionLayer::new(pool)
                .lazy()
                .transaction_if(unsafe_methods),
        )
}

#[derive(Deserialize)]
struct Order {
    item: String,
}

async fn order(
    tx: DbTx,
    Extension(outbox): Extension<Outbox>,
    Json(order): Json<Order>,
) -> Result<StatusCode, StatusCode> {
    let failed = |_: DbErr| StatusCode::INTERNAL_SERVER_ERROR;
    let sql = "INSERT INTO purchase (item) VALUES ($1)";
    run_one(&tx, sql, [order.item.clone().into()])
        .await
        .map_err(failed)?;
    outbox
        .send(&tx, &format!("ordered {}", order.item))
        .await
        .map_err(failed)?;
    if order.item.is_empty() {
        // Rolled back: neither the purchase nor its message was ever there.
        return Err(StatusCode::UNPROCESSABLE_ENTITY);
    }
    Ok(StatusCode::CREATED)
}

/// Messages that are delivered once their transaction is committed.
#[derive(Clone, Default)]
pub(crate) struct Outbox(Arc<Notify>);

pub(crate) struct Message {
    pub(crate) id: i64,
    pub(crate) payload: String,
}

impl Outbox {
    /// Writes a message in the request's transaction.
    pub(crate) async fn send(&self, tx: &DbTx, payload: &str) -> Result<(), DbErr> {
        let sql = "INSERT INTO outbox (payload) VALUES ($1)";
        run_one(tx, sql, [payload.into()]).await?;
        let wakes = self.0.clone();
        tx.after_commit(async move { wakes.notify_one() })
    }

    /// Delivers messages for ever. An error of `deliver` leaves its batch for later.
    pub(crate) async fn relay<D>(self, pool: SessionPool, deliver: D)
    where
        D: AsyncFn(&Message) -> Result<(), DbErr>,
    {
        loop {
            match relay_batch(&pool, &deliver).await {
                // There may be more.
                Ok(delivered) if delivered > 0 => continue,
                Ok(_) => {}
                Err(error) => tracing::warn!("messages wait in the outbox: {error}"),
            }
            let _ = timeout(INTERVAL, self.0.notified()).await;
        }
    }
}

/// Delivers a batch in a transaction, which keeps it from other relays and deletes it.
async fn relay_batch<D>(pool: &SessionPool, deliver: &D) -> Result<usize, Box<dyn Error>>
where
    D: AsyncFn(&Message) -> Result<(), DbErr>,
{
    let delivered = pool.transaction(async |tx| {
        let messages = take(tx).await?;
        for message in &messages {
            deliver(message).await?;
        }
        Ok::<_, DbErr>(messages.len())
    });
    Ok(delivered.await?)
}

/// Takes messages that no other relay has in hand.
async fn take(tx: &DbTx) -> Result<Vec<Message>, DbErr> {
    let sql = "DELETE FROM outbox WHERE id IN \
               (SELECT id FROM outbox ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED) \
               RETURNING id, payload";
    let values = [BATCH.into()];
    let statement = Statement::from_sql_and_values(tx.backend(), sql, values);
    let rows = tx.query_all_raw(statement).await?;
    let message = |row: sea_orm::QueryResult| {
        Ok(Message {
            id: row.try_get_by_index(0)?,
            payload: row.try_get_by_index(1)?,
        })
    };
    let mut messages = rows
        .into_iter()
        .map(message)
        .collect::<Result<Vec<_>, DbErr>>()?;
    // RETURNING keeps no order.
    messages.sort_by_key(|message| message.id);
    Ok(messages)
}

async fn run_one<const N: usize>(tx: &DbTx, sql: &str, values: [Value; N]) -> Result<(), DbErr> {
    let statement = Statement::from_sql_and_values(tx.backend(), sql, values);
    tx.execute_raw(statement).await.map(drop)
}
