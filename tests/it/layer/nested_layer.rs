//! G2, G14: a session layer inside another one. Its settings hold for the requests that reach it, and it never
//! lets a handler run on another database than its own.

use axum::{Router, body::Body, response::Response, routing::get};
use http::{Request, StatusCode};
use sea_orm::{ConnectionTrait, DbBackend, IsolationLevel, Statement, TransactionOptions};
use tower::{Layer, ServiceExt};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, Outcome, SessionPool, TransactionLayer};

use crate::{
    log::Log,
    support::{
        database::{Kind, TestDb, insert_item},
        pool::{assert_whole, session_layer},
        requests::{Failed, send, text},
        site::{Site, call, value},
        wait::eventually,
    },
};

const FILES: [Kind; 3] = [Kind::Postgres, Kind::MySql, Kind::SqliteFile];

/// Inserts a row, then answers with an error.
async fn refuse(db: DbSession) -> StatusCode {
    insert_item(&db, "row").await;
    StatusCode::UNPROCESSABLE_ENTITY
}

fn nest(
    outer: DbSessionLayer,
    inner: DbSessionLayer,
    route: axum::routing::MethodRouter,
) -> Router {
    Router::new().route("/", route).layer(inner).layer(outer)
}

fn rolled_back(response: &Response) -> bool {
    response
        .extensions()
        .get::<Outcome>()
        .is_some_and(Outcome::is_rolled_back)
}

fn insert(kind: Kind, name: &str) -> Statement {
    Statement::from_sql_and_values(
        kind.backend(),
        if kind == Kind::Postgres {
            "INSERT INTO item (name) VALUES ($1)"
        } else {
            "INSERT INTO item (name) VALUES (?)"
        },
        [name.into()],
    )
}

