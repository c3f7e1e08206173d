//! A service for items: a session for every request, a transaction where one is needed.
//!
//! ```text
//! cargo run --example items                                   # SQLite in memory
//! DATABASE_URL='sqlite://items.db?mode=rwc' cargo run --example items  # in a file, which it makes
//! DATABASE_URL=postgres://user:password@localhost/db cargo run --example items
//! ```
//!
//! It listens on 127.0.0.1, port 3000 or `PORT`. The log has one line per session: how long the
//! request waited for its connection, how long it held it, and how many statements it ran.

use std::{
    env,
    error::Error,
    fmt,
    io::{self, IsTerminal},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{MatchedPath, Path},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::get,
};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ConnectionTrait, DbErr, EntityTrait, IntoActiveModel,
    QueryOrder, Schema,
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tower_http::trace::{DefaultMakeSpan, TraceLayer};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, PoolConfig, SessionPool};
use tracing::Level;
use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

/// How long requests in progress may take once the service is asked to stop.
const GRACE: Duration = Duration::from_secs(10);

pub(crate) mod item {
    use sea_orm::entity::prelude::*;
    use serde::Serialize;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Serialize)]
    #[sea_orm(table_name = "item")]
    pub(crate) struct Model {
        #[sea_orm(primary_key)]
        pub(crate) id: i32,
        pub(crate) name: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,tower_sea_orm::session=debug"));
    // With `CLOSE`, every session logs one line when it ends.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(FmtSpan::CLOSE);
    // No colours when the output is a file.
    if io::stdout().is_terminal() {
        log.init()
    } else {
        log.with_ansi(false).init()
    }
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let port = port()?;
    let url = env::var("DATABASE_URL").unwrap_or_else(|_| "sqlite::memory:".to_owned());
    let config = PoolConfig::from_vars([
        ("DATABASE_URL", url.as_str()),
        ("DB_ECHO", "false"),
        // The driver's own 30 s are long for a service that is being tried.
        ("DB_POOL_TIMEOUT", "5s"),
    ])?;
    tracing::info!("connecting to {config}");
    let pool = config
        .connect()
        .await
        .map_err(|error| format!("cannot connect to {config}: {error}"))?;
    create_table(&pool).await?;

    let listener = TcpListener::bind(("127.0.0.1", port))
        .await
        .map_err(|error| {
            format!("cannot listen on 127.0.0.1:{port}: {error}; set PORT to a free port")
        })?;
    tracing::info!("listening on http://{}", listener.local_addr()?);
    let app = app(pool.clone());
    // The pool closes first, while the server still answers: a new request gets a 503, not a refused connection.
    let closed = async move {
        told_to_stop().await;
        tracing::info!("stopping: new requests are refused, those in progress have {GRACE:?}");
        let cut = pool.close(GRACE).await;
        tracing::info!("the database connections are closed; {cut} requests were cut off");
    };
    axum::serve(listener, app)
        .with_graceful_shutdown(closed)
        .await?;
    Ok(())
}

/// `PORT`, or 3000.
fn port() -> Result<u16, String> {
    let Some(port) = env::var_os("PORT").filter(|port| !port.is_empty()) else {
        return Ok(3000);
    };
    let port = port.to_string_lossy();
    port.parse()
        .map_err(|_| format!("PORT is \"{port}\": write a number from 0 to 65535"))
}

/// The service. Tests pass in another pool.
pub(crate) fn app(pool: SessionPool) -> Router {
    Router::new()
        .route("/items", get(list).post(create))
        .route("/items/{item_id}", get(read).put(rename).delete(remove))
        .route_layer(DbSessionLayer::new(pool).lazy().http_route(route))
        // Outermost: its span adds the method and the path to each session's log line.
        .layer(TraceLayer::new_for_http().make_span_with(DefaultMakeSpan::new().level(Level::INFO)))
}

/// A request's route, such as `/items/{item_id}`, for the log and for metrics.
fn route(parts: &Parts) -> Option<Arc<str>> {
    Some(parts.extensions.get::<MatchedPath>()?.as_str().into())
}

