//! The cost of a transaction on the wire.
//!
//! A proxy counts the round trips. sqlx's own pings would disturb the count, one when a connection is
//! fetched and one when it is returned. They cannot be switched off in every place, but they can be
//! made certain: without warm hand-over each request causes exactly these two. So a request that
//! holds a connection and uses it for nothing is measured first, in the same service and on the same
//! connection, and all others are compared with it. Each request is counted until its connection is
//! back in sqlx's pool, and is sent twice before: then its statements are prepared.

use std::time::Duration;

use axum::{Router, extract::Path, routing::any};
use http::StatusCode;
use sea_orm::{
    AccessMode, ConnectionTrait, Database, DatabaseConnection, IsolationLevel, Statement,
    TransactionOptions, TransactionTrait,
};
use tower_sea_orm::{DbSession, DbSessionLayer, SessionPool};

use crate::support::{
    database::{Kind, TestDb},
    pool::assert_whole,
    site::port_of,
    wait::eventually,
    wire::Proxy,
    world::{outcome, post},
};

/// A database behind a proxy.
struct Wire {
    test: TestDb,
    proxy: Proxy,
    db: DatabaseConnection,
    pool: SessionPool,
}

impl Wire {
    async fn new(kind: Kind) -> Self {
        let test = TestDb::new(kind).await;
        let proxy = Proxy::start(port_of(test.url())).await;
        let db = Database::connect(test.options_at(&proxy.url(test.url()), 1))
            .await
            .unwrap();
        let pool = SessionPool::builder(db.clone())
            .direct_handoff(false)
            .build()
            .unwrap();
        Self {
            test,
            proxy,
            db,
            pool,
        }
    }

    fn layer(&self) -> DbSessionLayer {
        DbSessionLayer::new(self.pool.clone())
    }

    /// Returns how many round trips one request costs, all in all.
    async fn count(&self, layer: DbSessionLayer, uri: &str) -> u64 {
        let app = Router::new()
            .route("/{way}/{statements}", any(work))
            .layer(layer);
        let (mut counts, mut last) = (Vec::new(), 0);
        for _ in 0..4 {
            self.proxy.reset_count();
            let response = post(&app, uri).await;
            let expected = if uri.starts_with("/fail") {
                StatusCode::CONFLICT
            } else {
                StatusCode::OK
            };
            assert_eq!(response.status(), expected, "{uri}: {}", outcome(&response));
            eventually("the connection is back", async || {
                self.pool.status().used == 0
            })
            .await;
            last = self.proxy.requests();
            counts.push(last);
        }
        assert_eq!(counts[2], counts[3], "{uri}: prepared by now: {counts:?}");
        assert_eq!(self.proxy.connections(), 1, "all on one connection");
        last
    }
}

/// Runs so many statements, then ends that way.
async fn work(db: DbSession, Path((way, statements)): Path<(String, u32)>) -> StatusCode {
    let select = Statement::from_string(db.backend(), "SELECT id FROM item");
    for _ in 0..statements {
        db.query_all_raw(select.clone()).await.unwrap();
    }
    match &*way {
        "fail" => return StatusCode::CONFLICT,
        "commit" => db.commit().await.unwrap(),
        "nested" => {
            let nested = db.begin().await.unwrap();
            nested.query_all_raw(select).await.unwrap();
            nested.commit().await.unwrap();
        }
        _ => {}
    }
    StatusCode::OK
}

const WITH_SERVERS: [Kind; 2] = [Kind::Postgres, Kind::MySql];

#[tokio::test]
async fn a_transaction_costs_its_statements_and_two_more() {
    for kind in WITH_SERVERS {
        let wire = Wire::new(kind).await;
        // The two pings.
        let idle = wire.count(wire.layer(), "/idle/0").await;
        assert_eq!(idle, 2, "{kind:?}");
        let options = |isolation_level, access_mode| {
            wire.layer().transaction_with(TransactionOptions {
                isolation_level,
                access_mode,
                ..Default::default()
            })
        };
        let plain = wire.layer().transaction();
        let isolated = options(Some(IsolationLevel::RepeatableRead), None);
        let read_only = options(None, Some(AccessMode::ReadOnly));
        let both = options(
            Some(IsolationLevel::Serializable),
            Some(AccessMode::ReadOnly),
        );
        let mut layers = vec![
            ("plain", plain),
            ("isolated", isolated),
            ("read only", read_only),
            ("both", both),
        ];
        if kind == Kind::Postgres {
            let named = wire.layer().transaction();
            layers.push((
                "named",
                named.application_name(|parts| parts.uri.to_string()),
            ));
        }
        for (what, layer) in layers {
            for statements in [1, 3] {
                for way in ["ok", "fail"] {
                    let cost = wire
                        .count(layer.clone(), &format!("/{way}/{statements}"))
                        .await
                        - idle;
                    assert_eq!(cost, statements + 2, "{kind:?}, {what}, {way}");
                }
            }
        }
        // To compare with.
        assert_eq!(
            wire.count(wire.layer(), "/ok/3").await - idle,
            3,
            "{kind:?}: autocommit"
        );
        assert_whole(&wire.test, &wire.db, 1).await;
    }
}

