//! Logging in with axum-login: users, and the sessions of tower-sessions, in the same database as everything else.
//!
//! ```text
//! cargo run --bin login                                       # SQLite in memory
//! DATABASE_URL=postgres://user:password@localhost/db cargo run --bin login
//! ```
//!
//! It listens on 127.0.0.1, port 3000 or `PORT`. Try (`-c` and `-b` keep and send the cookie):
//!
//! ```text
//! curl -c jar localhost:3000/login -d 'name=ann&password=correct-horse'
//! curl -b jar -X POST localhost:3000/take/1
//! curl -b jar -c jar -X POST localhost:3000/logout
//! ```
//!
//! Two things are called a session here: a *web session*, which a cookie names and which lasts for days, and the
//! `DbSession` of one request. Web sessions are read before the request's `DbSession` begins and written after
//! it has ended, each on a connection that is checked out for that statement only. So a request never waits
//! for a second connection while it holds one, and a pool of any size is enough.

#[path = "login/users.rs"]
mod users;
#[path = "login/web_sessions.rs"]
mod web_sessions;

use std::error::Error;

use axum::{
    Form, Router,
    extract::Path,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use axum_login::{AuthManagerLayerBuilder, login_required};
use integrations::{item, start, stopped};
use sea_orm::DbErr;
use tower_sea_orm::{DbSessionLayer, DbTx, SessionPool};
use tower_sessions::{Expiry, SessionManagerLayer};

pub(crate) use self::users::add_user;
use self::{
    users::{Credentials, Users},
    web_sessions::WebSessions,
};

type AuthSession = axum_login::AuthSession<Users>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (pool, listener) = start().await?;
    create_tables(&pool).await?;
    add_user(&pool, "ann", "correct-horse").await?;
    axum::serve(listener, app(pool.clone()))
        .with_graceful_shutdown(stopped(pool))
        .await?;
    Ok(())
}

pub(crate) async fn create_tables(pool: &SessionPool) -> Result<(), DbErr> {
    users::create_table(pool).await?;
    web_sessions::create_table(pool).await
}

pub(crate) fn app(pool: SessionPool) -> Router {
    let cookies = SessionManagerLayer::new(WebSessions(pool.clone()))
        // For this example alone, which has no TLS.
        .with_secure(false)
        .with_expiry(Expiry::OnInactivity(time::Duration::days(7)));
    let login = AuthManagerLayerBuilder::new(Users(pool.clone()), cookies).build();
    let shop = Router::new()
        .route("/take/{id}", post(take))
        // Added last, so it is the outer one: a stranger does not even wait for a connection.
        .layer(DbSessionLayer::new(pool))
        .layer(login_required!(Users));
    Router::new()
        // Outside the session layer: these handlers use the pool through `Users` and `WebSessions`. A
        // `DbSession` that has run a statement would hold one connection while they wait for another.
        .route("/login", post(log_in))
        .route("/logout", post(log_out))
        .merge(shop)
        // Outside everything: a web session is written once the request's own transaction has ended.
        .layer(login)
}

async fn log_in(mut auth: AuthSession, Form(given): Form<Credentials>) -> Result<(), AppError> {
    let user = auth.authenticate(given).await.map_err(AppError::auth)?;
    let user = user.ok_or(AppError::Unauthorized)?;
    auth.login(&user).await.map_err(AppError::auth)
}

async fn log_out(mut auth: AuthSession) -> Result<(), AppError> {
    auth.logout().await.map_err(AppError::auth)?;
    Ok(())
}

/// Takes one piece, in a transaction.
async fn take(auth: AuthSession, tx: DbTx, Path(id): Path<i32>) -> Result<String, AppError> {
    // Read before the handler was called: there is no statement in this.
    let user = auth.user.ok_or(AppError::Unauthorized)?;
    let left = item::take(&tx, id, 1).await?.ok_or(AppError::NotFound)?;
    if left.pieces < 0 {
        return Err(AppError::NotInStock); // a 409, which rolls back
    }
    Ok(format!("{} takes a {}\n", user.name, left.name))
}

enum AppError {
    Unauthorized,
    NotFound,
    NotInStock,
    Database(DbErr),
    Auth(String),
}

impl AppError {
    fn auth(error: impl std::fmt::Display) -> Self {
        Self::Auth(error.to_string())
    }
}

impl From<DbErr> for AppError {
    fn from(error: DbErr) -> Self {
        Self::Database(error)
    }
}

// The client gets a status, the log gets the cause.
impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::NotInStock => StatusCode::CONFLICT,
            Self::Database(error) => {
                tracing::error!("{error}");
                let known = tower_sea_orm::Error::of(&error);
                known.map_or(StatusCode::INTERNAL_SERVER_ERROR, |known| known.status())
            }
            Self::Auth(error) => {
                tracing::error!("{error}");
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
        .into_response()
    }
}
