//! Tenants that cannot see each other's rows: PostgreSQL's row-level security, with the tenant bound to each
//! request's transaction.
//!
//! ```text
//! docker run --rm -p 5432:5432 -e POSTGRES_PASSWORD=secret postgres      # if there is no server yet
//! DATABASE_URL=postgres://postgres:secret@localhost/postgres cargo run --example row_level_security
//!
//! curl -H 'x-tenant: red' --json '{"text": "paint"}' http://127.0.0.1:3000/notes
//! curl -H 'x-tenant: red' http://127.0.0.1:3000/notes         # the note
//! curl -H 'x-tenant: blue' http://127.0.0.1:3000/notes        # []
//! curl -i -H 'x-tenant: blue' http://127.0.0.1:3000/notes/1   # 404
//! curl -i http://127.0.0.1:3000/notes                         # 401, without asking the database
//! ```
//!
//! No handler names the tenant, so none can forget it. Three things make that work:
//! - The tenant is set by `set_local`, in the text of each BEGIN and until the end of that transaction: it costs no
//!   round trip, the next request on the same connection starts without a tenant, and without one no row is visible.
//! - The connections have a role that policies apply to. They do not apply to superusers and to roles
//!   with BYPASSRLS, nor, without FORCE, to the table's owner.
//! - That is checked before the service listens.

use std::{
    env,
    error::Error,
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, Request},
    http::{StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ConnectOptions, ConnectionTrait, Database, DbBackend,
    DbErr, EntityTrait, QueryOrder, Statement,
};
use serde::Deserialize;
use tokio::net::TcpListener;
use tower_http::trace::{DefaultMakeSpan, TraceLayer};
use tower_sea_orm::{DbSession, DbSessionLayer, PoolConfig, SessionPool};
use tracing::Level;
use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

const NO_DATABASE: &str = "This example needs a PostgreSQL that it may create a role and a table in. For example:

    docker run --rm -p 5432:5432 -e POSTGRES_PASSWORD=secret postgres
    DATABASE_URL=postgres://postgres:secret@localhost/postgres cargo run --example row_level_security";

/// The role that the service's connections have: it cannot log in, it owns nothing, and policies apply to
/// it.
const ROLE: &str = "notes_app";

/// Belongs in a service's migrations; it can be run again.
///
/// A setting that was local to a transaction is `''` after it, on that connection, hence the `nullif`.
const SCHEMA: &str = "
    SET client_min_messages = warning; -- not what is there already

    CREATE OR REPLACE FUNCTION current_tenant() RETURNS text STABLE LANGUAGE sql
        AS $$ SELECT nullif(current_setting('app.tenant', true), '') $$;

    CREATE TABLE IF NOT EXISTS note (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tenant text NOT NULL DEFAULT current_tenant(),
        text text NOT NULL
    );
    CREATE INDEX IF NOT EXISTS note_tenant ON note (tenant, id);
    ALTER TABLE note ENABLE ROW LEVEL SECURITY;
    ALTER TABLE note FORCE ROW LEVEL SECURITY;
    DROP POLICY IF EXISTS note_tenant ON note;
    CREATE POLICY note_tenant ON note USING (tenant = current_tenant()) WITH CHECK (tenant = current_tenant());

    DO $$ BEGIN
        CREATE ROLE notes_app NOLOGIN NOSUPERUSER NOBYPASSRLS;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; -- the role belongs to all databases of a server
    END $$;
    DO $$ BEGIN
        IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
            GRANT notes_app TO CURRENT_USER; -- a superuser can become any role anyway
        END IF;
    END $$;
    GRANT SELECT, INSERT, UPDATE, DELETE ON note TO notes_app;
";

