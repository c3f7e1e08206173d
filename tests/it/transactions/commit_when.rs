//! G7: `commit_when` says which responses commit, and `Outcome` what became of the transaction.

use std::{convert::Infallible, sync::Arc};

use axum::{Router, extract::Path, routing::any};
use http::{Request, Response, StatusCode};
use sea_orm::{ConnectionTrait, TransactionTrait};
use tower::{Layer, ServiceExt, service_fn};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, Outcome};

use crate::support::{
    database::{Kind, insert_item},
    pool::{open_transactions, session_pool},
    world::{CHECKS_LATE, ORPHAN, World, outcome, outcome_of, post, serve},
};

/// Writes one row and answers with this status and header.
async fn write(
    tx: DbTx,
    Path((status, name, value)): Path<(u16, String, String)>,
) -> Response<String> {
    insert_item(&tx, "written").await;
    Response::builder()
        .status(status)
        .header(name, value)
        .body(String::new())
        .unwrap()
}

/// Asserts for each answer whether it commits.
async fn assert_rule(layer: impl Fn(&World) -> DbSessionLayer, answers: &[(&str, bool)]) {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let app = Router::new()
            .route("/{status}/{name}/{value}", any(write))
            .layer(layer(&world));
        for (uri, commits) in answers {
            let response = post(&app, uri).await;
            assert_eq!(response.status().as_str(), &uri[1..4]);
            assert_eq!(
                outcome(&response),
                if *commits { "committed" } else { "rolled back" },
                "{kind:?} {uri}"
            );
            assert_eq!(
                world.seen("written").await,
                i64::from(*commits),
                "{kind:?} {uri}"
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
async fn commit_when_decides_which_responses_commit() {
    let not_found = |world: &World| {
        world
            .layer()
            .commit_when(|parts| parts.status == StatusCode::NOT_FOUND)
    };
    assert_rule(
        not_found,
        &[("/404/a/b", true), ("/200/a/b", false), ("/500/a/b", false)],
    )
    .await;
    let header = |world: &World| {
        world
            .layer()
            .commit_when(|parts| !parts.headers.contains_key("x-roll-back"))
    };
    assert_rule(
        header,
        &[
            ("/200/a/b", true),
            ("/200/x-roll-back/1", false),
            ("/500/a/b", true),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_grpc_status_other_than_0_rolls_back_an_answer_of_200() {
    let answers = [
        ("/200/grpc-status/0", true),
        ("/200/content-type/application%2Fgrpc", true),
        ("/200/grpc-status/5", false),
        ("/200/grpc-status/13", false),
        ("/500/grpc-status/0", false),
    ];
    assert_rule(World::layer, &answers).await;
}

#[tokio::test]
async fn an_error_of_the_inner_service_passes_untouched_after_the_rollback() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let failing = service_fn(async |request: Request<()>| {
            let tx: DbTx = DbTx::from_extensions(request.extensions()).unwrap();
            insert_item(&tx, "lost").await;
            Err::<Response<String>, _>(Arc::new("the service's own"))
        });
        // A rule is not asked.
        let service = world.layer().commit_when(|_| true).layer(failing);
        for _ in 0..20 {
            let error = service.clone().oneshot(Request::new(())).await.unwrap_err();
            assert_eq!(*error, "the service's own");
            if kind != Kind::SqliteMemory {
                assert_eq!(
                    open_transactions(&world.view).await,
                    0,
                    "{kind:?}: it was awaited"
                );
            }
        }
        assert_eq!(world.seen("lost").await, 0, "{kind:?}");
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn g8_an_answer_leaves_after_the_end_of_its_transaction() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let world = World::new(kind, 1).await;
        let app = Router::new()
            .route("/{status}/{name}/{value}", any(write))
            .layer(world.layer());
        for status in [200, 500] {
            for _ in 0..10 {
                post(&app, &format!("/{status}/a/b")).await;
                assert_eq!(open_transactions(&world.view).await, 0, "{kind:?}");
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

/// Ends in one of the ways there are.
async fn end(db: DbSession, Path(way): Path<String>) -> StatusCode {
    match &*way {
        "autocommit" => insert_item(&db, "row").await,
        "untouched" => drop(db.tx()),
        "pinged" => db.tx().ping().await.unwrap(),
        "committed" => insert_item(&db.tx(), "row").await,
        "nested" => {
            let nested = db.tx().begin().await.unwrap();
            insert_item(&nested, "row").await;
            nested.commit().await.unwrap();
        }
        "rolled-back" => {
            insert_item(&db.tx(), "row").await;
            return StatusCode::IM_A_TEAPOT;
        }
        "rollback-only" => {
            insert_item(&db.tx(), "row").await;
            db.set_rollback_only().unwrap();
        }
        "left-open" => {
            let nested = db.tx().begin().await.unwrap();
            insert_item(&nested, "row").await;
            tokio::spawn(async move {
                let _nested = nested;
                std::future::pending::<()>().await;
            });
        }
        other => panic!("{other}"),
    }
    StatusCode::OK
}

#[tokio::test]
async fn the_extensions_say_how_the_transaction_ended() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let app = Router::new().route("/{way}", any(end)).layer(world.layer());
        for (way, status, expected, rows) in [
            ("autocommit", 200, "none", 1),
            ("untouched", 200, "untouched", 0),
            ("pinged", 200, "untouched", 0),
            ("committed", 200, "committed", 1),
            ("nested", 200, "committed", 1),
            ("rolled-back", 418, "rolled back", 0),
            ("rollback-only", 200, "rolled back", 0),
            ("left-open", 500, "failed", 0),
        ] {
            let response = post(&app, &format!("/{way}")).await;
            assert_eq!(
                (response.status().as_u16(), outcome(&response)),
                (status, expected),
                "{kind:?} {way}"
            );
            if expected == "failed" {
                let outcome: &Outcome = response.extensions().get().unwrap();
                assert!(outcome.error().unwrap().is_unfinished(), "{outcome:?}");
            }
            assert_eq!(world.seen("row").await, rows, "{kind:?} {way}");
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
async fn a_refused_commit_is_an_error_in_the_response_and_its_extensions() {
    for kind in CHECKS_LATE {
        let world = World::with_late_check(kind, 1).await;
        let app = serve(async |tx: DbTx| {
            insert_item(&tx, "refused").await;
            tx.execute_unprepared(ORPHAN).await.unwrap();
        });
        let response = post(&app.layer(world.layer()), "/").await;
        assert_eq!(
            (response.status(), outcome(&response)),
            (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
            "{kind:?}"
        );
        assert!(
            response
                .extensions()
                .get::<Outcome>()
                .unwrap()
                .error()
                .unwrap()
                .is_commit_failed()
        );
        assert_eq!(world.seen("refused").await, 0, "{kind:?}");
        world.assert_whole().await;
    }
    let world = World::new(Kind::Postgres, 1).await;
    insert_item(&world.db, "taken").await;
    let app = serve(async |tx: DbTx| {
        insert_item(&tx, "lost").await;
        tx.execute_unprepared("INSERT INTO item (name) VALUES ('taken')")
            .await
            .unwrap_err();
    });
    let response = post(&app.layer(world.layer()), "/").await;
    assert_eq!(
        (response.status(), outcome(&response)),
        (StatusCode::INTERNAL_SERVER_ERROR, "failed")
    );
    assert!(
        response
            .extensions()
            .get::<Outcome>()
            .unwrap()
            .error()
            .unwrap()
            .is_aborted()
    );
    assert_eq!(world.seen("lost").await, 0);
    world.assert_whole().await;
}

#[tokio::test]
async fn two_databases_have_an_outcome_each() {
    enum Analytics {}
    let (main, other) = (
        World::new(Kind::MySql, 1).await,
        World::new(Kind::Postgres, 1).await,
    );
    insert_item(&other.db, "taken").await;
    let service = service_fn(async |request: Request<&'static str>| {
        let tx: DbTx = DbTx::from_extensions(request.extensions()).unwrap();
        let analytics = DbTx::<Analytics>::tagged(request.extensions()).unwrap();
        insert_item(&tx, "row").await;
        if *request.body() == "both" {
            insert_item(&analytics, "row").await;
        }
        Ok::<_, Infallible>(Response::new(String::new()))
    });
    let analytics = DbSessionLayer::<Analytics>::tagged(session_pool(other.db.clone()));
    let service = analytics.layer(main.layer().layer(service));
    for (what, expected) in [("main only", "untouched"), ("both", "committed")] {
        let response = service.clone().oneshot(Request::new(what)).await.unwrap();
        assert_eq!(
            (outcome(&response), outcome_of::<Analytics, _>(&response)),
            ("committed", expected)
        );
        assert_eq!(
            (main.seen("row").await, other.seen("row").await),
            (1, i64::from(what == "both"))
        );
        main.view
            .execute_unprepared("DELETE FROM item")
            .await
            .unwrap();
    }
    main.assert_whole().await;
    other.assert_whole().await;
}
