//! G4, G13: `on_acquire` prepares a connection for its request, and for no other.

use std::panic::{AssertUnwindSafe, catch_unwind};

use axum::{Router, extract::Path, routing::any};
use http::{StatusCode, request::Parts};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use tower_sea_orm::DbSession;

use crate::support::{
    database::{Kind, insert_item},
    pool::session_layer,
    requests::text,
    site::value,
    statements::mark,
    world::{World, post, serve},
};

/// A statement that counts how often it ran on its connection, and one that reads the number.
fn counter(kind: Kind) -> ([&'static str; 2], &'static str) {
    match kind {
        Kind::Postgres => (
            [
                "SELECT set_config('app.runs', \
                 (coalesce(nullif(current_setting('app.runs', true), ''), '0')::int + 1)::text, false)",
                "SELECT 1",
            ],
            "SELECT coalesce(nullif(current_setting('app.runs', true), ''), '0')::bigint",
        ),
        Kind::MySql => (
            ["SET @runs = coalesce(@runs, 0) + 1", "SELECT 1"],
            "SELECT CAST(coalesce(@runs, 0) AS SIGNED)",
        ),
        _ => (
            [
                "CREATE TEMPORARY TABLE IF NOT EXISTS runs (n integer)",
                "INSERT INTO runs VALUES (1)",
            ],
            "SELECT count(*) FROM runs",
        ),
    }
}

/// Returns how often the connection of `db` was prepared.
async fn runs(kind: Kind, db: &DbSession) -> i64 {
    value(db, counter(kind).1).await
}

#[tokio::test]
async fn on_acquire_prepares_each_connection_once_for_one_request() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let world = World::new(kind, 1).await;
        let set_up = move |_: &Parts| {
            let statements = counter(kind).0.into_iter();
            statements
                .map(|sql| Statement::from_string(kind.backend(), sql))
                .collect()
        };
        let handler = async move |db: DbSession, Path(transactional): Path<bool>| {
            if transactional {
                db.tx();
            }
            assert_eq!(
                runs(kind, &db).await,
                1,
                "{kind:?}: before the first statement"
            );
            let first = mark(&db).await;
            assert_eq!(
                runs(kind, &db).await,
                1,
                "{kind:?}: and not before the second"
            );
            if transactional {
                db.commit().await.unwrap();
                assert_eq!(
                    runs(kind, &db).await,
                    1,
                    "{kind:?}: nor with another transaction"
                );
                db.commit().await.unwrap();
            }
            db.release().await.unwrap();
            assert_eq!(runs(kind, &db).await, 1, "{kind:?}: again after release");
            let second = mark(&db).await;
            assert_ne!(first, second, "{kind:?}: another connection");
            insert_item(&db, "kept").await;
            format!("{first} {second}")
        };
        let app = Router::new().route("/{transactional}", any(handler));
        let plain = serve(async |db: DbSession| mark(&db).await.to_string()).layer(world.layer());
        let layer = world.layer().on_acquire(set_up);
        for layer in [layer.clone(), layer.lazy()] {
            let app = app.clone().layer(layer);
            let mut connections = Vec::new();
            for transactional in [false, true] {
                let response = post(&app, &format!("/{transactional}")).await;
                assert_eq!(response.status(), StatusCode::OK);
                assert_eq!(world.seen("kept").await, 1, "{kind:?}");
                connections.extend(text(response).await.split(' ').map(str::to_owned));
                let next = text(post(&plain, "/").await).await;
                assert!(
                    !connections.contains(&next),
                    "{kind:?}: {next} of {connections:?} was not closed"
                );
                assert_eq!(unprepared(kind, &world.db).await, 0, "{kind:?}");
                world
                    .view
                    .execute_unprepared("DELETE FROM item")
                    .await
                    .unwrap();
            }
        }
        world.assert_whole().await;
    }
}

/// Returns the effect of the set-up that a plain user of the pool sees.
async fn unprepared(kind: Kind, db: &DatabaseConnection) -> i64 {
    match kind {
        Kind::SqliteFile => {
            value(
                db,
                "SELECT count(*) FROM sqlite_temp_master WHERE name = 'runs'",
            )
            .await
        }
        _ => value(db, counter(kind).1).await,
    }
}

#[tokio::test]
async fn a_connection_that_was_not_prepared_is_not_closed() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let world = World::new(kind, 1).await;
        let before = mark(&world.db).await;
        let layer = world
            .layer()
            .on_acquire(move |_| vec![Statement::from_string(kind.backend(), "SELECT 1")]);
        let app = serve(async || ()).layer(layer);
        assert_eq!(post(&app, "/").await.status(), StatusCode::OK);
        assert_eq!(
            mark(&world.db).await,
            before,
            "{kind:?}: no statement, no set-up"
        );
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn a_half_prepared_connection_serves_no_request() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let world = World::new(kind, 1).await;
        let layer = world.layer().on_acquire(move |_| {
            let [first, second] = counter(kind).0;
            [first, second, "INSERT INTO missing VALUES (1)"]
                .map(|sql| Statement::from_string(kind.backend(), sql))
                .into()
        });
        let app = serve(async |db: DbSession| {
            for name in ["first", "second"] {
                let sql = format!("INSERT INTO item (name) VALUES ('{name}')");
                db.execute_unprepared(&sql).await.unwrap_err();
            }
            StatusCode::FORBIDDEN
        });
        assert_eq!(
            post(&app.layer(layer), "/").await.status(),
            StatusCode::FORBIDDEN
        );
        assert_eq!(
            (world.seen("first").await, world.seen("second").await),
            (0, 0),
            "{kind:?}"
        );
        assert_eq!(unprepared(kind, &world.db).await, 0, "{kind:?}");
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn on_acquire_is_refused_where_the_connection_cannot_be_closed() {
    let memory = World::new(Kind::SqliteMemory, 1).await;
    let layer = session_layer(memory.db.clone());
    let refused = catch_unwind(AssertUnwindSafe(|| layer.on_acquire(|_| Vec::new())))
        .map(drop)
        .unwrap_err();
    let message = refused.downcast_ref::<String>().expect("a text");
    assert!(message.contains("`on_begin`"), "{message}");
    memory.assert_whole().await;
}
