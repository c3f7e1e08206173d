//! G7, G8: a handler that ends its transaction itself, and what the next statement does then.

use axum::{Router, extract::Path, routing::any};
use http::StatusCode;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, MockDatabase, TransactionTrait,
};
use tower_sea_orm::{DbSession, DbTx, Error};

use crate::support::{
    database::{Kind, count_items, insert_item},
    pool::session_layer,
    requests::text,
    world::{CHECKS_LATE, ORPHAN, World, outcome, post, serve},
};

/// The crate's own words for a refusal.
fn refusal<T>(result: Result<T, DbErr>) -> Error {
    let Err(error) = result else {
        panic!("not refused")
    };
    Error::of(&error).unwrap_or_else(|| panic!("another error: {error}"))
}

/// Asserts what others see, where there are others while a session has its connection.
async fn assert_seen(kind: Kind, view: &DatabaseConnection, name: &str, expected: i64) {
    if kind != Kind::SqliteMemory {
        assert_eq!(count_items(view, name).await, expected, "{kind:?}: {name}");
    }
}

#[tokio::test]
async fn after_an_early_commit_the_next_statement_begins_a_transaction() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let view = world.view.clone();
        let handler = async move |tx: DbTx, Path(status): Path<u16>| {
            insert_item(&tx, "kept").await;
            tx.commit().await.unwrap();
            assert_seen(kind, &view, "kept", 1).await;
            insert_item(&tx, "second").await;
            assert_seen(kind, &view, "second", 0).await;
            tx.commit().await.unwrap();
            insert_item(&tx, "third").await;
            assert_seen(kind, &view, "third", 0).await;
            StatusCode::from_u16(status).unwrap()
        };
        let app = Router::new()
            .route("/{status}", any(handler))
            .layer(world.layer());
        for (status, ended, third) in [(500, "rolled back", 0), (200, "committed", 1)] {
            let response = post(&app, &format!("/{status}")).await;
            assert_eq!(
                (response.status().as_u16(), outcome(&response)),
                (status, ended),
                "{kind:?}"
            );
            for (name, expected) in [("kept", 1), ("second", 1), ("third", third)] {
                assert_eq!(
                    world.seen(name).await,
                    expected,
                    "{kind:?} {status}: {name}"
                );
            }
            world
                .view
                .execute_unprepared("DELETE FROM item")
                .await
                .unwrap();
        }
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn after_an_early_rollback_the_next_statement_begins_a_transaction() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let view = world.view.clone();
        let app = serve(async move |tx: DbTx| {
            insert_item(&tx, "lost").await;
            tx.rollback().await.unwrap();
            assert_eq!(count_items(&tx, "lost").await, 0);
            insert_item(&tx, "kept").await;
            assert_seen(kind, &view, "kept", 0).await;
        });
        let response = post(&app.layer(world.layer()), "/").await;
        assert_eq!(
            (response.status(), outcome(&response)),
            (StatusCode::OK, "committed"),
            "{kind:?}"
        );
        assert_eq!(
            (world.seen("lost").await, world.seen("kept").await),
            (0, 1),
            "{kind:?}"
        );
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn a_failed_log_in_answers_401_and_keeps_its_counter() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let sql = "INSERT INTO item (name, hits) VALUES ('account', 0)";
        world.db.execute_unprepared(sql).await.unwrap();
        let app = serve(async |tx: DbTx| {
            tx.execute_unprepared("UPDATE item SET hits = hits + 1 WHERE name = 'account'")
                .await
                .unwrap();
            tx.commit().await.unwrap();
            StatusCode::UNAUTHORIZED
        });
        let app = app.layer(world.layer());
        for expected in 1..=2 {
            assert_eq!(post(&app, "/").await.status(), StatusCode::UNAUTHORIZED);
            let sql = "SELECT hits FROM item WHERE name = 'account'";
            let hits: i32 = crate::support::site::value(&world.view, sql).await;
            assert_eq!(hits, expected, "{kind:?}");
        }
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn release_needs_an_ended_transaction_and_frees_the_connection() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let view = world.view.clone();
        let app = serve(async move |tx: DbTx| {
            tx.release().await.unwrap();
            insert_item(&tx, "kept").await;
            let error = refusal(tx.release().await);
            assert!(
                error.to_string().contains("`commit()` or `rollback()`"),
                "{error}"
            );
            // Nothing happened to it.
            assert_eq!(count_items(&tx, "kept").await, 1);
            tx.commit().await.unwrap();
            tx.release().await.unwrap();
            // The pool has one connection only: somebody else has it now.
            let other = tx.pool().session().await.unwrap();
            assert_eq!(count_items(&*other, "kept").await, 1);
            drop(other);
            insert_item(&tx, "lost").await;
            assert_seen(kind, &view, "lost", 0).await;
            StatusCode::CONFLICT
        });
        for lazy in [false, true] {
            let layer = if lazy {
                world.layer().lazy()
            } else {
                world.layer()
            };
            let response = post(&app.clone().layer(layer), "/").await;
            assert_eq!(
                (response.status(), outcome(&response)),
                (StatusCode::CONFLICT, "rolled back"),
                "{kind:?}"
            );
            assert_eq!(
                (world.seen("kept").await, world.seen("lost").await),
                (1, 0),
                "{kind:?}"
            );
            world
                .view
                .execute_unprepared("DELETE FROM item")
                .await
                .unwrap();
        }
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn set_rollback_only_rolls_back_every_response_and_refuses_commit() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let app = serve(async |tx: DbTx, db: DbSession| {
            insert_item(&tx, "first").await;
            db.set_rollback_only().unwrap();
            for _ in 0..2 {
                assert!(
                    refusal(tx.commit().await)
                        .to_string()
                        .contains("roll back only")
                );
                assert_eq!(
                    count_items(&tx, "first").await,
                    1,
                    "it goes on, for a dry run"
                );
            }
            tx.rollback().await.unwrap();
            // Every later one as well.
            insert_item(&tx, "second").await;
            assert!(
                refusal(tx.commit().await)
                    .to_string()
                    .contains("roll back only")
            );
        });
        let response = post(&app.layer(world.layer()), "/").await;
        assert_eq!(
            (response.status(), outcome(&response)),
            (StatusCode::OK, "rolled back"),
            "{kind:?}"
        );
        assert_eq!(
            (world.seen("first").await, world.seen("second").await),
            (0, 0),
            "{kind:?}"
        );
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn writes_before_rollback_only_stand() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let app = serve(async |tx: DbTx| {
            insert_item(&tx, "kept").await;
            tx.commit().await.unwrap();
            tx.set_rollback_only().unwrap();
            insert_item(&tx, "lost").await;
        });
        assert_eq!(
            post(&app.layer(world.layer()), "/").await.status(),
            StatusCode::OK
        );
        assert_eq!(
            (world.seen("kept").await, world.seen("lost").await),
            (1, 0),
            "{kind:?}"
        );
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn a_session_without_a_transaction_refuses_to_end_one() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let app = serve(async |db: DbSession| {
            insert_item(&db, "kept").await;
            for error in [
                refusal(db.commit().await),
                refusal(db.rollback().await),
                refusal(db.set_rollback_only()),
            ] {
                assert!(error.to_string().contains("`DbTx`"), "{error}");
            }
            StatusCode::BAD_REQUEST
        });
        let response = post(&app.layer(world.layer()), "/").await;
        assert_eq!(
            (response.status(), outcome(&response)),
            (StatusCode::BAD_REQUEST, "none"),
            "{kind:?}"
        );
        assert_eq!(world.seen("kept").await, 1, "{kind:?}");
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn with_an_open_nested_transaction_the_session_cannot_end_its_own() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let app = serve(async |tx: DbTx| {
            insert_item(&tx, "outer").await;
            let nested = tx.begin().await.unwrap();
            insert_item(&nested, "nested").await;
            assert!(refusal(tx.commit().await).is_wrong_handle());
            assert!(refusal(tx.rollback().await).is_wrong_handle());
            assert!(refusal(tx.release().await).is_wrong_handle());
            nested.commit().await.unwrap();
            tx.commit().await.unwrap();
            StatusCode::BAD_REQUEST
        });
        assert_eq!(
            post(&app.layer(world.layer()), "/").await.status(),
            StatusCode::BAD_REQUEST
        );
        assert_eq!(
            (world.seen("outer").await, world.seen("nested").await),
            (1, 1),
            "{kind:?}"
        );
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn ending_an_untouched_transaction_sends_nothing() {
    let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    let app = serve(async |tx: DbTx| {
        tx.commit().await.unwrap();
        tx.rollback().await.unwrap();
        tx.release().await.unwrap();
    });
    let response = post(&app.clone().layer(session_layer(db.clone())), "/").await;
    assert_eq!(
        (response.status(), outcome(&response)),
        (StatusCode::OK, "untouched")
    );
    assert_eq!(db.into_transaction_log(), []);
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let response = post(&app.clone().layer(world.layer()), "/").await;
        assert_eq!(
            (response.status(), outcome(&response)),
            (StatusCode::OK, "untouched"),
            "{kind:?}"
        );
        world.assert_whole().await;
    }
}