/// Outside a request, a session comes from the pool.
pub(crate) async fn create_table(pool: &SessionPool) -> Result<(), Box<dyn Error>> {
    let session = pool.session().await?;
    let mut table = Schema::new(session.backend()).create_table_from_entity(item::Entity);
    session.execute(table.if_not_exists()).await?;
    Ok(())
}

async fn told_to_stop() {
    let interrupted = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::error!("cannot listen for ctrl-c: {error}");
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(error) => {
                tracing::error!("cannot listen for SIGTERM: {error}");
                std::future::pending::<()>().await;
            }
        }
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<()>();
    tokio::select! {
        () = interrupted => {}
        () = terminated => {}
    }
}

#[derive(Deserialize)]
struct NewItem {
    name: Name,
}

/// A name that every database can store. For any other, axum answers 422 with this text.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Name(String);

impl TryFrom<String> for Name {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        // PostgreSQL cannot store NUL, and MySQL's column has 255 characters.
        if (1..=255).contains(&name.chars().count()) && !name.contains('\0') {
            Ok(Self(name))
        } else {
            Err("a name has 1 to 255 characters, and none of them is NUL")
        }
    }
}

#[derive(Serialize)]
struct Renamed {
    before: String,
    item: item::Model,
}

async fn read(db: DbSession, Path(item_id): Path<i32>) -> Result<Json<item::Model>, AppError> {
    let item = item::Entity::find_by_id(item_id).one(&db).await?;
    item.map(Json).ok_or(AppError::NotFound)
}

async fn list(db: DbSession) -> Result<Json<Vec<item::Model>>, AppError> {
    Ok(Json(
        item::Entity::find()
            .order_by_asc(item::Column::Id)
            .all(&db)
            .await?,
    ))
}

async fn create(db: DbSession, Json(new): Json<NewItem>) -> Result<impl IntoResponse, AppError> {
    let item = item::ActiveModel {
        name: Set(new.name.0),
        ..Default::default()
    }
    .insert(&db)
    .await?;
    let location = format!("/items/{}", item.id);
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(item),
    ))
}

/// Reads and writes in one transaction. It is committed before a success is sent; any other response rolls
/// it back, and so does a client that disconnects.
async fn rename(
    tx: DbTx,
    Path(item_id): Path<i32>,
    Json(new): Json<NewItem>,
) -> Result<Json<Renamed>, AppError> {
    let found = item::Entity::find_by_id(item_id)
        .one(&tx)
        .await?
        .ok_or(AppError::NotFound)?;
    let before = found.name.clone();
    let mut item = found.into_active_model();
    item.name = Set(new.name.0);
    Ok(Json(Renamed {
        before,
        item: item.update(&tx).await?,
    }))
}

async fn remove(db: DbSession, Path(item_id): Path<i32>) -> Result<StatusCode, AppError> {
    let deleted = item::Entity::delete_by_id(item_id).exec(&db).await?;
    if deleted.rows_affected == 0 {
        Err(AppError::NotFound)
    } else {
        Ok(StatusCode::NO_CONTENT)
    }
}

#[derive(Debug)]
enum AppError {
    NotFound,
    Database(DbErr),
}

impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        let error = match self {
            Self::NotFound => return (StatusCode::NOT_FOUND, "no such item").into_response(),
            Self::Database(error) => error,
        };
        // The client gets a status, the log gets the cause.
        tracing::error!("{error}");
        let Some(known) = tower_sea_orm::Error::of(&error) else {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        };
        let mut response = known.status().into_response();
        if let Some(wait) = known.retry_after() {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, wait.as_secs().into());
        }
        response
    }
}

impl From<DbErr> for AppError {
    fn from(error: DbErr) -> Self {
        Self::Database(error)
    }
}

impl fmt::Display for AppError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("no such item"),
            Self::Database(error) => error.fmt(f),
        }
    }
}

impl Error for AppError {}
