//! [`Counter`]: a service that writes a row of its own for each request and adds 1 to one that all share, so that
//! requests at different nodes collide.

use std::net::SocketAddr;

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::post,
};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, Statement, TransactionTrait};
use tokio::{net::TcpListener, task::JoinHandle};
use tower_sea_orm::{DbSession, DbSessionLayer, SessionPool, unsafe_methods};

use super::site::{Failed, Maker, connect, write};

/// Ends with this value.
pub struct Counter {
    pub maker: Maker,
    pub address: SocketAddr,
    server: JoinHandle<()>,
}

pub async fn make_table(view: &DatabaseConnection) {
    for sql in [
        "CREATE TABLE counter (maker integer PRIMARY KEY, hits bigint NOT NULL)",
        "INSERT INTO counter VALUES (1, 0), (2, 0)",
    ] {
        view.execute_unprepared(sql).await.expect("the counters");
    }
}

impl Counter {
    pub async fn start(maker: Maker, url: &str) -> Self {
        let db = connect(url).await;
        let app = match maker {
            Maker::Layer => {
                let layer = DbSessionLayer::new(SessionPool::new(db));
                let layer = layer.transaction_if(unsafe_methods);
                Router::new()
                    .route("/{number}", post(by_layer))
                    .layer(layer)
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

    /// What was added.
    pub async fn sum(&self, view: &DatabaseConnection) -> i64 {
        let sql = format!(
            "SELECT hits FROM counter WHERE maker = {}",
            self.maker.mark()
        );
        let statement = Statement::from_string(view.get_database_backend(), sql);
        let row = view.query_one_raw(statement).await.expect("the counter");
        row.expect("a row").try_get_by_index(0).expect("a number")
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn by_layer(db: DbSession, Path(number): Path<i64>) -> Result<(), Failed> {
    Ok(add(&db, Maker::Layer, number).await?)
}

async fn by_hand(
    State(db): State<DatabaseConnection>,
    Path(number): Path<i64>,
) -> Result<(), StatusCode> {
    let added = async {
        let tx = db.begin().await?;
        add(&tx, Maker::ByHand, number).await?;
        tx.commit().await
    };
    let failed = |_: DbErr| StatusCode::INTERNAL_SERVER_ERROR;
    added.await.map_err(failed)
}

async fn add<C: ConnectionTrait>(db: &C, maker: Maker, number: i64) -> Result<(), DbErr> {
    write(db, maker, number).await?;
    let mark = maker.mark();
    let sql = format!("UPDATE counter SET hits = hits + 1 WHERE maker = {mark}");
    db.execute_unprepared(&sql).await.map(drop)
}
