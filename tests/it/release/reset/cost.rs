//! G13: what a reset costs on the wire.

use std::time::Instant;

use sea_orm::{ConnectionTrait, Database, DbBackend, Statement};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, Reset, SessionPool};

use super::{connection, look, returned};
use crate::support::{
    database::{Kind, TestDb, insert_item},
    pool::assert_whole,
    site::port_of,
    statements::raw,
    wire::{Proxy, visits},
    world::{post, serve},
};

/// A database behind a proxy.
struct Wire {
    test: TestDb,
    proxy: Proxy,
    db: sea_orm::DatabaseConnection,
    /// One for all: the warm connections of another would be counted when they cool down.
    pool: SessionPool,
    opened: Instant,
}

impl Wire {
    async fn new(kind: Kind, size: u32, reset: Reset) -> Self {
        let test = TestDb::new(kind).await;
        let proxy = Proxy::start(port_of(test.url())).await;
        let db = Database::connect(test.options_at(&proxy.url(test.url()), size))
            .await
            .unwrap();
        insert_item(&db, "one").await;
        let pool = SessionPool::builder(db.clone())
            .reset(reset)
            .build()
            .unwrap();
        Self {
            test,
            proxy,
            db,
            pool,
            opened: Instant::now(),
        }
    }

    /// Asserts how many round trips a request costs when its connection is warm and its statements are prepared.
    async fn assert_per_request(
        &self,
        layer: DbSessionLayer,
        work: Work,
        expected: u64,
        case: &str,
    ) {
        const REQUESTS: u64 = 100;
        let pool = layer.pool().clone();
        let app = match work {
            Work::InTransaction => serve(async |tx: DbTx| read(&tx).await).layer(layer),
            Work::Nothing => serve(async || ()).layer(layer),
            Work::Read => serve(async |db: DbSession| read(&db).await).layer(layer),
            Work::Lock => serve(async |db: DbSession| {
                read(&db).await;
                lock(&db).await;
            })
            .layer(layer),
            Work::Raw => serve(async |db: DbSession| {
                raw(&db, "SELECT 1").await;
                read(&db).await;
            })
            .layer(layer),
            Work::RawInTransaction => serve(async |tx: DbTx| {
                raw(&tx, "SELECT 1").await;
                read(&tx).await;
            })
            .layer(layer),
        };
        for _ in 0..3 {
            assert_eq!(post(&app, "/").await.status(), 200);
            returned(&pool).await;
        }
        self.proxy.reset_count();
        for _ in 0..REQUESTS {
            assert_eq!(post(&app, "/").await.status(), 200);
            returned(&pool).await;
        }
        let (own, all) = (expected * REQUESTS, self.proxy.requests());
        assert!(
            (own..=own + visits(self.opened)).contains(&all),
            "{case} {work:?}: {all} instead of {own}"
        );
    }

    async fn assert_whole(&self) {
        assert_whole(&self.test, &self.db, 2).await;
    }
}

#[derive(Clone, Copy, Debug)]
enum Work {
    Nothing,
    Read,
    InTransaction,
    /// Reads, and takes a lock for good.
    Lock,
    /// Reads, and runs raw code.
    Raw,
    RawInTransaction,
}

async fn read<C: ConnectionTrait>(db: &C) {
    let backend = db.get_database_backend();
    let sql = if backend == DbBackend::Postgres {
        "SELECT id FROM item WHERE hits = $1"
    } else {
        "SELECT id FROM item WHERE hits = ?"
    };
    db.query_all_raw(Statement::from_sql_and_values(backend, sql, [0.into()]))
        .await
        .unwrap();
}