#[tokio::test]
async fn an_inner_layers_transaction_wins_over_the_outer_layers() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let outers: [fn(DbSessionLayer) -> DbSessionLayer; 2] =
            [|layer| layer, DbSessionLayer::lazy];
        let inners: [fn(DbSessionLayer) -> DbSessionLayer; 4] = [
            DbSessionLayer::transaction,
            |layer| layer.lazy().transaction(),
            |layer| layer.transaction_if(|_| true),
            |layer| {
                layer.transaction_with(TransactionOptions {
                    isolation_level: Some(IsolationLevel::Serializable),
                    ..Default::default()
                })
            },
        ];
        for (n, outer) in outers.into_iter().enumerate() {
            for (m, inner) in inners.into_iter().enumerate() {
                let app = nest(
                    outer(site.layer.clone()),
                    inner(site.layer.clone()),
                    get(refuse),
                );
                let response = call(app).await;
                assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
                assert!(rolled_back(&response), "{kind:?} {n} {m}");
                assert_eq!(site.count("row").await, 0, "{kind:?} {n} {m}");
            }
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn an_inner_layer_without_settings_keeps_the_outer_transaction() {
    let site = Site::new(Kind::SqliteFile).await;
    let app = nest(
        site.layer.clone().transaction(),
        session_layer(site.db.clone()),
        get(refuse),
    );
    assert!(rolled_back(&call(app).await));
    assert_eq!(site.count("row").await, 0);
    let site = Site::new(Kind::Postgres).await;
    let inner = site
        .layer
        .clone()
        .on_begin(|_| vec![Statement::from_string(DbBackend::Postgres, "SELECT 1")]);
    let outer = site.layer.clone().transaction_with(TransactionOptions {
        isolation_level: Some(IsolationLevel::Serializable),
        ..Default::default()
    });
    let app = nest(
        outer,
        inner,
        get(async |db: DbSession| value::<String>(&db, "SHOW transaction_isolation").await),
    );
    let body = axum::body::to_bytes(call(app).await.into_body(), 100)
        .await
        .unwrap();
    assert_eq!(body, "serializable", "a set-up alone changes no options");
}

#[tokio::test]
async fn an_inner_layers_set_up_runs_after_the_outer_layers() {
    for kind in FILES {
        let site = Site::new(kind).await;
        for lazy in [false, true] {
            let outer = site
                .layer
                .clone()
                .on_begin(move |_| vec![insert(kind, "outer")]);
            let outer = if lazy { outer.lazy() } else { outer };
            let inner = site
                .layer
                .clone()
                .on_begin(move |_| vec![insert(kind, "inner")]);
            let inner = inner.on_acquire(move |_| vec![insert(kind, "acquired")]);
            let route = get(async |db: DbSession| {
                insert_item(&db, "handler").await;
                let names = ["outer", "inner", "handler"];
                let mut ids = Vec::new();
                for name in names {
                    let sql = format!("SELECT CAST(id AS integer) FROM item WHERE name = '{name}'");
                    let sql = if db.backend() == DbBackend::MySql {
                        sql.replace("integer", "signed")
                    } else {
                        sql
                    };
                    let row = db
                        .query_one_raw(Statement::from_string(db.backend(), sql))
                        .await
                        .unwrap()
                        .unwrap();
                    let id = row.try_get_by_index::<i32>(0).map(i64::from);
                    ids.push(id.or_else(|_| row.try_get_by_index::<i64>(0)).unwrap());
                }
                if ids.is_sorted() {
                    StatusCode::IM_A_TEAPOT
                } else {
                    StatusCode::CONFLICT
                }
            });
            let response = call(nest(outer, inner, route)).await;
            assert_eq!(response.status(), StatusCode::IM_A_TEAPOT, "{kind:?}");
            assert_eq!(
                site.seen(["outer", "inner", "handler", "acquired"]).await,
                [false, false, false, true]
            );
            site.run("DELETE FROM item").await;
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn settings_that_come_too_late_are_refused() {
    let kind = Kind::Postgres;
    let site = Site::new(kind).await;
    /// Runs a statement before the inner layer is there.
    async fn early(
        db: DbSession,
        request: axum::extract::Request,
        next: axum::middleware::Next,
    ) -> Response {
        db.ping().await.unwrap();
        db.execute_unprepared("SELECT 1").await.unwrap();
        next.run(request).await
    }
    let other = TransactionOptions {
        isolation_level: Some(IsolationLevel::Serializable),
        ..Default::default()
    };
    let late: [(DbSessionLayer, DbSessionLayer, bool); 5] = [
        (
            site.layer.clone().transaction(),
            site.layer.clone().transaction_with(other),
            true,
        ),
        (
            site.layer.clone().transaction(),
            site.layer
                .clone()
                .on_begin(move |_| vec![insert(kind, "set up")]),
            true,
        ),
        (
            site.layer.clone(),
            site.layer
                .clone()
                .on_acquire(move |_| vec![insert(kind, "set up")]),
            true,
        ),
        (site.layer.clone(), site.layer.clone().transaction(), false),
        (
            site.layer.clone().transaction(),
            site.layer.clone().transaction(),
            false,
        ),
    ];
    for (n, (outer, inner, refused)) in late.into_iter().enumerate() {
        let app = Router::new()
            .route("/", get(refuse))
            .layer(inner)
            .layer(axum::middleware::from_fn(early))
            .layer(outer);
        let status = call(app).await.status();
        let expected = if refused {
            StatusCode::INTERNAL_SERVER_ERROR
        } else {
            StatusCode::UNPROCESSABLE_ENTITY
        };
        assert_eq!(status, expected, "{n}");
        assert_eq!(site.seen(["row", "set up"]).await, [false, false], "{n}");
    }
    site.assert_whole().await;
}

#[tokio::test]
async fn an_eager_layer_inside_a_lazy_one_acquires_before_its_handler() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let route = get(async |db: DbSession| db.pool().status().used.to_string());
        let app = nest(site.layer.clone().lazy(), site.layer.clone(), route.clone());
        let body = axum::body::to_bytes(call(app).await.into_body(), 100)
            .await
            .unwrap();
        assert_eq!(body, "1", "{kind:?}");
        site.assert_whole().await;
        eventually("nothing is on its way back", async || {
            site.layer.pool().status().used == 0
        })
        .await;
        let app = nest(site.layer.clone().lazy(), site.layer.clone().lazy(), route);
        let body = axum::body::to_bytes(call(app).await.into_body(), 100)
            .await
            .unwrap();
        assert_eq!(body, "0", "{kind:?}");
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn an_inner_layers_commit_when_decides() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        for (commits, count) in [(true, 1), (false, 0)] {
            let inner = site.layer.clone().commit_when(move |_| commits);
            call(nest(
                site.layer.clone().transaction(),
                inner.clone(),
                get(refuse),
            ))
            .await;
            assert_eq!(site.count("row").await, count, "{kind:?}");
            site.run("DELETE FROM item").await;
            let accept = get(async |db: DbSession| insert_item(&db, "row").await);
            call(nest(site.layer.clone().lazy().transaction(), inner, accept)).await;
            assert_eq!(site.count("row").await, count, "{kind:?}");
            site.run("DELETE FROM item").await;
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_route_and_a_tx_argument_inside_both_layers_decide() {
    let site = Site::new(Kind::SqliteFile).await;
    let route = get(refuse).layer(TransactionLayer::autocommit());
    call(nest(
        site.layer.clone(),
        site.layer.clone().transaction(),
        route,
    ))
    .await;
    assert_eq!(site.count("row").await, 1);
    site.run("DELETE FROM item").await;
    let route = get(async |tx: DbTx| {
        insert_item(&tx, "row").await;
        StatusCode::BAD_REQUEST
    });
    call(nest(
        site.layer.clone(),
        session_layer(site.db.clone()).lazy(),
        route,
    ))
    .await;
    assert_eq!(site.count("row").await, 0);
    site.assert_whole().await;
}

#[tokio::test]
async fn a_layer_over_another_database_under_the_same_tag_is_refused() {
    enum Analytics {}
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let other = TestDb::new(kind).await;
        let other_db = other.connect(2).await;
        let inners = [
            session_layer(other_db.clone()),
            session_layer(other_db.clone()).lazy(),
            session_layer(other_db.clone()).transaction(),
            session_layer(other_db.clone()).on_begin(move |_| vec![insert(kind, "set up")]),
        ];
        for inner in inners {
            for outer in [
                site.layer.clone(),
                site.layer.clone().lazy(),
                site.layer.clone().transaction(),
            ] {
                let (log, _guard) = Log::start();
                let response = call(nest(outer, inner.clone(), get(refuse))).await;
                assert_eq!(
                    response.status(),
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "{kind:?}"
                );
                let lines = log.lines();
                let told = lines
                    .iter()
                    .find(|line| line.starts_with("ERROR"))
                    .expect("a line");
                assert!(
                    told.contains("another pool")
                        && told.contains("tower_sea_orm")
                        && told.contains("DefaultDatabase"),
                    "{told}"
                );
            }
        }
        assert_eq!(site.count("row").await, 0, "{kind:?}");
        // With a tag of its own, it is another session.
        let tagged =
            DbSessionLayer::<Analytics>::tagged(session_layer(other_db.clone()).pool().clone());
        let app = Router::new()
            .route(
                "/",
                get(async |db: DbSession, other: DbSession<Analytics>| {
                    insert_item(&db, "here").await;
                    insert_item(&other, "there").await;
                }),
            )
            .layer(tagged)
            .layer(site.layer.clone());
        assert_eq!(call(app).await.status(), StatusCode::OK);
        assert_eq!(site.seen(["here", "there"]).await, [true, false]);
        site.assert_whole().await;
        assert_whole(&other, &other_db, 2).await;
    }
}

#[tokio::test]
async fn a_dead_sessions_copy_in_a_new_request_is_no_outer_session() {
    let site = Site::new(Kind::SqliteFile).await;
    let app = site.app(async |db: DbSession| insert_item(&db, "again").await);
    let kept = std::sync::Arc::new(std::sync::Mutex::new(None));
    let keep = kept.clone();
    call(site.app(async move |db: DbSession| *keep.lock().unwrap() = Some(db))).await;
    let mut request = Request::new(Body::empty());
    let dead: DbSession = kept.lock().unwrap().take().unwrap();
    request.extensions_mut().insert(dead);
    let response = site.layer.layer(app).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(site.count("again").await, 1);
    site.assert_whole().await;
}

#[tokio::test]
async fn a_nested_layer_reuses_the_session() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let db = test.connect(1).await;
    let layer = session_layer(db.clone());
    let app = Router::new()
        .route(
            "/",
            get(async |session: DbSession, pool: SessionPool| {
                session.ping().await?;
                Ok::<_, Failed>(pool.status().used.to_string())
            }),
        )
        .layer(layer.clone())
        .layer(layer.clone())
        .layer(layer);
    // With one connection in all, a second session could not be had.
    let answer = send(&app, "/").await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(text(answer).await, "1");
    assert_whole(&test, &db, 1).await;
}
