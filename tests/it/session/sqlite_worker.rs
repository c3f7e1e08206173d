//! G7: results on SQLite where its schema changes, and where the driver's thread for a connection dies.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use axum::{body::Body, http::StatusCode, response::Response};
use futures_util::StreamExt;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, QueryResult, Statement, sqlx};
use tower_sea_orm::{DbSession, DbTx, Error, PoolMode};
use tracing::{Instrument, Subscriber, info_span, span::Id};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

use crate::support::{
    database::{Kind, TestDb},
    requests::status,
    site::Site,
    wait::eventually,
};

const KINDS: [Kind; 2] = [Kind::SqliteFile, Kind::SqliteMemory];

/// What becomes of the table `thing (id, v)`, and its columns after that.
const CHANGES: [(&str, &[&str]); 4] = [
    ("ALTER TABLE thing ADD COLUMN w TEXT", &["id", "v", "w"]),
    ("ALTER TABLE thing DROP COLUMN v", &["id"]),
    ("ALTER TABLE thing RENAME COLUMN v TO u", &["id", "u"]),
    (
        "DROP TABLE thing; CREATE TABLE thing (v TEXT, id INTEGER PRIMARY KEY); INSERT INTO thing VALUES ('one', 1)",
        &["v", "id"],
    ),
];

/// The ways to run a statement.
const WAYS: [&str; 10] = [
    "one",
    "none",
    "limited",
    "all",
    "execute",
    "unprepared",
    "stream",
    "returning",
    "raw",
    "blank",
];

fn with_values<const N: usize>(sql: &str, values: [sea_orm::Value; N]) -> Statement {
    Statement::from_sql_and_values(DbBackend::Sqlite, sql, values)
}

/// Runs a statement in one of the [`WAYS`], and returns its rows.
async fn run(db: &DbSession, way: &str) -> Result<Vec<QueryResult>, DbErr> {
    let one = db.query_one_raw(match way {
        "one" => with_values("SELECT * FROM thing WHERE id = ?", [1.into()]),
        "none" => with_values("SELECT id FROM thing WHERE id = ?", [0.into()]),
        "limited" => with_values(
            "SELECT * FROM thing WHERE id = ? LIMIT ?",
            [1.into(), 1u64.into()],
        ),
        _ => with_values(
            "INSERT INTO thing (id) SELECT max(id) + ? FROM thing RETURNING *",
            [1.into()],
        ),
    });
    match way {
        "one" | "none" | "limited" | "returning" => Ok(one.await?.into_iter().collect()),
        "all" => {
            db.query_all_raw(with_values("SELECT thing.*  FROM thing WHERE id = 1", []))
                .await
        }
        "execute" => {
            let update = with_values(
                "UPDATE thing SET id = id WHERE id = ? RETURNING *",
                [1.into()],
            );
            assert_eq!(db.execute_raw(update).await?.rows_affected(), 1);
            Ok(Vec::new())
        }
        "unprepared" => {
            db.execute_unprepared("UPDATE thing SET id = id; SELECT * FROM thing")
                .await?;
            Ok(Vec::new())
        }
        "blank" => {
            db.execute_unprepared(" -- nothing to do\n").await?;
            Ok(Vec::new())
        }
        "stream" => {
            let rows = db
                .rows(with_values("SELECT  * FROM thing WHERE id = ?", [1.into()]))
                .await?;
            rows.collect::<Vec<_>>().await.into_iter().collect()
        }
        "raw" => {
            db.with_sqlite(|c| {
                Box::pin(async move {
                    sqlx::query("UPDATE thing SET id = id")
                        .execute(c)
                        .await
                        .ok()
                })
            })
            .await?;
            Ok(Vec::new())
        }
        _ => unreachable!("{way}"),
    }
}

/// Runs all of them, and checks that the rows are those of the table as it is.
async fn run_all(db: &DbSession, columns: &[&str]) -> Result<(), DbErr> {
    for way in WAYS {
        let rows = run(db, way).await?;
        let is_read = ["one", "limited", "all", "stream", "returning"].contains(&way);
        assert_eq!(rows.len(), usize::from(is_read), "{way}");
        for row in rows {
            assert_eq!(row.column_names(), columns, "{way}");
            assert!(row.try_get::<i64>("", "id")? >= 1, "{way}");
        }
    }
    Ok(())
}

/// A site with one connection, and the table `thing` on its database.
async fn site(kind: Kind) -> Site {
    let test = TestDb::new(kind).await;
    let db = test.connect(1).await;
    let site = Site::with(test, db, 1).await;
    site.run(
        "CREATE TABLE thing (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO thing VALUES (1, 'one')",
    )
    .await;
    site
}

async fn found(site: &Site, in_tx: bool, columns: &'static [&'static str]) -> StatusCode {
    let response = if in_tx {
        site.call(async move |tx: DbTx| status(run_all(&tx, columns).await))
            .await
    } else {
        site.call(async move |db: DbSession| status(run_all(&db, columns).await))
            .await
    };
    response.status()
}

