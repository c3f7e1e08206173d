//! A retry layer inside a session's layer would repeat work within that session: it is refused.

use axum::{Router, body::Body, handler::Handler, routing::any};
use http::{Request, StatusCode};
use sea_orm::ConnectionTrait;
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, Error};

use super::{Runs, app, conflict, retrying, site};
use crate::{
    log::Log,
    support::{
        database::{Kind, TestDb, insert_item, try_insert_item},
        pool::{returned, session_pool},
        requests::{Analytics, Failed},
        site::{call, outcome},
    },
};

const LINE: &str = "ERROR tower_sea_orm message=a `RetryLayer` is inside a `DbSessionLayer`";

#[tokio::test]
async fn a_retry_layer_inside_the_only_session_layer_is_refused() {
    for kind in [Kind::Postgres, Kind::SqliteFile] {
        let (log, _guard) = Log::start();
        let site = site(kind).await;
        let layer = site.layer.clone();
        let layers = [
            layer.clone(),
            layer.clone().lazy(),
            layer.clone().transaction(),
            layer.clone().lazy().transaction(),
            layer.keep_handler_errors(),
        ];
        for layer in layers {
            for answers in [200, 404, 500] {
                let handler = async move |db: DbSession| {
                    let refused = try_insert_item(&db, "none").await.unwrap_err();
                    assert_eq!(Error::of(&refused).unwrap().status(), 500, "{refused}");
                    StatusCode::from_u16(answers).unwrap()
                };
                let app = Router::new().fallback(any(handler)).layer(retrying());
                let response = call(app.layer(layer.clone())).await;
                assert_eq!(response.status(), 500);
                assert!(!response.headers().contains_key("retry-after"));
            }
            // One that asks nothing of its session is served in the wrong order as well.
            let app = Router::new().fallback(any(async || ())).layer(retrying());
            assert_eq!(call(app.layer(layer)).await.status(), 500);
        }
        // Of one kind, so many are written a second.
        assert!(log.count(LINE) >= 16, "{:?}", log.lines());
        assert_eq!(site.count("none").await, 0);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_retry_layer_between_two_session_layers_is_refused() {
    let site = site(Kind::Postgres).await;
    let other_db = TestDb::new(Kind::SqliteFile).await;
    let pool = session_pool(other_db.connect(2).await);
    let analytics = DbSessionLayer::<Analytics>::tagged(pool.clone());
    let runs = Runs::default();
    let handler = {
        let (counted, other) = (runs.clone(), site.view().clone());
        async move |db: DbSession, second: DbSession<Analytics>| {
            counted.note();
            insert_item(&db, "first").await;
            insert_item(&second, "second").await;
            conflict(&db, &other).await
        }
    };
    let (log, _guard) = Log::start();
    for (one, two) in [
        (site.layer.clone(), analytics.clone()),
        (site.layer.clone().transaction(), analytics.transaction()),
    ] {
        let app = Router::new().fallback(any(handler.clone()));
        for app in [
            app.clone()
                .layer(one.clone())
                .layer(retrying())
                .layer(two.clone()),
            app.layer(two).layer(retrying()).layer(one),
        ] {
            let response = call(app).await;
            assert_eq!(response.status(), 500);
            assert!(!response.headers().contains_key("retry-after"));
        }
    }
    assert_eq!(runs.count(), 0, "the handler is not called");
    assert!(log.count(LINE) >= 4, "{:?}", log.lines());
    assert_eq!(site.count("first").await, 0);
    returned(&pool).await;
    site.assert_whole().await;
}

/// A service for its own requests within a service: these have no session yet.
#[tokio::test]
async fn a_retry_layer_of_another_service_is_none_inside() {
    let site = site(Kind::Postgres).await;
    let (other, runs) = (site.view().clone(), Runs::default());
    let counted = runs.clone();
    let inner = app(&site, retrying(), async move |db: DbSession| {
        let tx = db.tx();
        match counted.note() {
            1 => conflict(&tx, &other).await,
            _ => Ok::<_, Failed>(()),
        }
    });
    let outer = async move |db: DbSession| {
        db.execute_unprepared("SELECT 1").await.unwrap();
        let answer = inner.oneshot(Request::new(Body::empty())).await.unwrap();
        answer.status()
    };
    let response = site.call(outer).await;
    assert_eq!((response.status(), runs.count()), (StatusCode::OK, 2));
    assert!(outcome(&response).is_autocommit());
    site.assert_whole().await;
}

/// Of two retry layers, the outer one retries, wherever the inner one is.
#[tokio::test]
async fn a_retry_layer_on_either_side_of_a_session_layer_is_one() {
    let (site, runs) = (site(Kind::Postgres).await, Runs::default());
    let (other, counted) = (site.view().clone(), runs.clone());
    let handler = async move |db: tower_sea_orm::DbTx| match counted.note() {
        1 => conflict(&db, &other).await,
        _ => Ok::<_, Failed>(()),
    };
    let app = served(handler).layer(retrying());
    let app = app.layer(site.layer.clone()).layer(retrying());
    assert_eq!(call(app).await.status(), StatusCode::OK);
    assert_eq!(runs.count(), 2);
    site.assert_whole().await;
}

fn served<H: Handler<T, ()>, T: 'static>(handler: H) -> Router {
    Router::new().fallback(any(handler))
}
