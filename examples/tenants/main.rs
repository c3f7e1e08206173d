//! A database for each tenant: its pool is opened with the tenant's first request and closed when it is idle, and all the
//! pools on one server share a budget of connections.
//!
//! ```text
//! docker run --rm -p 5432:5432 -e POSTGRES_PASSWORD=secret postgres      # if there is no server yet
//! DATABASE_URL=postgres://postgres:secret@localhost TENANTS='red blue' cargo run --example tenants
//!
//! curl -H 'x-tenant: red' --json '{"text": "paint"}' http://127.0.0.1:3000/notes
//! curl -H 'x-tenant: red' http://127.0.0.1:3000/notes          # the note
//! curl -H 'x-tenant: blue' http://127.0.0.1:3000/notes         # [], from another database
//! curl -i -H 'x-tenant: green' http://127.0.0.1:3000/notes     # 404
//! ```
//!
//! The budget is kept by a simple rule: every pool has the same few connections, and only as many pools are open as fit into
//! the budget. What that costs:
//! - A tenant never has more connections than the others, however busy it is, and one that needs a single connection takes the
//!   place of a whole pool: with many tenants of little use, a good part of the budget stays unused. Small pools waste less.
//! - When all places are taken, a tenant that has none waits until another one's pool is idle and closed, and its first
//!   request logs in. If no pool becomes idle in time, the client gets a 503 with `Retry-After`.
//! - Each pool counts for two connections more than it has: those that it may open beside its own for a moment, to ask the
//!   server something. They make up as well for connections that the server has not quite ended yet.
//! - A budget belongs to a server, because the limit does: a server that is down then takes no places from the tenants of
//!   the others. Each instance of the service has a budget of its own.

mod pools;

use std::{env, error::Error, process::ExitCode, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header::RETRY_AFTER},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use sea_orm::{
    ActiveModelTrait,
    ActiveValue::Set,
    ConnectionTrait, Database, DbErr, EntityTrait, QueryOrder, QuerySelect,
    sqlx::{PgPool, postgres::PgConnectOptions},
};
use serde::Deserialize;
use tokio::net::TcpListener;
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, SessionPool, error_response, unsafe_methods};

pub(crate) use self::pools::{Lease, Limits, Refused, Tenants};

/// What each tenant's database has; belongs in migrations.
const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS note (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    text text NOT NULL
)";

/// A pool that no request has used for so long is closed.
const IDLE: Duration = Duration::from_secs(60);

/// The pool for a request, in its extensions.
#[derive(Clone)]
struct TenantPool(SessionPool);

