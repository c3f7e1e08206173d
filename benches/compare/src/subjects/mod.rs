//! The services that are compared: one file each, the same endpoints.

pub mod floor;
pub mod naive;
pub mod ours;
pub mod sea_orm_tx;
pub mod seaorm;
pub mod seaorm_transaction;
pub mod sqlx_tx;

use std::{sync::Arc, time::Duration};

use axum::{Extension, Router};
use sea_orm::{ConnectOptions, Database, DatabaseConnection, DbErr};
use tower_sea_orm::{DbSessionLayer, PoolMode, SessionPool, SessionPoolBuilder};

/// The connections of every subject's pool.
pub const POOL: u32 = 10;

/// One service of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    OursAutocommit,
    OursTransaction,
    OursLazy,
    OursPoolMode,
    SeaOrm,
    SeaOrmIdlePing,
    SeaOrmTransaction,
    SqlxTx,
    SeaOrmTx,
    Naive,
    Floor,
    /// Counted only: what any layer costs that places a value in the request's extensions.
    FloorInLayer,
    Guide,
}

impl Subject {
    pub const ALL: [Self; 12] = [
        Self::OursAutocommit,
        Self::OursTransaction,
        Self::OursLazy,
        Self::OursPoolMode,
        Self::SeaOrm,
        Self::SeaOrmIdlePing,
        Self::SeaOrmTransaction,
        Self::SqlxTx,
        Self::SeaOrmTx,
        Self::Naive,
        Self::Floor,
        Self::Guide,
    ];

    /// Its name on the command line and in the results.
    pub fn name(self) -> &'static str {
        match self {
            Self::OursAutocommit => "ours-autocommit",
            Self::OursTransaction => "ours-transaction",
            Self::OursLazy => "ours-lazy",
            Self::OursPoolMode => "ours-pool-mode",
            Self::SeaOrm => "seaorm",
            Self::SeaOrmIdlePing => "seaorm-idle-ping",
            Self::SeaOrmTransaction => "seaorm-transaction",
            Self::SqlxTx => "axum-sqlx-tx",
            Self::SeaOrmTx => "axum-sea-orm-tx",
            Self::Naive => "naive-pinned",
            Self::Floor => "floor",
            Self::FloorInLayer => "floor-in-layer",
            Self::Guide => "guide",
        }
    }

    /// Its name in the tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::OursAutocommit => "tower-sea-orm, autocommit",
            Self::OursTransaction => "tower-sea-orm, `.transaction()`",
            Self::OursLazy => "tower-sea-orm, `.lazy()`",
            Self::OursPoolMode => "tower-sea-orm, `PoolMode::Transaction`",
            Self::SeaOrm => "SeaORM, defaults",
            Self::SeaOrmIdlePing => "SeaORM, ping only when idle",
            Self::SeaOrmTransaction => "SeaORM, hand-made transaction",
            Self::SqlxTx => "axum-sqlx-tx",
            Self::SeaOrmTx => "axum-sea-orm-tx",
            Self::Naive => "a naive pinned connection",
            Self::Floor => "bare connections, no guarantee",
            Self::FloorInLayer => "bare connections, in `axum::Extension`",
            Self::Guide => "FastAPI, SQLAlchemy, asyncpg",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter().chain([Self::FloorInLayer]);
        all.find(|subject| subject.name() == name)
    }

    pub fn is_ours(self) -> bool {
        matches!(
            self,
            Self::OursAutocommit | Self::OursTransaction | Self::OursLazy | Self::OursPoolMode
        )
    }

    /// Its pool of so many connections.
    pub async fn connect(self, url: &str, pool: u32) -> Result<DatabaseConnection, DbErr> {
        let mut options = ConnectOptions::new(url);
        options.max_connections(pool);
        if self == Self::SeaOrmIdlePing {
            options.test_before_acquire_if_idle_for(Duration::from_secs(30));
        }
        Database::connect(options).await
    }

    /// Its service; none for the guide's app, which is not in Rust. `waiting` is how many requests may
    /// wait for a connection, where that can be set.
    pub fn router(self, db: DatabaseConnection, waiting: Option<u32>) -> Option<Router> {
        let layer = |db| {
            let pool = SessionPool::builder(db);
            let pool = waiting
                .into_iter()
                .fold(pool, SessionPoolBuilder::max_pending)
                .build();
            pool.ok().map(DbSessionLayer::new)
        };
        Some(match self {
            Self::OursAutocommit => ours::router(layer(db)?),
            Self::OursTransaction => ours::router(layer(db)?.transaction()),
            Self::OursLazy => ours::router(layer(db)?.lazy()),
            Self::OursPoolMode => ours::router(layer(db)?.lazy().pool_mode(PoolMode::Transaction)),
            Self::SeaOrm | Self::SeaOrmIdlePing => seaorm::router(db),
            Self::SeaOrmTransaction => seaorm_transaction::router(db),
            Self::SqlxTx => sqlx_tx::router(db.get_postgres_connection_pool().clone()),
            Self::SeaOrmTx => sea_orm_tx::router(db),
            Self::Naive => naive::router(db.get_postgres_connection_pool().clone()),
            Self::Floor => floor::router(db.get_postgres_connection_pool().clone()),
            Self::FloorInLayer => floor::router(db.get_postgres_connection_pool().clone())
                .layer(Extension(Arc::new(()))),
            Self::Guide => return None,
        })
    }
}
