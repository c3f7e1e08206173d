//! G7: `on_begin` prepares each transaction, and no statement runs without it.

use http::{Request, StatusCode, request::Parts};
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbTx};

use crate::support::{
    database::{Kind, insert_item},
    requests::text,
    site::value,
    world::{World, inserting, outcome, post, serve},
};

const TENANT: &str = "SELECT coalesce(current_setting('app.tenant', true), '')";

/// Sets the tenant that the request names, until the end of the transaction.
fn tenant(parts: &Parts) -> Vec<Statement> {
    let tenant = parts
        .headers
        .get("x-tenant")
        .map(|tenant| tenant.to_str().unwrap().to_owned());
    let sql = "SELECT set_config('app.tenant', $1, true)";
    vec![Statement::from_sql_and_values(
        DbBackend::Postgres,
        sql,
        [tenant.unwrap_or_default().into()],
    )]
}

#[tokio::test]
async fn settings_of_on_begin_last_exactly_as_long_as_each_transaction() {
    let world = World::new(Kind::Postgres, 1).await;
    let app = serve(async |db: DbSession| {
        let mut seen = vec![value::<String>(&db, TENANT).await];
        insert_item(&db, "kept").await;
        db.commit().await.unwrap();
        seen.push(value(&db, TENANT).await);
        db.rollback().await.unwrap();
        db.release().await.unwrap();
        seen.push(value(&db, TENANT).await);
        seen.join(" ")
    });
    for lazy in [false, true] {
        let layer = world.layer().on_begin(tenant);
        let app = app.clone().layer(if lazy { layer.lazy() } else { layer });
        // A value that would be more than one inside of the SQL.
        for tenant in ["blue", "o'hara'; DROP TABLE item; --", ""] {
            let request = Request::get("/")
                .header("x-tenant", tenant)
                .body(axum::body::Body::empty())
                .unwrap();
            let response = app.clone().oneshot(request).await.unwrap();
            assert_eq!(
                (response.status(), outcome(&response)),
                (StatusCode::OK, "committed")
            );
            assert_eq!(text(response).await, [tenant; 3].join(" "));
            // The pool's only connection.
            assert_eq!(value::<String>(&world.db, TENANT).await, "");
            world
                .view
                .execute_unprepared("DELETE FROM item")
                .await
                .unwrap();
        }
    }
    world.assert_whole().await;
}

#[tokio::test]
async fn without_its_set_up_no_statement_runs() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let app = serve(async |db: DbSession| {
            let refused = db
                .execute_unprepared("INSERT INTO item (name) VALUES ('unprepared')")
                .await;
            if refused.is_ok() {
                StatusCode::OK
            } else {
                StatusCode::FORBIDDEN
            }
        });
        let app = app.layer(world.layer().on_begin(move |_| {
            let fails = Statement::from_string(kind.backend(), "INSERT INTO missing VALUES (1)");
            vec![inserting(kind, "half"), fails]
        }));
        for _ in 0..2 {
            let response = post(&app, "/").await;
            assert_eq!(response.status(), StatusCode::FORBIDDEN, "{kind:?}");
            for name in ["half", "unprepared"] {
                assert_eq!(world.seen(name).await, 0, "{kind:?}: {name}");
            }
        }
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn a_set_up_that_failed_is_tried_again_by_the_next_statement() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        insert_item(&world.db, "in the way").await;
        let layer = world
            .layer()
            .on_begin(move |_| vec![inserting(kind, "in the way")]);
        let view = world.view.clone();
        let app = serve(async move |tx: DbTx, db: DbSession| {
            tx.execute_unprepared("INSERT INTO item (name) VALUES ('unprepared')")
                .await
                .unwrap_err();
            db.release().await.unwrap();
            view.execute_unprepared("DELETE FROM item").await.unwrap();
            insert_item(&tx, "prepared").await;
        });
        let response = post(&app.layer(layer), "/").await;
        assert_eq!(
            (response.status(), outcome(&response)),
            (StatusCode::OK, "committed"),
            "{kind:?}"
        );
        for (name, seen) in [("unprepared", 0), ("in the way", 1), ("prepared", 1)] {
            assert_eq!(world.seen(name).await, seen, "{kind:?}: {name}");
        }
        world.assert_whole().await;
    }
}
