//! A request's own transaction: what commits it, what does not, and what the client is told.

use axum::{Router, body::Body, extract::Path, routing::get};
use http::{Request, StatusCode};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, Outcome};

use crate::support::{
    database::{Kind, TestDb, count_items, insert_item},
    pool::assert_whole,
};

#[tokio::test]
async fn a_handler_with_a_dbtx_commits_below_400_and_rolls_back_otherwise() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let app = Router::new()
            .route(
                "/{status}",
                get(async |Path(status): Path<u16>, tx: DbTx, db: DbSession| {
                    insert_item(&tx, &format!("a{status}")).await;
                    insert_item(&db, &format!("b{status}")).await;
                    StatusCode::from_u16(status).unwrap()
                }),
            )
            .layer(DbSessionLayer::new(db.clone()));
        for status in [200_u16, 204, 302, 400, 404, 500, 503] {
            let request = Request::get(format!("/{status}")).body(Body::empty()).unwrap();
            let response = app.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status().as_u16(), status);
            let outcome = response.extensions().get::<Outcome>().unwrap();
            assert_eq!((outcome.is_committed(), outcome.is_rolled_back()), (status < 400, status >= 400));
            for row in ["a", "b"] {
                assert_eq!(
                    count_items(&db, &format!("{row}{status}")).await,
                    i64::from(status < 400),
                    "{kind:?} {status}"
                );
            }
        }
        assert_whole(&test, &db, 2).await;
    }
}
