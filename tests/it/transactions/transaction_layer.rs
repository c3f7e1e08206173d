//! G2, G7: `TransactionLayer`: the innermost layer decides, and no setting is ignored in silence.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::Response,
    routing::any,
};
use http::{Method, StatusCode};
use sea_orm::{
    AccessMode, ConnectionTrait, DbBackend, IsolationLevel, MockDatabase, Statement,
    TransactionOptions,
};
use tower::{Layer, ServiceExt, service_fn};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, Error, TransactionLayer, problem_json};

use crate::support::{
    database::{Kind, insert_item},
    pool::{session_layer, session_pool},
    requests::text,
    site::value,
    world::{World, ask, inserting, outcome, outcome_of, post, serve},
};

/// Writes a row named by the path, then fails: what is seen afterwards was no part of a transaction.
async fn write_and_fail(db: DbSession, request: Request) -> StatusCode {
    insert_item(&db, request.uri().path()).await;
    StatusCode::INTERNAL_SERVER_ERROR
}

fn read_only() -> TransactionOptions {
    TransactionOptions {
        access_mode: Some(AccessMode::ReadOnly),
        ..Default::default()
    }
}

fn serializable() -> TransactionOptions {
    TransactionOptions {
        isolation_level: Some(IsolationLevel::Serializable),
        ..Default::default()
    }
}

