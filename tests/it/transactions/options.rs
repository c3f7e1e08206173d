//! G2: `transaction`, `transaction_if` and `transaction_with`: for all requests, for some, read-only for others.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Extension,
    extract::{Path, Request},
    routing::any,
};
use http::{Method, StatusCode};
use sea_orm::{
    AccessMode, ConnectionTrait, DatabaseConnection, IsolationLevel, SqliteTransactionMode,
    Statement, TransactionOptions, TransactionTrait,
};
use tower_sea_orm::{DbSession, DbTx, Error, TransactionLayer, unsafe_methods};

use crate::support::{
    database::{Kind, count_items, insert_item},
    pool::session_pool,
    requests::{Failed, text},
    site::value,
    statements::mark,
    world::{World, ask, inserting, outcome, post, serve},
};

const SAFE: [Method; 4] = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE];
const UNSAFE: [Method; 4] = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

fn isolated(level: IsolationLevel) -> TransactionOptions {
    TransactionOptions {
        isolation_level: Some(level),
        ..Default::default()
    }
}

/// Writes two rows and answers as the URI says: `/status/name`.
async fn write(db: DbSession, Path((status, name)): Path<(u16, String)>) -> StatusCode {
    insert_item(&db, &format!("{name} 1")).await;
    insert_item(&db, &format!("{name} 2")).await;
    StatusCode::from_u16(status).unwrap()
}