#[tokio::test]
async fn a_transaction_that_no_statement_runs_in_costs_nothing() {
    for kind in WITH_SERVERS {
        let wire = Wire::new(kind).await;
        let idle = wire.count(wire.layer(), "/idle/0").await;
        let select = Statement::from_string(kind.backend(), "SELECT 1");
        for way in ["ok", "fail", "commit"] {
            let uri = format!("/{way}/0");
            let set_up = select.clone();
            let prepared = wire.layer().on_begin(move |_| vec![set_up.clone()]);
            for layer in [wire.layer().transaction(), prepared] {
                assert_eq!(
                    wire.count(layer.clone(), &uri).await,
                    idle,
                    "{kind:?} {way}: no BEGIN"
                );
                assert_eq!(
                    wire.count(layer.lazy(), &uri).await,
                    0,
                    "{kind:?} {way}: no connection"
                );
            }
        }
        assert_whole(&wire.test, &wire.db, 1).await;
    }
}

#[tokio::test]
async fn a_set_up_costs_its_statements() {
    for kind in WITH_SERVERS {
        let wire = Wire::new(kind).await;
        let idle = wire.count(wire.layer(), "/idle/0").await;
        let select = Statement::from_string(kind.backend(), "SELECT 1");
        let layer = wire
            .layer()
            .on_begin(move |_| vec![select.clone(), select.clone()]);
        for way in ["ok", "fail", "commit"] {
            let cost = wire.count(layer.clone(), &format!("/{way}/3")).await - idle;
            assert_eq!(cost, 2 + 2 + 3, "{kind:?} {way}");
        }
        assert_whole(&wire.test, &wire.db, 1).await;
    }
}

#[tokio::test]
async fn settings_travel_with_begin() {
    for kind in WITH_SERVERS {
        let wire = Wire::new(kind).await;
        let idle = wire.count(wire.layer(), "/idle/0").await;
        let limited = || {
            wire.layer()
                .statement_timeout(Duration::from_secs(999))
                .lock_timeout(Duration::from_secs(9))
        };
        let isolated = limited().transaction_with(TransactionOptions {
            isolation_level: Some(IsolationLevel::Serializable),
            ..Default::default()
        });
        // MySQL's and MariaDB's are the connection's, and are put back after the transaction.
        let put_back = u64::from(kind == Kind::MySql);
        for layer in [limited(), isolated] {
            for way in ["ok", "fail", "commit"] {
                for statements in [1, 3] {
                    let uri = format!("/{way}/{statements}");
                    let cost = wire.count(layer.clone(), &uri).await - idle;
                    assert_eq!(cost, statements + 2 + put_back, "{kind:?} {uri}");
                }
            }
            let cost = wire.count(layer.lazy(), "/ok/0").await;
            assert_eq!(cost, 0, "{kind:?}: no statement, no connection");
        }
        assert_whole(&wire.test, &wire.db, 1).await;
    }
}

#[tokio::test]
async fn row_level_security_costs_no_trip_more_than_a_transaction() {
    let wire = Wire::new(Kind::Postgres).await;
    let idle = wire.count(wire.layer(), "/idle/0").await;
    let by_statement = wire.layer().on_begin(|_| {
        let sql = "SELECT set_config('app.tenant', $1, true)";
        vec![Statement::from_sql_and_values(
            sea_orm::DbBackend::Postgres,
            sql,
            ["red".into()],
        )]
    });
    let with_begin = wire.layer().set_local("app.tenant", |_| "red".to_owned());
    for (layer, cost) in [(by_statement, 4), (with_begin, 3)] {
        assert_eq!(wire.count(layer, "/ok/1").await - idle, cost);
    }
    assert_whole(&wire.test, &wire.db, 1).await;
}

#[tokio::test]
async fn an_early_commit_takes_the_place_of_the_last_one() {
    for kind in WITH_SERVERS {
        let wire = Wire::new(kind).await;
        let idle = wire.count(wire.layer(), "/idle/0").await;
        let cost = wire.count(wire.layer().transaction(), "/commit/3").await - idle;
        assert_eq!(cost, 3 + 2, "{kind:?}: nothing is left to end");
        let cost = wire.count(wire.layer().transaction(), "/nested/0").await - idle;
        assert_eq!(
            cost,
            1 + 2 + 2,
            "{kind:?}: SAVEPOINT and its RELEASE come on top"
        );
        assert_whole(&wire.test, &wire.db, 1).await;
    }
}