mod note {
    use sea_orm::entity::prelude::*;
    use serde::Serialize;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Serialize)]
    #[sea_orm(table_name = "note")]
    pub(crate) struct Model {
        #[sea_orm(primary_key)]
        pub(crate) id: i64,
        /// Never set here: the database fills it in.
        pub(crate) tenant: String,
        pub(crate) text: String,
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

    let Ok(url) = env::var("DATABASE_URL") else {
        eprintln!("{NO_DATABASE}");
        return ExitCode::FAILURE;
    };
    match run(url).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(url: String) -> Result<(), Box<dyn Error>> {
    // Reports at once what is wrong with the URL or the server; the driver's pool would retry for 30 s.
    let config = PoolConfig::from_vars([("DATABASE_URL", url.as_str()), ("DB_ECHO", "false")])?;
    tracing::info!("connecting to {config}");
    let tried = config
        .connect()
        .await
        .map_err(|error| format!("cannot connect to {config}: {error}"))?;
    tried.close(Duration::ZERO).await;
    let mut options = ConnectOptions::new(url);
    options.sqlx_logging(false);
    set_up(options.clone()).await?;
    let pool = connect(options).await?;
    // Outermost: its span adds the method and the path to each session's log line.
    let trace =
        TraceLayer::new_for_http().make_span_with(DefaultMakeSpan::new().level(Level::INFO));
    let app = app(pool.clone()).layer(trace);

    let listener = TcpListener::bind(("127.0.0.1", port()?)).await?;
    tracing::info!("listening on http://{}", listener.local_addr()?);
    let closed = async move {
        interrupted().await;
        let cut = pool.close(Duration::from_secs(10)).await;
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

async fn interrupted() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        tracing::error!("cannot listen for ctrl-c: {error}");
        std::future::pending::<()>().await;
    }
}

/// Creates the table, its policy and the role, as the URL's user.
pub(crate) async fn set_up(mut options: ConnectOptions) -> Result<(), DbErr> {
    let db = Database::connect(options.max_connections(1).clone()).await?;
    // Several statements in one text are one transaction.
    let done = db.execute_unprepared(SCHEMA).await;
    db.close().await?;
    done.map(drop)
}

/// The service's pool, whose connections have the role from the start: code without the layer, a background
/// job or the plain `DatabaseConnection` then sees no rows instead of all of them.
///
/// A separate login works as well, and then not even `SET ROLE` leads back to the URL's user. Behind a proxy
/// that pools per transaction, a second `set_local` can set `role`.
pub(crate) async fn connect(mut options: ConnectOptions) -> Result<SessionPool, DbErr> {
    options.map_sqlx_postgres_opts(|options| options.options([("role", ROLE)]));
    let db = Database::connect(options).await?;
    let question =
        Statement::from_string(DbBackend::Postgres, "SELECT row_security_active('note')");
    let row = db.query_one_raw(question).await?;
    if row.is_none_or(|row| row.try_get_by_index(0) != Ok(true)) {
        return Err(DbErr::Custom(
            "row-level security does not apply to this role".to_owned(),
        ));
    }
    Ok(SessionPool::new(db))
}

pub(crate) fn app(pool: SessionPool) -> Router {
    let routes = Router::new()
        .route("/notes", get(list).post(create))
        .route("/notes/{id}", get(read));
    protected(routes, pool)
}

/// Gives `routes` sessions of the request's tenant.
pub(crate) fn protected(routes: Router, pool: SessionPool) -> Router {
    let sessions = DbSessionLayer::new(pool)
        .lazy()
        .set_local("app.tenant", tenant);
    // The layer added last is outermost: the tenant is known first.
    routes
        .route_layer(sessions)
        .route_layer(middleware::from_fn(authenticate))
}

/// The tenant that a request belongs to.
#[derive(Clone)]
struct Tenant(String);

/// A stand-in for real authentication, which would verify a token instead of trusting a header.
async fn authenticate(mut request: Request, next: Next) -> Response {
    let name = request
        .headers()
        .get("x-tenant")
        .and_then(|name| name.to_str().ok());
    let Some(tenant) = name
        .filter(|name| !name.is_empty())
        .map(|name| Tenant(name.to_owned()))
    else {
        return (StatusCode::UNAUTHORIZED, "the x-tenant header is missing").into_response();
    };
    request.extensions_mut().insert(tenant);
    next.run(request).await
}

/// The value of `app.tenant` for a request; without a tenant, one for which no row is visible.
fn tenant(parts: &Parts) -> String {
    let tenant = parts.extensions.get::<Tenant>();
    tenant.map(|tenant| tenant.0.clone()).unwrap_or_default()
}

#[derive(Deserialize)]
struct NewNote {
    text: String,
}

async fn list(db: DbSession) -> Result<Json<Vec<note::Model>>, AppError> {
    Ok(Json(
        note::Entity::find()
            .order_by_asc(note::Column::Id)
            .all(&db)
            .await?,
    ))
}

async fn create(db: DbSession, Json(new): Json<NewNote>) -> Result<impl IntoResponse, AppError> {
    let note = note::ActiveModel {
        text: Set(new.text),
        ..Default::default()
    }
    .insert(&db)
    .await?;
    let location = format!("/notes/{}", note.id);
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(note),
    ))
}

/// Another tenant's note gets the same answer as one that does not exist.
async fn read(db: DbSession, Path(id): Path<i64>) -> Result<Json<note::Model>, AppError> {
    note::Entity::find_by_id(id)
        .one(&db)
        .await?
        .map(Json)
        .ok_or(AppError::NotFound)
}

enum AppError {
    NotFound,
    Database(DbErr),
}

impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        let error = match self {
            Self::NotFound => return (StatusCode::NOT_FOUND, "no such note").into_response(),
            Self::Database(error) => error,
        };
        // The client gets a status, the log gets the cause.
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