#[tokio::test]
async fn unsafe_methods_run_in_a_transaction_and_others_autocommit() {
    for kind in Kind::ALL {
        let world = World::new(kind, 2).await;
        let app = axum::Router::new()
            .route("/{status}/{name}", any(write))
            .layer(world.layer().transaction_if(unsafe_methods));
        for (methods, transactional) in [(SAFE, false), (UNSAFE, true)] {
            for method in methods {
                for status in [200, 500] {
                    let name = format!("{method} {status}");
                    let response = ask(
                        &app,
                        method.clone(),
                        &format!("/{status}/{method}%20{status}"),
                    )
                    .await;
                    assert_eq!(response.status(), status);
                    let commits = !transactional || status == 200;
                    for row in 1..=2 {
                        let seen = world.seen(&format!("{name} {row}")).await;
                        assert_eq!(seen, i64::from(commits), "{kind:?} {name}");
                    }
                    let expected = match (transactional, status) {
                        (false, _) => "none",
                        (true, 200) => "committed",
                        (true, _) => "rolled back",
                    };
                    assert_eq!(outcome(&response), expected, "{kind:?} {name}");
                }
            }
        }
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn a_layer_with_transactions_puts_every_request_into_one() {
    for kind in Kind::ALL {
        for lazy in [false, true] {
            let world = World::new(kind, 2).await;
            let layer = world.layer().transaction();
            let layer = if lazy { layer.lazy() } else { layer };
            let app = axum::Router::new()
                .route("/{status}/{name}", any(write))
                .layer(layer);
            for method in [Method::GET, Method::POST] {
                for status in [200, 404] {
                    let name = format!("{method}{status}");
                    let response = ask(&app, method.clone(), &format!("/{status}/{name}")).await;
                    assert_eq!(
                        outcome(&response),
                        if status == 200 {
                            "committed"
                        } else {
                            "rolled back"
                        }
                    );
                    for row in 1..=2 {
                        let seen = world.seen(&format!("{name} {row}")).await;
                        assert_eq!(seen, i64::from(status == 200), "{kind:?} {name}");
                    }
                }
            }
            world.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn uncommitted_writes_are_seen_by_the_request_only() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let world = World::new(kind, 1).await;
        let view = world.view.clone();
        let app = serve(async move |db: DbSession| {
            insert_item(&db, "own").await;
            assert!(db.is_transactional());
            assert_eq!(
                (
                    count_items(&db, "own").await,
                    count_items(&view, "own").await
                ),
                (1, 0)
            );
        });
        let response = post(&app.layer(world.layer().transaction()), "/").await;
        assert_eq!(
            (response.status(), outcome(&response)),
            (StatusCode::OK, "committed")
        );
        assert_eq!(
            world.seen("own").await,
            1,
            "{kind:?}: when the head is there, others see it"
        );
        world.assert_whole().await;
    }
}

/// Tries to write, and says how it went and on which connection.
async fn try_to_write(db: DbSession, request: Request) -> Result<String, StatusCode> {
    let name = request.uri().path().trim_start_matches('/').to_owned();
    let (connection, before) = (mark_of(&db).await, count_items(&db, "there").await);
    assert_eq!(before, 1, "reading works");
    let kind = match db.backend() {
        sea_orm::DbBackend::Postgres => Kind::Postgres,
        sea_orm::DbBackend::MySql => Kind::MySql,
        _ => Kind::SqliteFile,
    };
    match db.execute_raw(inserting(kind, &name)).await {
        Ok(_) => Ok(connection.to_string()),
        Err(_) => Err(StatusCode::FORBIDDEN),
    }
}

/// Names the connection; SQLite's mark would be a write.
async fn mark_of(db: &DbSession) -> i64 {
    if db.backend() == sea_orm::DbBackend::Sqlite {
        0
    } else {
        mark(db).await
    }
}

#[tokio::test]
async fn a_read_only_request_cannot_write_and_the_next_one_on_its_connection_can() {
    for kind in Kind::ALL {
        for prepared in [false, true] {
            let world = World::new(kind, 1).await;
            insert_item(&world.db, "there").await;
            let mut layer = world
                .layer()
                .transaction_if(unsafe_methods)
                .read_only_otherwise();
            if prepared {
                layer = layer
                    .on_begin(move |_| vec![Statement::from_string(kind.backend(), "SELECT 1")]);
            }
            let app = serve(try_to_write);
            let layered = app.clone().layer(layer.clone());
            let autocommit = app.layer(TransactionLayer::autocommit()).layer(layer);

            let refused = ask(&layered, Method::GET, "/get").await;
            assert_eq!(
                refused.status(),
                StatusCode::FORBIDDEN,
                "{kind:?}, on_begin: {prepared}"
            );
            assert_eq!(outcome(&refused), "rolled back");
            assert_eq!(world.seen("get").await, 0, "{kind:?}");

            let first = post(&layered, "/post").await;
            assert_eq!(
                (first.status(), outcome(&first)),
                (StatusCode::OK, "committed"),
                "{kind:?}"
            );
            assert_eq!(world.seen("post").await, 1, "{kind:?}");

            assert_eq!(
                ask(&layered, Method::GET, "/again").await.status(),
                StatusCode::FORBIDDEN,
                "{kind:?}"
            );
            if !prepared {
                // Nothing of the access mode is left on the connection.
                let second = ask(&autocommit, Method::GET, "/autocommit").await;
                assert_eq!(
                    (second.status(), outcome(&second)),
                    (StatusCode::OK, "none"),
                    "{kind:?}"
                );
                assert_eq!(world.seen("autocommit").await, 1, "{kind:?}");
                assert_eq!(
                    text(first).await,
                    text(second).await,
                    "{kind:?}: one connection for all of it"
                );
            }
            world.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn a_read_only_request_that_only_reads_is_committed() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        insert_item(&world.db, "there").await;
        let app = serve(async |db: DbSession| count_items(&db, "there").await.to_string());
        let app = app.layer(world.layer().read_only_otherwise());
        let response = ask(&app, Method::GET, "/").await;
        assert_eq!(
            (response.status(), outcome(&response)),
            (StatusCode::OK, "committed"),
            "{kind:?}"
        );
        assert_eq!(text(response).await, "1");
        world.assert_whole().await;
    }
}

/// Returns whether a repeated read sees what another session committed meanwhile.
async fn sees_others(
    db: DbSession,
    view: DatabaseConnection,
    name: String,
) -> Result<String, Failed> {
    let before = count_items(&db, &name).await;
    insert_item(&view, &name).await;
    let after = count_items(&db, &name).await;
    assert_eq!(before, 0);
    Ok(after.to_string())
}

#[tokio::test]
async fn the_isolation_level_is_really_in_force_and_ends_with_the_transaction() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let world = World::new(kind, 1).await;
        let view = world.view.clone();
        let app = serve(async move |db: DbSession, request: Request| {
            sees_others(db, view.clone(), request.uri().path().to_owned()).await
        });
        let default = if kind == Kind::Postgres { "1" } else { "0" };
        let levels = [
            ("/committed", Some(IsolationLevel::ReadCommitted), "1"),
            ("/default1", None, default),
            ("/repeatable", Some(IsolationLevel::RepeatableRead), "0"),
            ("/default2", None, default),
            ("/uncommitted", Some(IsolationLevel::ReadUncommitted), "1"),
            ("/default3", None, default),
        ];
        for (uri, level, expected) in levels {
            let layer = match level {
                Some(level) => world.layer().transaction_with(isolated(level)),
                None => world.layer().transaction(),
            };
            let response = post(&app.clone().layer(layer), uri).await;
            assert_eq!(outcome(&response), "committed");
            assert_eq!(text(response).await, expected, "{kind:?} {uri}");
        }
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn the_server_itself_reports_serializable() {
    let world = World::new(Kind::Postgres, 1).await;
    let serializable = world
        .layer()
        .transaction_with(isolated(IsolationLevel::Serializable));
    // A `DbTx` leaves the layer's options alone.
    let app = serve(async |db: DbSession, _: DbTx| {
        value::<String>(&db, "SHOW transaction_isolation").await
    });
    let response = post(&app.clone().layer(serializable), "/").await;
    assert_eq!(text(response).await, "serializable");
    let response = post(&app.layer(world.layer().transaction()), "/").await;
    assert_eq!(text(response).await, "read committed");
    world.assert_whole().await;

    // MariaDB's variable shows the next transaction's level; what shows this one's is that only in
    // SERIALIZABLE a plain read locks what it reads.
    let world = World::new(Kind::MySql, 1).await;
    insert_item(&world.db, "read").await;
    let view = world.view.clone();
    let app = serve(async move |db: DbSession| {
        count_items(&db, "read").await;
        let lock = "SELECT id FROM item WHERE name = 'read' FOR UPDATE NOWAIT";
        view.execute_unprepared(lock).await.is_err().to_string()
    });
    for (level, locks) in [
        (IsolationLevel::Serializable, "true"),
        (IsolationLevel::RepeatableRead, "false"),
    ] {
        let response = post(
            &app.clone()
                .layer(world.layer().transaction_with(isolated(level))),
            "/",
        )
        .await;
        assert_eq!(text(response).await, locks, "{level}");
    }
    world.assert_whole().await;
}

#[tokio::test]
async fn sqlite_begins_in_the_configured_mode() {
    let world = World::new(Kind::SqliteFile, 1).await;
    let view = session_pool(world.view.clone());
    let app = serve(async move |db: DbSession, request: Request| {
        db.execute_unprepared("SELECT 1").await.unwrap();
        let other = view.session().await.unwrap();
        other
            .execute_unprepared("PRAGMA busy_timeout = 0")
            .await
            .unwrap();
        let written = other
            .execute_raw(inserting(Kind::SqliteFile, request.uri().path()))
            .await;
        other
            .execute_unprepared("PRAGMA busy_timeout = 10000")
            .await
            .unwrap();
        match written {
            Ok(_) => "free",
            Err(error) if Error::of(&error).is_some_and(|error| error.is_conflict()) => "locked",
            Err(_) => "something else",
        }
    });
    for (uri, mode, expected) in [
        ("/immediate", SqliteTransactionMode::Immediate, "locked"),
        ("/deferred", SqliteTransactionMode::Deferred, "free"),
    ] {
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(mode),
            ..Default::default()
        };
        let response = post(
            &app.clone().layer(world.layer().transaction_with(options)),
            uri,
        )
        .await;
        assert_eq!(text(response).await, expected, "{uri}");
    }
    world.assert_whole().await;
}

#[tokio::test]
async fn a_read_only_request_does_not_wait_for_sqlites_writer() {
    let world = World::new(Kind::SqliteFile, 1).await;
    insert_item(&world.db, "there").await;
    let immediate = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..Default::default()
    };
    let layer = world
        .layer()
        .transaction_with(immediate)
        .transaction_if(unsafe_methods)
        .read_only_otherwise();
    let app = serve(async |db: DbSession| {
        db.execute_unprepared("PRAGMA busy_timeout = 100").await?;
        Ok::<_, Failed>(count_items(&db, "there").await.to_string())
    });
    let writer = session_pool(world.view.clone()).session().await.unwrap();
    let writing = writer.begin_with_options(immediate).await.unwrap();
    insert_item(&writing, "written").await;
    let response = ask(&app.layer(layer), Method::GET, "/").await;
    assert_eq!(
        (response.status(), outcome(&response)),
        (StatusCode::OK, "committed")
    );
    assert_eq!(text(response).await, "1");
    writing.commit().await.unwrap();
    drop(writer);
    world.assert_whole().await;
}

#[tokio::test]
async fn options_hold_for_the_requests_that_a_predicate_picks_in_either_order() {
    let read_only = TransactionOptions {
        access_mode: Some(AccessMode::ReadOnly),
        ..Default::default()
    };
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        insert_item(&world.db, "there").await;
        let first = world
            .layer()
            .transaction_with(read_only)
            .transaction_if(unsafe_methods);
        let last = world
            .layer()
            .transaction_if(unsafe_methods)
            .transaction_with(read_only);
        for (name, layer) in [("first", first), ("last", last)] {
            let app = serve(try_to_write).layer(layer);
            assert_eq!(
                post(&app, &format!("/{name}")).await.status(),
                StatusCode::FORBIDDEN,
                "{kind:?} {name}"
            );
            assert_eq!(world.seen(name).await, 0, "{kind:?} {name}");
            assert_eq!(
                ask(&app, Method::GET, &format!("/{name}")).await.status(),
                StatusCode::OK,
                "{kind:?} {name}"
            );
            assert_eq!(world.seen(name).await, 1, "{kind:?} {name}");
        }
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn a_predicate_is_called_once_and_sees_outer_extensions() {
    #[derive(Clone)]
    struct Writes;
    let world = World::new(Kind::SqliteFile, 1).await;
    let asked_twice = Arc::new(AtomicBool::new(false));
    let (asked, again) = (Arc::new(AtomicBool::new(false)), asked_twice.clone());
    let layer = world.layer().transaction_if(move |parts| {
        if asked.swap(true, Ordering::SeqCst) && parts.uri.path() == "/first" {
            again.store(true, Ordering::SeqCst);
        }
        parts.extensions.get::<Writes>().is_some()
    });
    let app = serve(async |db: DbSession| db.is_transactional().to_string()).layer(layer);
    assert_eq!(text(ask(&app, Method::GET, "/first").await).await, "false");
    let app = app.layer(Extension(Writes));
    assert_eq!(text(ask(&app, Method::GET, "/").await).await, "true");
    assert!(!asked_twice.load(Ordering::SeqCst));
    world.assert_whole().await;
}