async fn lock<C: ConnectionTrait>(db: &C) {
    let sql = match db.get_database_backend() {
        DbBackend::Postgres => "SELECT 1 FROM pg_advisory_lock(7)",
        _ => "SELECT GET_LOCK('mine', 1)",
    };
    db.query_one_raw(Statement::from_string(db.get_database_backend(), sql))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_reset_costs_one_round_trip_and_only_if_something_changed() {
    for kind in [Kind::Postgres, Kind::MySql] {
        for (reset, extra) in [
            (Reset::RollbackOnly, 0),
            (Reset::SessionState, 0),
            (Reset::SessionStateAlways, 1),
        ] {
            let case = format!("{kind:?} {reset:?}");
            // A new one each time: every ten seconds the driver's pool sees a connection, which pings it.
            let wire = Wire::new(kind, 4, reset).await;
            let layer = || DbSessionLayer::new(wire.pool.clone());
            wire.assert_per_request(layer(), Work::Nothing, 0, &case)
                .await;
            wire.assert_per_request(layer(), Work::Read, 1 + extra, &case)
                .await;
            wire.assert_per_request(layer(), Work::InTransaction, 3 + extra, &case)
                .await;
            wire.assert_whole().await;
        }
        for reset in [Reset::SessionState, Reset::SessionStateAlways] {
            let wire = Wire::new(kind, 4, reset).await;
            let layer = DbSessionLayer::new(wire.pool.clone());
            // Nothing is prepared again after a hundred resets.
            wire.assert_per_request(layer, Work::Lock, 3, &format!("{kind:?} {reset:?}"))
                .await;
            wire.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn raw_code_costs_a_round_trip_and_in_a_transaction_three() {
    for reset in [Reset::RollbackOnly, Reset::SessionState] {
        let wire = Wire::new(Kind::Postgres, 4, reset).await;
        let layer = || DbSessionLayer::new(wire.pool.clone());
        let case = format!("{reset:?}");
        // The reset of `SessionState` is due as well.
        let extra = u64::from(reset == Reset::SessionState);
        // The code, what ends what it may have left, and the read.
        wire.assert_per_request(layer(), Work::Raw, 3 + extra, &case)
            .await;
        // BEGIN, a savepoint, the code, its release, the read, COMMIT, and one
        // behind it.
        wire.assert_per_request(layer(), Work::RawInTransaction, 7, &case)
            .await;
        wire.assert_whole().await;
    }
}

#[tokio::test]
async fn settings_of_a_transaction_cost_no_reset() {
    for reset in [Reset::RollbackOnly, Reset::SessionState] {
        let wire = Wire::new(Kind::Postgres, 4, reset).await;
        let layer = DbSessionLayer::new(wire.pool.clone()).on_begin(|_| {
            let sql = "SELECT set_config('app.tenant', $1, true)";
            vec![Statement::from_sql_and_values(
                DbBackend::Postgres,
                sql,
                ["blue".into()],
            )]
        });
        wire.assert_per_request(layer, Work::InTransaction, 4, &format!("{reset:?}"))
            .await;
        wire.assert_whole().await;
    }
}

#[tokio::test]
async fn a_connections_settings_are_read_once_before_the_first_change() {
    let wire = Wire::new(Kind::Postgres, 4, Reset::SessionState).await;
    let pool = wire.pool.clone();
    let session = pool.session().await.unwrap();
    let first = connection(Kind::Postgres, &*session).await;
    let cost = async |sql: &str| {
        wire.proxy.reset_count();
        session.execute_unprepared(sql).await.unwrap();
        wire.proxy.requests()
    };
    assert_eq!(cost("SELECT 1").await, 1);
    assert_eq!(cost("SET app.x = 'y'").await, 2);
    assert_eq!(cost("SET app.x = 'z'").await, 1);
    drop(session);
    returned(&pool).await;
    let session = pool.session().await.unwrap();
    assert_eq!(connection(Kind::Postgres, &*session).await, first);
    wire.proxy.reset_count();
    session.execute_unprepared("SET app.x = 'y'").await.unwrap();
    assert_eq!(wire.proxy.requests(), 1, "a warm connection remembers");
    drop(session);
    wire.assert_whole().await;
}

/// Raw code gets the ROLLBACK and the reset in one round trip.
#[tokio::test]
async fn after_raw_code_rollback_and_reset_go_together() {
    let wire = Wire::new(Kind::Postgres, 4, Reset::SessionState).await;
    let pool = wire.pool.clone();
    for _ in 0..3 {
        let session = pool.session().await.unwrap();
        raw(&session, "BEGIN; SET app.x = 'y'").await;
        wire.proxy.reset_count();
        drop(session);
        returned(&pool).await;
        assert_eq!(wire.proxy.requests(), 1);
        let session = pool.session().await.unwrap();
        assert_eq!(
            look(
                &*session,
                "SELECT coalesce(nullif(current_setting('app.x', true), ''), '-')"
            )
            .await,
            "-"
        );
    }
    wire.assert_whole().await;
}
