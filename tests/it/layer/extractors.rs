//! G2, G14: `DbSession`, `DbSession<Tag>`, `SessionPool` as handler arguments, and what misuse says.

use std::{
    panic::{AssertUnwindSafe, Location, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use axum::{
    Router,
    body::Body,
    extract::FromRequestParts,
    middleware::{Next, from_fn},
    response::Response,
    routing::get,
};
use futures_util::future::join_all;
use http::{Request, StatusCode};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, MockDatabase, TransactionTrait};
use tower_sea_orm::{DbSession, DbSessionLayer, Error, SessionPool};

use crate::support::{
    database::{Kind, TestDb, count_items, insert_item},
    pool::{assert_whole, session_layer, session_pool},
    requests::{Analytics, Failed, send, text},
    statements::mark,
};

#[tokio::test]
async fn a_missing_layer_names_itself() {
    async fn optional(session: Option<DbSession>) -> &'static str {
        if session.is_some() { "some" } else { "none" }
    }
    let app = Router::new()
        .route("/session", get(async |_: DbSession| ()))
        .route("/tagged", get(async |_: DbSession<Analytics>| ()))
        .route("/pool", get(async |_: SessionPool| ()))
        .route("/optional", get(optional));
    for uri in ["/session", "/tagged", "/pool"] {
        let answer = send(&app, uri).await;
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR, "{uri}");
        assert!(text(answer).await.contains("DbSessionLayer"), "{uri}");
    }
    assert_eq!(text(send(&app, "/optional").await).await, "none");
    let (parts, ()) = Request::new(()).into_parts();
    let error = DbSession::from_extensions(&parts.extensions).unwrap_err();
    assert!(error.is_missing_layer() && error.status() == StatusCode::INTERNAL_SERVER_ERROR);

    let app = app.layer(session_layer(
        MockDatabase::new(DbBackend::Sqlite).into_connection(),
    ));
    for uri in ["/session", "/pool", "/optional"] {
        assert_eq!(send(&app, uri).await.status(), StatusCode::OK, "{uri}");
    }
    assert_eq!(text(send(&app, "/optional").await).await, "some");
    // A session of another tag is not it.
    assert_eq!(
        send(&app, "/tagged").await.status(),
        StatusCode::INTERNAL_SERVER_ERROR
    );
}

#[tokio::test]
async fn work_that_outlives_the_request_takes_the_pool() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let db = test.connect(1).await;
    let (sender, mut done) = tokio::sync::mpsc::channel(1);
    let app = Router::new()
        .route(
            "/",
            get(async move |session: DbSession, pool: SessionPool| {
                tokio::spawn(async move {
                    let own = pool.session().await.unwrap();
                    let dead = session.execute_unprepared("SELECT 1").await.unwrap_err();
                    insert_item(&*own, "later").await;
                    sender.send(dead).await.unwrap();
                });
            }),
        )
        .layer(session_layer(db.clone()));
    assert_eq!(send(&app, "/").await.status(), StatusCode::OK);
    let error = Error::of(&done.recv().await.unwrap()).unwrap();
    assert!(error.is_session_closed());
    assert!(
        error.to_string().contains("session.pool()"),
        "the way out: {error}"
    );
    assert_whole(&test, &db, 1).await;
    assert_eq!(count_items(&db, "later").await, 1);
}

#[tokio::test]
async fn g2_middleware_and_handler_share_one_session() {
    async fn first(request: Request<Body>, next: Next) -> Result<Response, Failed> {
        let (mut parts, body) = request.into_parts();
        let session: DbSession = DbSession::from_request_parts(&mut parts, &())
            .await
            .unwrap();
        let before = mark(&session).await;
        let mut response = next.run(Request::from_parts(parts, body)).await;
        assert_eq!(
            mark(&session).await,
            before,
            "alive until the answer has left the layer"
        );
        response.headers_mut().insert("pid", before.into());
        Ok(response)
    }
    for kind in [Kind::Postgres, Kind::MySql] {
        let test = TestDb::new(kind).await;
        let db = test.connect(3).await;
        let app = Router::new()
            .route(
                "/",
                get(async |session: DbSession| mark(&session).await.to_string()),
            )
            .layer(from_fn(first))
            .layer(session_layer(db.clone()));
        for answer in join_all((0..10).map(|_| send(&app, "/"))).await {
            let pid = answer.headers()["pid"].to_str().unwrap().to_owned();
            assert_eq!(text(answer).await, pid);
        }
        assert_whole(&test, &db, 3).await;
    }
}