/// Does what the path says about the handler's failed COMMIT.
async fn after_a_failed_commit(tx: DbTx, Path(then): Path<String>) -> StatusCode {
    insert_item(&tx, "refused").await;
    tx.execute_unprepared(ORPHAN).await.unwrap();
    let error = tx.commit().await.unwrap_err();
    assert!(Error::of(&error).is_none(), "the server's own: {error}");
    match &*then {
        "nothing" => {}
        "nothing-to-commit" => tx.commit().await.unwrap(),
        "rollback" => tx.rollback().await.unwrap(),
        "again" => {
            assert_eq!(count_items(&tx, "refused").await, 0, "it starts afresh");
            insert_item(&tx, "kept").await;
            tx.commit().await.unwrap();
        }
        _ => return StatusCode::PAYMENT_REQUIRED,
    }
    StatusCode::OK
}

#[tokio::test]
async fn a_failed_early_commit_is_an_error_unless_the_handler_retries_it() {
    for kind in CHECKS_LATE {
        let world = World::with_late_check(kind, 1).await;
        let app = Router::new()
            .route("/{then}", any(after_a_failed_commit))
            .layer(world.layer());
        for (then, status, ended) in [
            ("nothing", 500, "failed"),
            ("nothing-to-commit", 500, "failed"),
            ("rollback", 200, "untouched"),
            ("error", 402, "rolled back"),
            ("again", 200, "committed"),
        ] {
            let response = post(&app, &format!("/{then}")).await;
            assert_eq!(
                (response.status().as_u16(), outcome(&response)),
                (status, ended),
                "{kind:?}: {then}"
            );
            if status == 500 {
                assert!(
                    response
                        .extensions()
                        .get::<tower_sea_orm::Outcome>()
                        .unwrap()
                        .error()
                        .unwrap()
                        .is_commit_failed()
                );
                assert_eq!(text(response).await, "", "no word of the database");
            }
            assert_eq!(world.seen("refused").await, 0, "{kind:?}: {then}");
        }
        assert_eq!(world.seen("kept").await, 1, "{kind:?}");
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn an_early_commit_after_a_swallowed_error_fails_on_postgres() {
    let world = World::new(Kind::Postgres, 1).await;
    insert_item(&world.db, "taken").await;
    let app = serve(async |tx: DbTx| {
        insert_item(&tx, "lost").await;
        tx.execute_unprepared("INSERT INTO item (name) VALUES ('taken')")
            .await
            .unwrap_err();
        assert!(refusal(tx.commit().await).is_aborted());
    });
    let response = post(&app.layer(world.layer()), "/").await;
    assert_eq!(
        (response.status(), outcome(&response)),
        (StatusCode::INTERNAL_SERVER_ERROR, "failed")
    );
    assert_eq!(world.seen("lost").await, 0);
    world.assert_whole().await;
}
