//! G3: a response, or an error of the inner service, gives the connection back.

use axum::{
    Router,
    body::Body,
    middleware::{self, Next},
    routing::any,
};
use http::{Request, Response, StatusCode};
use sea_orm::ConnectionTrait;
use tokio::time::timeout;
use tower::{Layer, ServiceExt, service_fn};
use tower_sea_orm::DbSession;

use crate::support::{
    case::{everywhere, is_closed},
    database::{count_items, insert_item},
    requests::request,
    wait::BOUND,
};

async fn answers_with(status: StatusCode) {
    everywhere(async |case| {
        let writes = case.writes();
        let app = case.app(move |db: DbSession| async move {
            let _open = writes.write(&db).await;
            status
        });
        let answer = app.oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), status);
        assert!(case.writes.is_written());
    })
    .await;
}

#[tokio::test]
async fn an_answer_of_200_gives_the_connection_back() {
    answers_with(StatusCode::OK).await;
}

#[tokio::test]
async fn an_answer_of_404_gives_the_connection_back() {
    answers_with(StatusCode::NOT_FOUND).await;
}

#[tokio::test]
async fn an_answer_of_500_gives_the_connection_back() {
    answers_with(StatusCode::INTERNAL_SERVER_ERROR).await;
}

#[tokio::test]
async fn an_open_transaction_is_rolled_back_before_the_response() {
    everywhere(async |case| {
        let writes = case.writes();
        let app = case.app(move |db: DbSession| async move { drop(writes.write(&db).await) });
        let answer = app.oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        // Nobody but a waiting write could tell, so one that does not wait for locks looks.
        let name = case.writes.lost.clone();
        let again = case.app(move |db: DbSession| async move { insert_item(&db, &name).await });
        let answer = timeout(BOUND, again.oneshot(request()))
            .await
            .expect("no lock is left")
            .unwrap();
        assert_eq!(
            answer.status(),
            StatusCode::OK,
            "the unique name is free again"
        );
        let observer = case.test.observer().await;
        let view = observer.as_ref().unwrap_or(&case.db);
        assert_eq!(count_items(view, &case.writes.lost).await, 1);
        view.execute_unprepared(&format!(
            "DELETE FROM item WHERE name = '{}'",
            case.writes.lost
        ))
        .await
        .unwrap();
    })
    .await;
}

/// An error with nothing in common with this crate's.
#[derive(Debug, PartialEq)]
struct Teapot(u32);

#[tokio::test]
async fn an_inner_error_passes_untouched_and_gives_the_connection_back() {
    everywhere(async |case| {
        let writes = case.writes();
        let inner = service_fn(move |request: Request<Body>| {
            let writes = writes.clone();
            async move {
                let db: DbSession =
                    DbSession::from_extensions(request.extensions()).expect("a session");
                let _open = writes.write(&db).await;
                Err::<Response<Body>, _>(Teapot(418))
            }
        });
        let error = case
            .layer
            .layer(inner)
            .oneshot(request())
            .await
            .unwrap_err();
        assert_eq!(error, Teapot(418));
    })
    .await;
}

/// A middleware that copies the request's extensions into the response.
async fn copy_extensions(request: Request<Body>, next: Next) -> Response<Body> {
    let extensions = request.extensions().clone();
    let mut response = next.run(request).await;
    response.extensions_mut().extend(extensions);
    response
}

#[tokio::test]
async fn extensions_copied_into_the_response_hold_no_connection() {
    everywhere(async |case| {
        let writes = case.writes();
        let handler = any(move |db: DbSession| async move { drop(writes.write(&db).await) });
        let copying = middleware::from_fn(copy_extensions);
        let app = Router::new()
            .route("/", handler)
            .layer(copying)
            .layer(case.layer.clone());
        let answer = app.oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        case.assert_serves().await;
        let db: DbSession = DbSession::from_extensions(answer.extensions()).expect("the copy");
        assert!(db.is_closed());
        assert!(is_closed(&db.execute_unprepared("SELECT 1").await));
    })
    .await;
}