#[tokio::test]
async fn the_innermost_layer_decides_whether_there_is_a_transaction() {
    for kind in Kind::ALL {
        let world = World::new(kind, 2).await;
        let handler = any(write_and_fail);
        let (on, off) = (TransactionLayer::new, TransactionLayer::autocommit);
        let routes = Router::new()
            .route("/nothing", handler.clone())
            .route("/new", handler.clone().layer(on()))
            .route(
                "/default",
                handler.clone().layer(TransactionLayer::default()),
            )
            .route("/autocommit", handler.clone().layer(off()))
            .route("/new-in-autocommit", handler.clone().layer((off(), on())))
            .route("/autocommit-in-new", handler.clone().layer((on(), off())))
            .route("/new-in-new", handler.layer((on(), on())));
        for (outside, layer) in [(false, world.layer()), (true, world.layer().transaction())] {
            let app = routes.clone().layer(layer);
            for (uri, inside) in [
                ("/nothing", None),
                ("/new", Some(true)),
                ("/default", Some(true)),
                ("/autocommit", Some(false)),
                ("/new-in-autocommit", Some(true)),
                ("/autocommit-in-new", Some(false)),
                ("/new-in-new", Some(true)),
            ] {
                let uri = format!("{uri}?{outside}");
                let transactional = inside.unwrap_or(outside);
                let response = post(&app, &uri).await;
                assert_eq!(
                    outcome(&response),
                    if transactional { "rolled back" } else { "none" },
                    "{kind:?} {uri}"
                );
                let name = uri.split('?').next().unwrap();
                assert_eq!(
                    world.seen(name).await,
                    i64::from(!transactional),
                    "{kind:?} {uri}"
                );
                let sql = format!("DELETE FROM item WHERE name = '{name}'");
                world.view.execute_unprepared(&sql).await.unwrap();
            }
        }
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn a_handlers_dbtx_overrides_a_route_in_autocommit() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let app = serve(async |tx: DbTx| {
            insert_item(&tx, "lost").await;
            StatusCode::BAD_REQUEST
        });
        let app = app
            .layer(TransactionLayer::autocommit())
            .layer(world.layer());
        assert_eq!(outcome(&post(&app, "/").await), "rolled back");
        assert_eq!(world.seen("lost").await, 0, "{kind:?}");
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn the_options_of_the_innermost_layer_are_in_force() {
    let world = World::new(Kind::Postgres, 1).await;
    let app = serve(async |db: DbSession| value::<String>(&db, "SHOW transaction_isolation").await);
    let with = TransactionLayer::with;
    let repeatable = TransactionOptions {
        isolation_level: Some(IsolationLevel::RepeatableRead),
        ..Default::default()
    };
    let plain = app.clone().layer(with(serializable())).layer(world.layer());
    assert_eq!(text(post(&plain, "/").await).await, "serializable");
    let nested = app
        .clone()
        .layer(with(serializable()))
        .layer(with(repeatable))
        .layer(world.layer());
    assert_eq!(text(post(&nested, "/").await).await, "serializable");
    let over = app
        .layer(with(repeatable))
        .layer(world.layer().transaction_with(serializable()));
    assert_eq!(text(post(&over, "/").await).await, "repeatable read");
    world.assert_whole().await;

    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let app = serve(async move |db: DbSession, request: Request| {
            match db.execute_raw(inserting(kind, request.uri().path())).await {
                Ok(_) => StatusCode::OK,
                Err(_) => StatusCode::FORBIDDEN,
            }
        });
        let refuses = app
            .clone()
            .layer(with(read_only()))
            .layer(world.layer().transaction());
        assert_eq!(
            post(&refuses, "/refused").await.status(),
            StatusCode::FORBIDDEN,
            "{kind:?}"
        );
        // An exception among requests that only read.
        let writes = app
            .layer(TransactionLayer::new())
            .layer(world.layer().read_only_otherwise());
        assert_eq!(
            ask(&writes, Method::GET, "/written").await.status(),
            StatusCode::OK,
            "{kind:?}"
        );
        assert_eq!(
            (world.seen("/refused").await, world.seen("/written").await),
            (0, 1),
            "{kind:?}"
        );
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn the_innermost_commit_when_decides() {
    for kind in Kind::ALL {
        let world = World::new(kind, 2).await;
        let handler = any(async |tx: DbTx, request: Request| {
            insert_item(&tx, request.uri().path()).await;
            StatusCode::NOT_FOUND
        });
        let not_found = |parts: &http::response::Parts| parts.status == StatusCode::NOT_FOUND;
        let never = |_: &http::response::Parts| false;
        let layer = TransactionLayer::new;
        let app = Router::new()
            .route("/default", handler.clone().layer(layer()))
            .route(
                "/rule",
                handler.clone().layer(layer().commit_when(not_found)),
            )
            .route(
                "/inner",
                handler
                    .clone()
                    .layer((layer().commit_when(never), layer().commit_when(not_found))),
            )
            .route(
                "/outer",
                handler
                    .clone()
                    .layer((layer().commit_when(not_found), layer())),
            )
            .route(
                "/autocommit",
                handler.layer(TransactionLayer::autocommit().commit_when(not_found)),
            );
        for rule_of_session in [false, true] {
            let session = world.layer();
            let app = app.clone().layer(if rule_of_session {
                session.commit_when(never)
            } else {
                session
            });
            for (uri, commits) in [
                ("/default", false),
                ("/rule", true),
                ("/inner", true),
                ("/outer", true),
                ("/autocommit", true),
            ] {
                let response = post(&app, uri).await;
                assert_eq!(response.status(), StatusCode::NOT_FOUND);
                assert_eq!(
                    outcome(&response),
                    if commits { "committed" } else { "rolled back" },
                    "{kind:?} {uri}"
                );
                assert_eq!(world.seen(uri).await, i64::from(commits), "{kind:?} {uri}");
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

/// A statement for `on_begin` that tells whether `before` ran before it.
fn step(kind: Kind, before: &str, name: &str) -> Vec<Statement> {
    let sql = format!(
        "INSERT INTO item (name) SELECT '{name}' WHERE EXISTS (SELECT 1 FROM item WHERE name = '{before}')"
    );
    vec![Statement::from_string(kind.backend(), sql)]
}

#[tokio::test]
async fn each_layers_set_up_runs_after_that_of_the_layers_around() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        insert_item(&world.db, "0").await;
        let app = serve(async move |db: DbSession, request: Request| {
            let last = step(kind, "3", request.uri().path()).remove(0);
            assert_eq!(
                db.execute_raw(last).await.unwrap().rows_affected(),
                1,
                "{kind:?}: all came before"
            );
        });
        let app = app
            .layer(TransactionLayer::new().on_begin(move |_| step(kind, "2", "3")))
            .layer(TransactionLayer::new().on_begin(move |_| step(kind, "1", "2")))
            .layer(world.layer().on_begin(move |_| step(kind, "0", "1")));
        assert_eq!(outcome(&post(&app, "/last").await), "committed");
        for name in ["1", "2", "3", "/last"] {
            assert_eq!(world.seen(name).await, 1, "{kind:?} {name}");
        }
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn a_set_up_is_never_skipped_in_silence() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let app = serve(async move |db: DbSession| {
            counted.fetch_add(1, Ordering::SeqCst);
            insert_item(&db, "unprepared").await;
        });
        let set_up = move |_: &http::request::Parts| vec![inserting(kind, "set up")];
        let (on, off) = (TransactionLayer::new, TransactionLayer::autocommit);
        let apps = [
            (
                "the session layer's",
                app.clone()
                    .layer(off())
                    .layer(world.layer().on_begin(set_up)),
            ),
            (
                "a route layer's",
                app.clone()
                    .layer(off())
                    .layer(on().on_begin(set_up))
                    .layer(world.layer()),
            ),
            (
                "its own",
                app.clone()
                    .layer(off().on_begin(set_up))
                    .layer(world.layer()),
            ),
            (
                "its own in a transaction",
                app.layer(off().on_begin(set_up))
                    .layer(world.layer().transaction()),
            ),
        ];
        for (whose, app) in apps {
            let response = post(&app, "/").await;
            assert_eq!(
                response.status(),
                StatusCode::INTERNAL_SERVER_ERROR,
                "{kind:?}: {whose}"
            );
            assert_eq!(
                calls.load(Ordering::SeqCst),
                0,
                "{kind:?}: {whose}: the handler was called"
            );
            assert_eq!(text(response).await, "");
        }
        assert_eq!(world.seen("unprepared").await, 0);
        world.assert_whole().await;
    }
}

/// Runs a statement before what is inside.
async fn read_first(db: DbSession, request: Request, next: Next) -> Response {
    insert_item(&db, "first").await;
    next.run(request).await
}

#[tokio::test]
async fn options_cannot_be_changed_once_the_transaction_has_begun() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let app = serve(async move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let early = |layer: TransactionLayer| app.clone().layer(layer).layer(from_fn(read_first));
        let set_up = move |_: &http::request::Parts| vec![inserting(kind, "set up")];
        for (what, layer) in [
            ("options", TransactionLayer::with(serializable())),
            ("autocommit", TransactionLayer::autocommit()),
            ("a set-up", TransactionLayer::new().on_begin(set_up)),
        ] {
            let response = post(&early(layer).layer(world.layer().transaction()), "/").await;
            assert_eq!(
                response.status(),
                StatusCode::INTERNAL_SERVER_ERROR,
                "{kind:?}: {what}"
            );
            assert_eq!(outcome(&response), "rolled back", "{kind:?}: {what}");
            assert_eq!(
                calls.load(Ordering::SeqCst),
                0,
                "{kind:?}: {what}: the handler was called"
            );
            assert_eq!(world.seen("first").await, 0, "{kind:?}: {what}");
        }
        let same = early(TransactionLayer::new()).layer(world.layer().transaction());
        let response = post(&same, "/").await;
        assert_eq!(
            (response.status(), outcome(&response)),
            (StatusCode::OK, "committed"),
            "{kind:?}"
        );
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        assert_eq!(world.seen("first").await, 1, "{kind:?}");
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn options_that_come_too_late_are_an_error_for_the_handler() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let app = serve(async |db: DbSession| {
            let tx = db.tx_with(serializable()).unwrap();
            insert_item(&tx, "kept").await;
            db.tx_with(serializable()).unwrap();
            let error = Error::of(&db.tx_with(read_only()).unwrap_err()).expect("this crate's own");
            assert!(
                error.to_string().contains("before its first statement"),
                "{error}"
            );
            // The next one may have others.
            db.commit().await.unwrap();
            db.tx_with(read_only()).unwrap();
            db.execute_unprepared("INSERT INTO item (name) VALUES ('refused')")
                .await
                .unwrap_err();
            db.rollback().await.unwrap();
        });
        let response = post(&app.layer(world.layer()), "/").await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(
            (world.seen("kept").await, world.seen("refused").await),
            (1, 0),
            "{kind:?}"
        );
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn without_a_session_layer_the_handler_is_not_called() {
    async fn handler() -> StatusCode {
        panic!("called")
    }
    for layer in [
        TransactionLayer::new(),
        TransactionLayer::autocommit(),
        TransactionLayer::with(serializable()),
    ] {
        let response = post(&serve(handler).layer(layer), "/").await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(text(response).await, "");
    }
    let explained =
        TransactionLayer::new().response_for_error(|error: &Error, _: &http::request::Parts| {
            assert!(error.is_missing_layer());
            Response::new(axum::body::Body::from(error.to_string()))
        });
    let response = text(post(&serve(handler).layer(explained), "/").await).await;
    assert!(response.contains("DbSessionLayer"), "{response}");

    let plain = service_fn(
        async |_: http::Request<String>| -> Result<http::Response<String>, Infallible> {
            panic!("called")
        },
    );
    let response = TransactionLayer::new()
        .layer(plain)
        .oneshot(http::Request::new(String::new()))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let problem = TransactionLayer::new()
        .response_for_error(problem_json)
        .layer(plain);
    let response = problem
        .oneshot(http::Request::new(String::new()))
        .await
        .unwrap();
    assert!(
        response.body().contains("internal error"),
        "{}",
        response.body()
    );
    let request = http::Request::builder()
        .header("content-type", "application/grpc")
        .body(String::new())
        .unwrap();
    let response = TransactionLayer::new()
        .layer(plain)
        .oneshot(request)
        .await
        .unwrap();
    assert_eq!(
        (
            response.status(),
            response.headers()["grpc-status"].to_str().unwrap()
        ),
        (StatusCode::OK, "13")
    );
}

#[tokio::test]
async fn the_session_of_another_request_is_none() {
    let world = World::new(Kind::SqliteMemory, 1).await;
    let dead = world
        .layer()
        .pool()
        .session()
        .await
        .map(|session| (*session).clone())
        .unwrap();
    assert!(dead.is_closed());
    let plain = service_fn(
        async |_: http::Request<String>| -> Result<http::Response<String>, Infallible> {
            panic!("called")
        },
    );
    let mut request = http::Request::new(String::new());
    request.extensions_mut().insert(dead);
    let response = TransactionLayer::new()
        .layer(plain)
        .oneshot(request)
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    world.assert_whole().await;
}

#[tokio::test]
async fn plain_services_have_transactions_per_route_as_well() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let service = service_fn(async |request: http::Request<String>| {
            let db: DbSession = DbSession::from_extensions(request.extensions()).unwrap();
            insert_item(&db, request.body()).await;
            let mut response = http::Response::new(0_u8);
            *response.status_mut() = StatusCode::CONFLICT;
            Ok::<_, Infallible>(response)
        });
        let kept =
            TransactionLayer::new().commit_when(|parts| parts.status == StatusCode::CONFLICT);
        for (name, layer, seen) in [
            ("rolled back", TransactionLayer::new(), 0),
            ("committed", kept, 1),
            ("autocommitted", TransactionLayer::autocommit(), 1),
        ] {
            let service = world
                .layer()
                .transaction_with(serializable())
                .layer(layer.layer(service));
            let response = service
                .oneshot(http::Request::new(name.to_owned()))
                .await
                .unwrap();
            assert_eq!(
                outcome(&response),
                if name == "autocommitted" {
                    "none"
                } else {
                    name
                }
            );
            assert_eq!(world.seen(name).await, seen, "{kind:?} {name}");
        }
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn a_layer_speaks_to_the_session_of_its_tag_only() {
    enum Analytics {}
    let (main, other) = (
        World::new(Kind::SqliteFile, 1).await,
        World::new(Kind::Postgres, 1).await,
    );
    let app = serve(async |db: DbSession, analytics: DbSession<Analytics>| {
        insert_item(&db, "main").await;
        insert_item(&analytics, "analytics").await;
        StatusCode::NOT_FOUND
    });
    let analytics = DbSessionLayer::<Analytics>::tagged(session_pool(other.db.clone()));
    let app = app.layer(TransactionLayer::<Analytics>::tagged(Some(
        TransactionOptions::default(),
    )));
    let response = post(&app.clone().layer(main.layer()).layer(analytics), "/").await;
    assert_eq!(
        (outcome(&response), outcome_of::<Analytics, _>(&response)),
        ("none", "rolled back")
    );
    assert_eq!(
        (main.seen("main").await, other.seen("analytics").await),
        (1, 0)
    );
    main.assert_whole().await;
    other.assert_whole().await;

    let mock = MockDatabase::new(DbBackend::Postgres).into_connection();
    let response = post(&app.layer(session_layer(mock)), "/").await;
    assert_eq!(
        response.status(),
        StatusCode::INTERNAL_SERVER_ERROR,
        "no session of that tag"
    );
}
