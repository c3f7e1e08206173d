//! One test per way out of a request: whatever happens, the pool is whole afterwards.

use axum::{Router, body::Body, routing::get};
use http::{Request, StatusCode};
use sea_orm::{ConnectionTrait, TransactionTrait};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer};

use crate::support::{
    database::{Kind, TestDb, insert_item, unique_name},
    pool::assert_whole,
};

const SIZE: u32 = 2;

#[tokio::test]
async fn ok_everywhere() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(SIZE).await;
        let app = Router::new()
            .route(
                "/",
                get(async |db: DbSession| {
                    insert_item(&db, &unique_name()).await;
                    let tx = db.begin().await.unwrap();
                    insert_item(&tx, &unique_name()).await;
                    tx.commit().await.unwrap();
                    let tx = db.begin().await.unwrap();
                    insert_item(&tx, &unique_name()).await;
                    drop(tx);
                    db.execute_unprepared("SELECT 1").await.unwrap();
                }),
            )
            .route_layer(DbSessionLayer::new(db.clone()));
        for _ in 0..10 {
            let response = app.clone().oneshot(Request::new(Body::empty())).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
        }
        assert_whole(&test, &db, SIZE).await;
    }
}