#[tokio::test]
async fn two_databases_are_distinguished_by_their_tags() {
    let (main, other) = (
        TestDb::new(Kind::SqliteMemory).await,
        TestDb::new(Kind::SqliteFile).await,
    );
    let (main_db, other_db) = (main.connect(1).await, other.connect(1).await);
    let app = Router::new()
        .route(
            "/",
            get(
                async |session: DbSession, analytics: DbSession<Analytics>| {
                    insert_item(&session, "main").await;
                    let tx = analytics.begin().await.unwrap();
                    insert_item(&tx, "analytics").await;
                    tx.commit().await.unwrap();
                },
            ),
        )
        .layer(session_layer(main_db.clone()))
        .layer(DbSessionLayer::<Analytics>::tagged(session_pool(
            other_db.clone(),
        )));
    assert_eq!(send(&app, "/").await.status(), StatusCode::OK);
    for (test, db, present, absent) in [
        (&main, &main_db, "main", "analytics"),
        (&other, &other_db, "analytics", "main"),
    ] {
        assert_whole(test, db, 1).await;
        assert_eq!(count_items(db, present).await, 1);
        assert_eq!(count_items(db, absent).await, 0);
    }
}

#[tokio::test]
async fn misuse_panics_in_the_callers_line_or_is_an_error() {
    let disconnected = DatabaseConnection::default;
    let text = panics_here(|| drop(DbSessionLayer::new(disconnected())));
    assert!(text.contains("disconnected"), "{text}");
    panics_here(|| drop(SessionPool::new(disconnected())));
    panics_here(|| drop(SessionPool::from(disconnected())));
    assert!(
        SessionPool::builder(disconnected())
            .build()
            .unwrap_err()
            .to_string()
            .contains("disconnected")
    );
    assert!(
        DbSessionLayer::try_new(disconnected())
            .unwrap_err()
            .to_string()
            .contains("disconnected")
    );
    assert!(
        SessionPool::try_new(disconnected())
            .unwrap_err()
            .to_string()
            .contains("disconnected")
    );

    let test = TestDb::new(Kind::SqliteMemory).await;
    let db = test.connect(1).await;
    for reserve in [1, 9, u32::MAX] {
        let error = SessionPool::builder(db.clone())
            .reserved_connections(reserve)
            .build()
            .unwrap_err();
        assert!(
            error.to_string().contains("reserved_connections"),
            "{error}"
        );
    }
}

/// The text of the panic of `misuse`, which names the line that this is called in.
#[track_caller]
fn panics_here(misuse: impl FnOnce()) -> String {
    static SEEN: Mutex<Option<(String, String)>> = Mutex::new(None);
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let here = Location::caller();
    let one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (mine, others) = (thread::current().id(), Arc::new(std::panic::take_hook()));
    let before = others.clone();
    std::panic::set_hook(Box::new(move |info| {
        if thread::current().id() == mine {
            let place = info
                .location()
                .map(|place| format!("{}:{}", place.file(), place.line()))
                .unwrap_or_default();
            let text = info.payload_as_str().unwrap_or_default().to_owned();
            *SEEN.lock().unwrap_or_else(PoisonError::into_inner) = Some((place, text));
        } else {
            before(info);
        }
    }));
    let panicked = catch_unwind(AssertUnwindSafe(misuse));
    std::panic::set_hook(Box::new(move |info| others(info)));
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner).take();
    drop(one);
    assert!(panicked.is_err(), "no panic");
    let (place, text) = seen.unwrap();
    assert_eq!(place, format!("{}:{}", here.file(), here.line()));
    text
}
