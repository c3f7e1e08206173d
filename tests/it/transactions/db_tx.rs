//! G2, G7, G8: a `DbTx` commits below 400 and rolls back otherwise, whichever handles share it.

use std::convert::Infallible;

use axum::{
    Router,
    extract::Path,
    routing::{any, get},
};
use futures_util::TryStreamExt;
use http::{Method, Request, Response, StatusCode};
use sea_orm::{
    ConnectionTrait, DbBackend, DbErr, MockDatabase, MockExecResult, Statement, StreamTrait,
    Transaction, TransactionTrait,
};
use tower::{Layer, ServiceExt, service_fn};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, SessionTransaction};

use crate::support::{
    database::{Kind, count_items, insert_item},
    pool::session_layer,
    requests::{Failed, text},
    statements::mark,
    world::{World, ask, inserting, outcome, post, serve},
};

#[tokio::test]
async fn a_handler_with_a_dbtx_commits_below_400_and_rolls_back_otherwise() {
    for kind in Kind::ALL {
        let world = World::new(kind, 2).await;
        let handler = async |Path(status): Path<u16>, tx: DbTx, db: DbSession| {
            insert_item(&tx, &format!("a{status}")).await;
            insert_item(&db, &format!("b{status}")).await;
            StatusCode::from_u16(status).unwrap()
        };
        let app = Router::new()
            .route("/{status}", get(handler))
            .layer(world.layer());
        for status in [200_u16, 204, 302, 400, 404, 500, 503] {
            let response = ask(&app, Method::GET, &format!("/{status}")).await;
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(
                outcome(&response),
                if status < 400 {
                    "committed"
                } else {
                    "rolled back"
                }
            );
            for row in ["a", "b"] {
                let seen = world.seen(&format!("{row}{status}")).await;
                assert_eq!(seen, i64::from(status < 400), "{kind:?} {status}");
            }
        }
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn all_handles_of_a_request_share_one_transaction() {
    for kind in Kind::ALL {
        for status in [200, 500] {
            let world = World::new(kind, 2).await;
            let app = serve(async move |db: DbSession, tx: DbTx, maybe: Option<DbTx>| {
                assert!(db.is_transactional());
                let connection = mark(&tx).await;
                insert_item(&tx, "tx").await;
                drop(tx);
                let maybe = maybe.expect("there is a session");
                insert_item(&maybe, "option").await;
                let clone = maybe.clone();
                drop(maybe);
                let task = tokio::spawn(async move {
                    insert_item(&clone, "clone in a task").await;
                    mark(&clone).await
                });
                assert_eq!(task.await.unwrap(), connection);
                insert_item(&db.tx(), "tx()").await;
                insert_item(&db, "session").await;
                assert_eq!(mark(&db).await, connection);
                for name in ["tx", "option", "clone in a task", "tx()", "session"] {
                    assert_eq!(count_items(&db, name).await, 1);
                }
                StatusCode::from_u16(status).unwrap()
            });
            assert_eq!(post(&app.layer(world.layer()), "/").await.status(), status);
            for name in ["tx", "option", "clone in a task", "tx()", "session"] {
                assert_eq!(
                    world.seen(name).await,
                    i64::from(status == 200),
                    "{kind:?} {status}: {name}"
                );
            }
            world.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn statements_before_the_first_transaction_stand() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let app = serve(async |db: DbSession| {
            insert_item(&db, "before").await;
            insert_item(&db.tx(), "after").await;
            StatusCode::BAD_REQUEST
        });
        assert_eq!(
            outcome(&post(&app.layer(world.layer()), "/").await),
            "rolled back"
        );
        assert_eq!(
            (world.seen("before").await, world.seen("after").await),
            (1, 0),
            "{kind:?}"
        );
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn without_a_layer_a_dbtx_names_it_and_an_optional_one_is_none() {
    let app = Router::new().route("/tx", any(async |_: DbTx| ())).route(
        "/optional",
        any(async |tx: Option<DbTx>| tx.is_some().to_string()),
    );
    let response = post(&app, "/tx").await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(text(response).await.contains("DbSessionLayer"));
    assert_eq!(text(post(&app, "/optional").await).await, "false");
    let (parts, ()) = Request::new(()).into_parts();
    let error =
        DbTx::<tower_sea_orm::DefaultDatabase>::from_extensions(&parts.extensions).unwrap_err();
    assert!(error.is_missing_layer());
}

#[tokio::test]
async fn a_plain_service_finds_its_transaction_in_the_extensions() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let service = world
            .layer()
            .layer(service_fn(async |request: Request<u16>| {
                let tx: DbTx = DbTx::from_extensions(request.extensions()).unwrap();
                insert_item(&tx, &request.body().to_string()).await;
                Ok::<_, Infallible>(
                    Response::builder()
                        .status(*request.body())
                        .body(0_u8)
                        .unwrap(),
                )
            }));
        for status in [200, 500] {
            let response = service.clone().oneshot(Request::new(status)).await.unwrap();
            assert_eq!(
                outcome(&response),
                if status == 200 {
                    "committed"
                } else {
                    "rolled back"
                }
            );
            assert_eq!(
                world.seen(&status.to_string()).await,
                i64::from(status == 200),
                "{kind:?}"
            );
        }
        world.assert_whole().await;
    }
}

/// Code that knows nothing of this crate.
async fn generic<C>(db: &C) -> Result<Vec<String>, DbErr>
where
    C: ConnectionTrait + TransactionTrait<Transaction = SessionTransaction> + StreamTrait,
{
    let backend = ConnectionTrait::get_database_backend(db);
    insert_item(db, "a").await;
    db.transaction::<_, (), DbErr>(|tx| {
        Box::pin(async move {
            insert_item(tx, "b").await;
            Ok(())
        })
    })
    .await
    .unwrap();
    let lost = db.begin().await?;
    insert_item(&lost, "lost").await;
    lost.rollback().await?;
    let dropped = db.begin().await?;
    insert_item(&dropped, "dropped").await;
    drop(dropped);
    let select = Statement::from_string(backend, "SELECT name FROM item ORDER BY name");
    let rows = db.stream_raw(select).await?;
    rows.and_then(async |row| row.try_get_by_index(0))
        .try_collect()
        .await
}

#[tokio::test]
async fn generic_code_runs_in_the_requests_transaction_with_savepoints() {
    for kind in Kind::ALL {
        for (status, seen) in [(200, 1), (404, 0)] {
            let world = World::new(kind, 1).await;
            let app = serve(async move |tx: DbTx, db: DbSession| {
                assert_eq!(generic(&tx).await?, ["a", "b"]);
                db.execute_unprepared("DELETE FROM item").await?;
                assert_eq!(generic(&db).await?, ["a", "b"]);
                Ok::<_, Failed>(StatusCode::from_u16(status).unwrap())
            });
            assert_eq!(post(&app.layer(world.layer()), "/").await.status(), status);
            for (name, seen) in [("a", seen), ("b", seen), ("lost", 0), ("dropped", 0)] {
                assert_eq!(world.seen(name).await, seen, "{kind:?} {status}: {name}");
            }
            world.assert_whole().await;
        }
    }
}

/// Returns the SQL that a mock saw, transaction by transaction.
async fn logged(
    layer: impl FnOnce(DbSessionLayer) -> DbSessionLayer,
    way: &'static str,
) -> Vec<Vec<String>> {
    let done = || MockExecResult {
        last_insert_id: 0,
        rows_affected: 1,
    };
    let db = MockDatabase::new(DbBackend::Postgres)
        .append_exec_results([done(), done(), done()])
        .into_connection();
    let insert = || inserting(Kind::Postgres, "x");
    let app = serve(async move |db: DbSession| {
        match way {
            "untouched" => drop(db.tx()),
            "twice" => {
                let tx = db.tx();
                tx.execute_raw(insert()).await?;
                tx.commit().await?;
                tx.execute_raw(insert()).await?;
            }
            "undone" => {
                let tx = db.tx();
                tx.execute_raw(insert()).await?;
                tx.rollback().await?;
            }
            "nested" => {
                let nested = db.tx().begin().await?;
                nested.execute_raw(insert()).await?;
                nested.commit().await?;
            }
            _ => {
                db.tx().execute_raw(insert()).await?;
            }
        }
        Ok::<_, Failed>(if way == "fails" {
            StatusCode::BAD_REQUEST
        } else {
            StatusCode::OK
        })
    });
    post(&app.layer(layer(session_layer(db.clone()))), "/").await;
    let log = db.into_transaction_log();
    log.iter()
        .map(|part: &Transaction| {
            part.statements()
                .iter()
                .map(|one| one.sql.clone())
                .collect()
        })
        .collect()
}

#[tokio::test]
async fn a_mock_sees_the_whole_transaction() {
    let insert = inserting(Kind::Postgres, "x").sql;
    let transaction = |end: &str| vec!["BEGIN".to_owned(), insert.clone(), end.to_owned()];
    let none: [Vec<String>; 0] = [];
    assert_eq!(
        logged(|layer| layer, "works").await,
        [transaction("COMMIT")]
    );
    assert_eq!(
        logged(|layer| layer, "fails").await,
        [transaction("ROLLBACK")]
    );
    assert_eq!(
        logged(|layer| layer.commit_when(|_| true), "fails").await,
        [transaction("COMMIT")]
    );
    assert_eq!(logged(|layer| layer, "untouched").await, none);
    assert_eq!(logged(|layer| layer.transaction(), "untouched").await, none);
    assert_eq!(
        logged(|layer| layer, "twice").await,
        [transaction("COMMIT"), transaction("COMMIT")]
    );
    assert_eq!(
        logged(|layer| layer, "undone").await,
        [transaction("ROLLBACK")]
    );
    let nested = logged(|layer| layer, "nested").await.concat();
    let ends = (
        nested.first().map(String::as_str),
        nested.last().map(String::as_str),
    );
    assert_eq!(ends, (Some("BEGIN"), Some("COMMIT")), "{nested:?}");
    assert!(
        nested[1].starts_with("SAVEPOINT") && nested[3].starts_with("RELEASE"),
        "{nested:?}"
    );
    let prepared = logged(
        |layer| layer.on_begin(|_| vec![inserting(Kind::Postgres, "set up")]),
        "works",
    )
    .await;
    let mut expected = transaction("COMMIT");
    expected.insert(1, inserting(Kind::Postgres, "set up").sql);
    assert_eq!(prepared, [expected]);
}