/// Finds the tenant's pool: a stand-in for real authentication, which would verify a token instead of trusting a header.
async fn find_pool(State(tenants): State<Tenants>, mut request: Request, next: Next) -> Response {
    let name = request.headers().get("x-tenant");
    let name = name.and_then(|name| name.to_str().ok()).unwrap_or_default();
    // Held until the handler has answered.
    let lease = match tenants.lease(name).await {
        Ok(lease) => lease,
        Err(Refused::Full) => {
            let text = "too many tenants at once\n";
            return (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")], text).into_response();
        }
        Err(Refused::Unusable(error)) => {
            tracing::error!("{name}: {error}");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    // Without one, the session layer answers.
    if let Some(pool) = lease.as_ref().and_then(Lease::pool) {
        request.extensions_mut().insert(TenantPool(pool));
    }
    next.run(request).await
}

pub(crate) fn app(tenants: Tenants) -> Router {
    let routes = Router::new().route("/notes", get(list).post(create));
    protected(routes, tenants)
}

/// Gives `routes` sessions on the database of the request's tenant.
pub(crate) fn protected(routes: Router, tenants: Tenants) -> Router {
    // What the layer's settings are checked against; it never connects.
    let home = PgPool::connect_lazy_with(PgConnectOptions::new_without_pgpass());
    let sessions = DbSessionLayer::new(SessionPool::new(home.into()))
        .lazy()
        .transaction_if(unsafe_methods)
        .by(|parts| {
            let pool = parts.extensions.get::<TenantPool>();
            pool.map(|TenantPool(pool)| pool.clone())
        })
        .response_for_error(|error, parts| {
            let text = match error.is_unknown_database() {
                true => "no such tenant\n",
                false => "",
            };
            error_response(error, parts, Body::from(text))
        });
    routes
        .route_layer(sessions)
        .route_layer(middleware::from_fn_with_state(tenants, find_pool))
}

mod note {
    use sea_orm::entity::prelude::*;
    use serde::Serialize;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Serialize)]
    #[sea_orm(table_name = "note")]
    pub(crate) struct Model {
        #[sea_orm(primary_key)]
        pub(crate) id: i64,
        pub(crate) text: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

#[derive(Deserialize)]
struct NewNote {
    text: String,
}

async fn list(db: DbSession) -> Result<Json<Vec<note::Model>>, AppError> {
    let latest = note::Entity::find().order_by_desc(note::Column::Id);
    Ok(Json(latest.limit(20).all(&db).await?))
}

async fn create(tx: DbTx, Json(new): Json<NewNote>) -> Result<impl IntoResponse, AppError> {
    let note = note::ActiveModel {
        text: Set(new.text),
        ..Default::default()
    };
    Ok((StatusCode::CREATED, Json(note.insert(&tx).await?)))
}

struct AppError(DbErr);

impl From<DbErr> for AppError {
    fn from(error: DbErr) -> Self {
        Self(error)
    }
}

impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        // The client gets a status, the log gets the cause.
        tracing::error!("{}", self.0);
        tower_sea_orm::Error::of(&self.0)
            .map_or(StatusCode::INTERNAL_SERVER_ERROR, |known| known.status())
            .into_response()
    }
}

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
    let server = env::var("DATABASE_URL").map_err(|_| "DATABASE_URL names no PostgreSQL")?;
    let names = env::var("TENANTS").unwrap_or_else(|_| "red blue".to_owned());
    let mut urls = Vec::new();
    for name in names.split_whitespace() {
        urls.push((name.to_owned(), make_tenant(&server, name).await?));
    }
    let limits = Limits {
        budget: 60,
        connections: 4,
        wait: Duration::from_secs(2),
    };
    let tenants = Tenants::new(urls, limits)?;
    let watched = tenants.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(IDLE / 4).await;
            watched.close_idle(IDLE);
            let (open, opened) = watched.pools();
            tracing::debug!("{open} pools are open, of {opened} that were opened");
        }
    });
    let listener = TcpListener::bind(("127.0.0.1", 3000)).await?;
    tracing::info!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app(tenants.clone()))
        .with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        .await?;
    tenants.close(Duration::from_secs(10)).await;
    Ok(())
}

/// Makes a tenant's database, unless it is there, and returns its URL.
async fn make_tenant(server: &str, name: &str) -> Result<String, Box<dyn Error>> {
    if !name.bytes().all(|byte| byte.is_ascii_lowercase()) {
        return Err(format!("TENANTS: {name:?} is not of small letters").into());
    }
    let admin = Database::connect(server).await?;
    let sql = format!("CREATE DATABASE tenant_{name}");
    if let Err(error) = admin.execute_unprepared(&sql).await
        && !error.to_string().contains("already exists")
    {
        return Err(error.into());
    }
    admin.close().await?;
    let scheme = server.find("://").map_or(0, |at| at + 3);
    let path = server[scheme..].find('/');
    let base = path.map_or(server, |at| &server[..scheme + at]);
    let url = format!("{base}/tenant_{name}");
    set_up(&url).await?;
    Ok(url)
}

pub(crate) async fn set_up(url: &str) -> Result<(), DbErr> {
    let db = Database::connect(url).await?;
    db.execute_unprepared(SCHEMA).await?;
    db.close().await
}
