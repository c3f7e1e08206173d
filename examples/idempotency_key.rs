//! Requests that a client may send again without harm: the header `Idempotency-Key`
//! (<https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/>), with the key, the request's
//! fingerprint and the answer written in the request's own transaction.
//!
//! ```text
//! docker run --rm -p 5432:5432 -e POSTGRES_PASSWORD=secret postgres      # if there is no server yet
//! DATABASE_URL=postgres://postgres:secret@localhost/postgres cargo run --example idempotency_key
//!
//! pay() { curl -i -H "idempotency-key: \"$1\"" --json "{\"amount\": $2}" http://127.0.0.1:3000/payments; }
//! pay one 5     # 201, the payment
//! pay one 5     # 201, the same payment, and `idempotency-replayed: true`
//! pay one 6     # 422: the key belongs to another request
//! pay '' 5      # 400
//! ```
//!
//! When a connection is lost during COMMIT, nobody knows whether the transaction is there, and the answer is a 500. The client
//! sends the request again with the same key, and gets the answer of the first one if that is there; if not, it is done now.
//! This is the only safe way out of an unknown outcome. Conflicts with other transactions, which are known to be undone, do not
//! reach the client: the `RetryLayer` runs the request again.
//!
//! Only answers below 400 are stored, since everything else is rolled back. A key belongs to its client: behind
//! authentication, make the user a part of the key.

use std::{env, error::Error, process::ExitCode, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes, to_bytes},
    extract::Request,
    http::{HeaderValue, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::post,
};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbErr, Statement, Value};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tower_sea_orm::{DbSessionLayer, DbTx, RetryLayer, SessionPool, unsafe_methods};

/// Belongs in a service's migrations. Old keys are deleted by a job: `DELETE FROM idempotency_key WHERE made < now() - interval '1 day'`.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS idempotency_key (
        key text PRIMARY KEY,
        fingerprint bytea NOT NULL,
        status smallint NOT NULL,
        content_type text,
        body bytea NOT NULL,
        made timestamptz NOT NULL DEFAULT now()
    );
    CREATE INDEX IF NOT EXISTS idempotency_key_made ON idempotency_key (made);
    CREATE TABLE IF NOT EXISTS payment (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        amount bigint NOT NULL
    );
";

/// The longest body of a request and of an answer.
const MAX_BODY: usize = 64 << 10;

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
    let listener = TcpListener::bind(("127.0.0.1", 3000)).await?;
    tracing::info!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app(pool.clone()))
        .with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        .await?;
    pool.close(Duration::from_secs(10)).await;
    Ok(())
}

pub(crate) async fn set_up(db: &DatabaseConnection) -> Result<(), DbErr> {
    db.execute_unprepared(SCHEMA).await.map(drop)
}

pub(crate) fn app(pool: SessionPool) -> Router {
    // The layer added last is outermost.
    Router::new()
        .route("/payments", post(pay))
        .route_layer(middleware::from_fn(once))
        .layer(
            DbSessionLayer::new(pool)
                .lazy()
                .transaction_if(unsafe_methods),
        )
        .layer(RetryLayer::new().max_body(MAX_BODY))
}

/// Serves a request once for each key, in the transaction of its session.
async fn once(tx: DbTx, request: Request, next: Next) -> Result<Response, AppError> {
    let (parts, body) = request.into_parts();
    let key = key_of(&parts)?;
    let body = to_bytes(body, MAX_BODY)
        .await
        .map_err(|_| AppError::TooLong)?;
    // Until the end of the transaction. It does not wait: the other request may take long, and its client has gone perhaps.
    if !lock(&tx, &key).await? {
        return Err(AppError::UnderWay);
    }
    let fingerprint = fingerprint(&parts, &body);
    if let Some(stored) = Stored::find(&tx, &key).await? {
        return if stored.fingerprint == fingerprint {
            Ok(stored.replay())
        } else {
            Err(AppError::OtherRequest)
        };
    }
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    if response.status().as_u16() >= 400 {
        // Rolled back, and nothing of it is to be remembered.
        return Ok(response);
    }
    let (head, body) = response.into_parts();
    let body = to_bytes(body, MAX_BODY)
        .await
        .map_err(|_| AppError::TooLong)?;
    let content_type = head.headers.get(header::CONTENT_TYPE);
    let stored = Stored {
        fingerprint,
        status: head.status.as_u16() as i16,
        content_type: content_type.and_then(|value| Some(value.to_str().ok()?.to_owned())),
        body: body.to_vec(),
    };
    stored.insert(&tx, &key).await?;
    Ok(Response::from_parts(head, Body::from(body)))
}

