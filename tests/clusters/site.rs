//! [`Site`]: a service over real HTTP that writes a row for each request, with the session layer or by hand.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, DbErr, Statement,
    TransactionTrait,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tower_sea_orm::{DbSession, DbSessionLayer, Error, SessionPool, unsafe_methods};

/// Connections of each service.
pub const SIZE: u32 = 10;

/// Of both services: by default, SeaORM's requests wait for half a minute.
pub const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// `DbSessionLayer`, in a transaction.
    Layer,
    /// `db.begin()` in the handler.
    ByHand,
}

impl Maker {
    pub const BOTH: [Self; 2] = [Self::Layer, Self::ByHand];

    pub fn name(self) -> &'static str {
        match self {
            Self::Layer => "this crate",
            Self::ByHand => "by hand",
        }
    }

    /// As it stands in the rows.
    pub fn mark(self) -> i32 {
        match self {
            Self::Layer => 1,
            Self::ByHand => 2,
        }
    }
}

/// Ends with this value.
pub struct Site {
    pub maker: Maker,
    pub address: SocketAddr,
    server: JoinHandle<()>,
}

impl Site {
    pub async fn start(maker: Maker, url: &str) -> Self {
        let db = connect(url).await;
        let app = match maker {
            Maker::Layer => {
                let layer = DbSessionLayer::new(SessionPool::new(db));
                Router::new()
                    .route("/{number}", post(by_layer))
                    .layer(layer.transaction_if(unsafe_methods))
            }
            Maker::ByHand => Router::new()
                .route("/{number}", post(by_hand))
                .with_state(db),
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let server = tokio::spawn(async move {
            axum::serve(listener, app)
                .await
                .expect("the service runs on");
        });
        Self {
            maker,
            address,
            server,
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The pool of a service.
pub async fn connect(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(SIZE)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .sqlx_logging(false);
    let db = Database::connect(options).await;
    db.expect("the database answers")
}

/// Makes the table that the services write to.
pub async fn make_table(view: &DatabaseConnection) {
    let sql = "CREATE TABLE ledger (maker integer NOT NULL, number bigint NOT NULL, PRIMARY KEY (maker, number))";
    view.execute_unprepared(sql)
        .await
        .expect("the table is made");
}

pub async fn empty_table(view: &DatabaseConnection) {
    view.execute_unprepared("DELETE FROM ledger")
        .await
        .expect("the table is emptied");
}

async fn by_layer(db: DbSession, Path(number): Path<i64>) -> Result<String, Failed> {
    Ok(write(&db, Maker::Layer, number).await?)
}

async fn by_hand(
    State(db): State<DatabaseConnection>,
    Path(number): Path<i64>,
) -> Result<String, (StatusCode, String)> {
    let written = async {
        let tx = db.begin().await?;
        let transaction = write(&tx, Maker::ByHand, number).await?;
        tx.commit().await?;
        Ok(transaction)
    };
    written
        .await
        .map_err(|error: DbErr| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// Writes the request's row; PostgreSQL tells its port, whatever leads there, and the transaction's number.
pub async fn write<C: ConnectionTrait>(db: &C, maker: Maker, number: i64) -> Result<String, DbErr> {
    let backend = db.get_database_backend();
    let values = [maker.mark().into(), number.into()];
    if backend != DbBackend::Postgres {
        let sql = "INSERT INTO ledger (maker, number) VALUES (?, ?)";
        db.execute_raw(Statement::from_sql_and_values(backend, sql, values))
            .await?;
        return Ok(String::new());
    }
    let sql = "INSERT INTO ledger (maker, number) VALUES ($1, $2) RETURNING concat(inet_server_port(), '/', pg_current_xact_id())";
    let row = db
        .query_one_raw(Statement::from_sql_and_values(backend, sql, values))
        .await?;
    row.ok_or_else(|| DbErr::Custom("no row".to_owned()))?
        .try_get_by_index(0)
}

/// As the README's example has it.
pub struct Failed(DbErr);

impl From<DbErr> for Failed {
    fn from(error: DbErr) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let known = Error::of(&self.0).map(|known| known.status());
        let status = known.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, self.0.to_string()).into_response()
    }
}

/// Whether the server at the other end takes writes: by its role, and not by a write.
pub async fn takes_writes(db: &DatabaseConnection) -> bool {
    let backend = db.get_database_backend();
    let sql = match backend {
        DbBackend::Postgres => "SELECT NOT pg_is_in_recovery()",
        _ => {
            "SELECT @@global.read_only = 0 AND (@@global.wsrep_on = 0 OR variable_value = 'ON') \
             FROM information_schema.global_status WHERE variable_name = 'wsrep_ready'"
        }
    };
    let row = db
        .query_one_raw(Statement::from_string(backend, sql))
        .await
        .ok()
        .flatten();
    row.is_some_and(|row| match backend {
        DbBackend::Postgres => row.try_get_by_index(0).unwrap_or(false),
        _ => row.try_get_by_index::<i32>(0).is_ok_and(|ready| ready == 1),
    })
}
