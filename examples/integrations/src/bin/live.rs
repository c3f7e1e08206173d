//! WebSocket and server-sent events: connections that last for hours, and database sessions that do not.
//!
//! ```text
//! cargo run --bin live                                        # SQLite in memory
//! DATABASE_URL=postgres://user:password@localhost/db cargo run --bin live
//! ```
//!
//! It listens on 127.0.0.1, port 3000 or `PORT`. Try, with <https://github.com/vi/websocat>:
//!
//! ```text
//! curl -N localhost:3000/stock/1                  # in another terminal: a line whenever a piece is taken
//! websocat ws://localhost:3000/till               # then type: 1
//! ```
//!
//! The request that opens such a connection ends with its head, and so does its `DbSession`. From then on, each
//! message and each event takes a session of its own from the pool and gives it back: a thousand clients that wait cost
//! the pool nothing.

use std::{convert::Infallible, error::Error, time::Duration};

use axum::{
    Router,
    extract::{
        Path, State,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    http::StatusCode,
    response::{
        Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use futures_util::Stream;
use integrations::{item, start, stopped};
use sea_orm::{DbErr, EntityTrait, TransactionError};
use tokio::sync::watch;
use tower_sea_orm::{DbSession, DbSessionLayer, SessionPool};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (pool, listener) = start().await?;
    let taken = Taken::default();
    let app = app(pool.clone(), taken.clone());
    let stop = async move {
        stopped(pool).await;
        // The streams look at the pool then, find it closed and end. axum would wait for them for ever.
        taken.0.send_replace(());
    };
    axum::serve(listener, app)
        .with_graceful_shutdown(stop)
        .await?;
    Ok(())
}

/// Tells the streams that something was taken.
#[derive(Clone, Default)]
pub(crate) struct Taken(watch::Sender<()>);

pub(crate) fn app(pool: SessionPool, taken: Taken) -> Router {
    Router::new()
        .route("/till", get(till))
        .route("/stock/{id}", get(stock))
        // Lazy: to open a WebSocket takes no statement.
        .layer(DbSessionLayer::new(pool).lazy())
        .with_state(taken)
}

async fn till(upgrade: WebSocketUpgrade, State(taken): State<Taken>, db: DbSession) -> Response {
    // The pool goes along, not the session: that one ends with this response.
    let pool = db.pool().clone();
    upgrade.on_upgrade(move |socket| serve_till(socket, pool, taken))
}

/// Takes a piece of the item that each message names.
async fn serve_till(mut socket: WebSocket, pool: SessionPool, taken: Taken) {
    // A client that is gone ends the loop here, while no session is out.
    while let Some(Ok(message)) = socket.recv().await {
        let Message::Text(text) = message else {
            continue; // pings are answered by axum
        };
        let answer = match text.trim().parse() {
            Err(_) => "which item?".to_owned(),
            Ok(id) => match take(&pool, id).await {
                Ok(left) => {
                    taken.0.send_replace(());
                    format!("{left} left")
                }
                Err(refused) => refused,
            },
        };
        // Sent after COMMIT, and without a session: a slow client holds no connection.
        if socket.send(Message::from(answer)).await.is_err() {
            return;
        }
    }
}

/// One message, one transaction.
async fn take(pool: &SessionPool, id: i32) -> Result<i32, String> {
    let taken = pool.transaction(async |tx| {
        let left = item::take(tx, id, 1).await.map_err(Refused::Database)?;
        let left = left.ok_or(Refused::NoSuchItem)?.pieces;
        if left < 0 {
            Err(Refused::NotInStock)
        } else {
            Ok(left)
        }
    });
    taken.await.map_err(|error| match error {
        TransactionError::Transaction(Refused::NoSuchItem) => "no such item".to_owned(),
        TransactionError::Transaction(Refused::NotInStock) => "not in stock".to_owned(),
        // The client gets a word, the log gets the cause.
        error => {
            tracing::error!("{error}");
            "please try again".to_owned()
        }
    })
}

#[derive(Debug)]
enum Refused {
    NoSuchItem,
    NotInStock,
    Database(DbErr),
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoSuchItem => f.write_str("no such item"),
            Self::NotInStock => f.write_str("not in stock"),
            Self::Database(error) => error.fmt(f),
        }
    }
}

/// Sends how many pieces are left, now and whenever something was taken.
async fn stock(
    Path(id): Path<i32>,
    State(taken): State<Taken>,
    db: DbSession,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, StatusCode> {
    // On the request's session, while a status can still say what is wrong.
    pieces(&db, id).await?;
    let events = events(db.pool().clone(), id, taken.0.subscribe());
    // A comment now and then: by that the server notices a client that is gone.
    let alive = KeepAlive::new().interval(Duration::from_secs(15));
    Ok(Sse::new(events).keep_alive(alive))
}

fn events(
    pool: SessionPool,
    id: i32,
    mut taken: watch::Receiver<()>,
) -> impl Stream<Item = Result<Event, Infallible>> {
    async_stream::stream! {
        loop {
            // A session for one statement. It is given back before `yield`, where the stream waits for its client.
            let left = match pool.session().await {
                Ok(db) => pieces(&db, id).await,
                Err(_) => Err(StatusCode::SERVICE_UNAVAILABLE),
            };
            // After an error, the client's own reconnecting (part of SSE) is the second try.
            let Ok(left) = left else { return };
            yield Ok(Event::default().data(left.to_string()));
            if taken.changed().await.is_err() {
                return;
            }
        }
    }
}

async fn pieces(db: &DbSession, id: i32) -> Result<i32, StatusCode> {
    let found = item::Entity::find_by_id(id).one(db).await;
    let found = found.map_err(|error| {
        tracing::error!("{error}");
        let known = tower_sea_orm::Error::of(&error);
        known.map_or(StatusCode::INTERNAL_SERVER_ERROR, |known| known.status())
    })?;
    found.map(|item| item.pieces).ok_or(StatusCode::NOT_FOUND)
}