/// The key: a string of structured fields (RFC 9651), with its quotes or, as many clients send it, without.
fn key_of(parts: &Parts) -> Result<String, AppError> {
    let mut values = parts.headers.get_all("idempotency-key").iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(AppError::NoKey);
    };
    let value = value.to_str().map_err(|_| AppError::NoKey)?;
    let bare = value
        .strip_prefix('"')
        .map_or(Some(value), |rest| rest.strip_suffix('"'));
    let key = bare.ok_or(AppError::NoKey)?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:+/=".contains(&byte);
    if key.is_empty() || key.len() > 255 || !key.bytes().all(is_token) {
        return Err(AppError::NoKey);
    }
    Ok(key.to_owned())
}

/// All that makes a request another one. Kept as it is, since bodies are short: a digest of it would do.
fn fingerprint(parts: &Parts, body: &Bytes) -> Vec<u8> {
    let head = format!("{} {}\n", parts.method, parts.uri);
    [head.as_bytes(), body].concat()
}

async fn lock(tx: &DbTx, key: &str) -> Result<bool, DbErr> {
    let sql = "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))";
    let row = tx.query_one_raw(statement(tx, sql, [key.into()])).await?;
    row.ok_or(DbErr::RecordNotFound("a lock".to_owned()))?
        .try_get_by_index(0)
}

/// What is kept of a request that was served.
struct Stored {
    fingerprint: Vec<u8>,
    status: i16,
    content_type: Option<String>,
    body: Vec<u8>,
}

impl Stored {
    async fn find(tx: &DbTx, key: &str) -> Result<Option<Self>, DbErr> {
        let sql =
            "SELECT fingerprint, status, content_type, body FROM idempotency_key WHERE key = $1";
        let row = tx.query_one_raw(statement(tx, sql, [key.into()])).await?;
        row.map(|row| {
            Ok(Self {
                fingerprint: row.try_get_by_index(0)?,
                status: row.try_get_by_index(1)?,
                content_type: row.try_get_by_index(2)?,
                body: row.try_get_by_index(3)?,
            })
        })
        .transpose()
    }

    async fn insert(self, tx: &DbTx, key: &str) -> Result<(), DbErr> {
        let sql = "INSERT INTO idempotency_key (key, fingerprint, status, content_type, body) VALUES ($1, $2, $3, $4, $5)";
        let values = [
            key.into(),
            self.fingerprint.into(),
            self.status.into(),
            self.content_type.into(),
            self.body.into(),
        ];
        tx.execute_raw(statement(tx, sql, values)).await.map(drop)
    }

    fn replay(self) -> Response {
        let status = StatusCode::from_u16(self.status as u16).unwrap_or(StatusCode::OK);
        let mut response = (status, self.body).into_response();
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_TYPE);
        if let Some(value) = self
            .content_type
            .and_then(|kind| HeaderValue::try_from(kind).ok())
        {
            headers.insert(header::CONTENT_TYPE, value);
        }
        headers.insert("idempotency-replayed", HeaderValue::from_static("true"));
        response
    }
}

fn statement<const N: usize>(tx: &DbTx, sql: &str, values: [Value; N]) -> Statement {
    Statement::from_sql_and_values(tx.get_database_backend(), sql, values)
}

#[derive(Deserialize)]
struct NewPayment {
    amount: i64,
}

#[derive(Serialize)]
struct Payment {
    id: i64,
    amount: i64,
}

async fn pay(
    tx: DbTx,
    Json(new): Json<NewPayment>,
) -> Result<(StatusCode, Json<Payment>), AppError> {
    if new.amount <= 0 {
        return Err(AppError::NoAmount);
    }
    let sql = "INSERT INTO payment (amount) VALUES ($1) RETURNING id";
    let row = tx
        .query_one_raw(statement(&tx, sql, [new.amount.into()]))
        .await?;
    let row = row.ok_or(DbErr::RecordNotInserted)?;
    let (id, amount) = (row.try_get_by_index(0)?, new.amount);
    Ok((StatusCode::CREATED, Json(Payment { id, amount })))
}

enum AppError {
    NoKey,
    NoAmount,
    TooLong,
    UnderWay,
    OtherRequest,
    Database(DbErr),
}

impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        let error = match self {
            Self::NoKey => {
                return (StatusCode::BAD_REQUEST, "an Idempotency-Key is needed").into_response();
            }
            Self::NoAmount => return (StatusCode::BAD_REQUEST, "nothing to pay").into_response(),
            Self::TooLong => return StatusCode::PAYLOAD_TOO_LARGE.into_response(),
            Self::UnderWay => {
                return (StatusCode::CONFLICT, "a request with this key is under way")
                    .into_response();
            }
            Self::OtherRequest => {
                let text = "this key was used for another request";
                return (StatusCode::UNPROCESSABLE_ENTITY, text).into_response();
            }
            Self::Database(error) => error,
        };
        tracing::error!("{error}");
        tower_sea_orm::Error::of(&error)
            .map_or(StatusCode::INTERNAL_SERVER_ERROR, |known| known.status())
            .into_response()
    }
}

impl From<DbErr> for AppError {
    fn from(error: DbErr) -> Self {
        Self::Database(error)
    }
}