#[tokio::test]
async fn g7_a_changed_schema_is_seen_by_every_way_to_read_on_sqlite() {
    for kind in KINDS {
        for mode in [PoolMode::Session, PoolMode::Transaction] {
            for (change, columns) in CHANGES {
                for in_tx in [false, true] {
                    let site = site(kind).await.pooled(|pool| pool.pool_mode(mode));
                    assert_eq!(found(&site, in_tx, &["id", "v"]).await, StatusCode::OK);
                    site.run(change).await;
                    for _ in 0..2 {
                        let ran = found(&site, in_tx, columns).await;
                        assert_eq!(ran, StatusCode::OK, "{kind:?}, {mode:?}, {change}");
                    }
                    site.assert_whole().await;
                }
            }
        }
    }
}

/// The schema changes within one session.
#[tokio::test]
async fn g7_a_session_sees_the_columns_that_it_has_changed() {
    for kind in KINDS {
        for (change, columns) in CHANGES {
            let site = site(kind).await;
            let response = site
                .call(async move |db: DbSession| {
                    run_all(&db, &["id", "v"]).await.unwrap();
                    db.execute_unprepared(change).await.unwrap();
                    status(run_all(&db, columns).await)
                })
                .await;
            assert_eq!(response.status(), StatusCode::OK, "{kind:?}, {change}");
            site.assert_whole().await;
        }
    }
}

/// Has the driver's thread die of its next command.
#[derive(Clone, Default)]
struct Deadly(Arc<AtomicBool>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Deadly {
    fn on_enter(&self, _: &Id, _: Context<'_, S>) {
        // It enters the span that the command was sent in.
        let is_worker = thread::current()
            .name()
            .is_some_and(|name| name.starts_with("sqlx-sqlite"));
        assert!(
            !(is_worker && self.0.swap(false, Ordering::SeqCst)),
            "this thread is to die"
        );
    }
}

async fn kind_of_loss(site: &Site, deadly: &Deadly, way: &'static str, in_tx: bool) {
    let deadly = deadly.clone();
    let handler = async move |db: DbSession| {
        if in_tx {
            db.tx();
        }
        // A session's first read would find another connection, and so would
        // any of one that lends.
        let _pin = db.pin();
        run(&db, "execute").await.unwrap();
        deadly.0.store(true, Ordering::SeqCst);
        let error = run(&db, way).await.expect_err(way);
        assert!(
            Error::of(&error).is_some_and(|error| error.is_connection_lost()),
            "{way}: {error}"
        );
        // Refused, and not sent to a thread that is not there.
        run(&db, "all").await.expect_err(way);
    };
    let span = info_span!("request");
    let response = site.call(handler).instrument(span).await;
    let expected = if in_tx {
        StatusCode::INTERNAL_SERVER_ERROR
    } else {
        StatusCode::OK
    };
    assert!(
        response.status() == expected || in_tx && response.status().is_server_error(),
        "{way}: {response:?}"
    );
}

/// The thread takes its transaction's lock along a moment later.
async fn goes_on(site: &Site, in_tx: bool) {
    eventually("the next request succeeds", async || {
        found(site, in_tx, &["id", "v"]).await == StatusCode::OK
    })
    .await;
}

#[tokio::test]
async fn g7_a_driver_thread_that_dies_is_an_error_of_its_statement() {
    let deadly = Deadly::default();
    let subscriber = tracing_subscriber::registry().with(deadly.clone());
    let _guard = tracing::subscriber::set_default(subscriber);
    for way in WAYS {
        for in_tx in [false, true] {
            let site = site(Kind::SqliteFile).await;
            kind_of_loss(&site, &deadly, way, in_tx).await;
            goes_on(&site, in_tx).await;
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn g7_a_body_whose_driver_thread_dies_is_incomplete() {
    let deadly = Deadly::default();
    let subscriber = tracing_subscriber::registry().with(deadly.clone());
    let _guard = tracing::subscriber::set_default(subscriber);
    for in_tx in [false, true] {
        let site = site(Kind::SqliteFile).await;
        let deadly = deadly.clone();
        let handler = async move |db: DbSession| {
            if in_tx {
                db.tx();
            }
            run(&db, "execute").await.unwrap();
            deadly.0.store(true, Ordering::SeqCst);
            let rows = db
                .rows(with_values("SELECT id FROM thing", []))
                .await
                .unwrap();
            let lines = rows.map(|row| row?.try_get_by_index::<i64>(0).map(|id| id.to_string()));
            Response::new(Body::new(db.hold_until_body_end(Body::from_stream(lines))))
        };
        let span = info_span!("request");
        let read = async {
            let response = site.call(handler).await;
            axum::body::to_bytes(response.into_body(), 1000).await
        };
        let read = read.instrument(span).await;
        assert!(read.is_err(), "a complete body: {read:?}");
        goes_on(&site, in_tx).await;
        site.assert_whole().await;
    }
}
