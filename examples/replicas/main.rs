//! A service on a PostgreSQL primary and a replica: GET reads on the replica, and a client sees its own writes on whichever
//! instance of the service answers.
//!
//! `examples/replicas/run` starts both servers and two instances, and shows with curl what a client gets. By hand:
//!
//! ```text
//! PRIMARY_URL=postgres://app@primary/shop REPLICA_URL=postgres://app@replica/shop PORT=3000 \
//!     cargo run --example replicas
//!
//! curl -c jar -b jar -d lamp http://127.0.0.1:3000/items    # the answer sets a cookie: the position of the write
//! curl -c jar -b jar http://127.0.0.1:3000/items            # the lamp is there; "read_on" names the server
//! curl http://127.0.0.1:3000/status                         # each server, and why it is out of use, if it is
//! ```

use std::{env, error::Error, process::ExitCode, time::Duration};

use axum::{
    Extension, Json, Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ConnectOptions, ConnectionTrait, Database, DbErr,
    EntityTrait, QueryOrder,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_sea_orm::{
    DbSession, DbSessionLayer, DbTx, PositionCookie, Replicas, SessionPool, unsafe_methods,
};

/// Belongs in a service's migrations.
const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS item (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL
)";

mod item {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
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
    let primary = connect("PRIMARY_URL").await?;
    let replica = connect("REPLICA_URL").await?;
    let app = app(primary.clone(), replica.clone());
    let port: u16 = env::var("PORT")
        .unwrap_or("3000".to_owned())
        .parse()
        .map_err(|_| "PORT is no port's number")?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    tracing::info!("listening on http://{}", listener.local_addr()?);
    let closed = async move {
        told_to_stop().await;
        // Both at once: new requests are refused, those in progress have ten seconds.
        let within = Duration::from_secs(10);
        tokio::join!(primary.close(within), replica.close(within));
    };
    axum::serve(listener, app)
        .with_graceful_shutdown(closed)
        .await?;
    Ok(())
}

/// Every server has a pool of its own, of so many connections for each instance.
async fn connect(variable: &str) -> Result<SessionPool, Box<dyn Error>> {
    let url = env::var(variable).map_err(|_| format!("{variable} names no PostgreSQL"))?;
    let mut options = ConnectOptions::new(url);
    options.max_connections(10).sqlx_logging(false);
    // The instance starts and serves also while the replica is down.
    options.connect_lazy(variable == "REPLICA_URL");
    let database = Database::connect(options).await?;
    if variable == "PRIMARY_URL" {
        create_table(&database).await?;
    }
    Ok(SessionPool::new(database))
}

/// Instances that start together may both try, and PostgreSQL then refuses one of them.
async fn create_table(database: &impl ConnectionTrait) -> Result<(), DbErr> {
    let sql = format!("SELECT pg_advisory_xact_lock(1); {SCHEMA}");
    database.execute_unprepared(&sql).await.map(drop)
}

fn app(primary: SessionPool, replica: SessionPool) -> Router {
    let replicas = Replicas::of(primary.clone())
        .replica("replica", replica)
        // Shorter than the cookie's life of 30 s.
        .max_lag(Duration::from_secs(20))
        // `secure()` as well, where clients come over HTTPS.
        .carrier(PositionCookie::new());
    let sessions = DbSessionLayer::new(primary)
        .lazy()
        .transaction_if(unsafe_methods)
        .replicas(replicas.clone());
    Router::new()
        .route("/items", get(list).post(create))
        .route_layer(sessions)
        // Behind the layer: it needs no session.
        .route("/status", get(status))
        .layer(Extension(replicas))
}

async fn list(db: DbSession) -> Result<Json<Value>, AppError> {
    let items = item::Entity::find().order_by_asc(item::Column::Id);
    let items = items.all(&db).await?;
    let names: Vec<_> = items.into_iter().map(|item| item.name).collect();
    let read_on = match db.is_replica() {
        true => "replica",
        false => "primary",
    };
    Ok(Json(json!({ "items": names, "read_on": read_on })))
}

async fn create(tx: DbTx, name: String) -> Result<StatusCode, AppError> {
    let item = item::ActiveModel {
        name: Set(name),
        ..Default::default()
    };
    item.insert(&tx).await?;
    Ok(StatusCode::CREATED)
}

/// What this instance knows of each replica.
async fn status(Extension(replicas): Extension<Replicas>) -> Json<Value> {
    let states = replicas.status().into_iter().map(|replica| {
        json!({
            "name": replica.name,
            "in_use": replica.out_of_use.is_none(),
            "out_of_use": replica.out_of_use.map(|why| format!("{why:?}")),
            "position": replica.position.map(|position| position.to_string()),
            "lag_ms": replica.lag.map(|lag| lag.as_millis() as u64),
        })
    });
    Json(states.collect())
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

/// Ctrl-c, or SIGTERM where there is one.
async fn told_to_stop() {
    let interrupted = async { drop(tokio::signal::ctrl_c().await) };
    #[cfg(unix)]
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<()>();
    tokio::select! {
        () = interrupted => {}
        () = terminated => {}
    }
}
