//! G13: the example `row_level_security`: no request sees or changes another tenant's rows, whatever
//! happened on its connection before, and a request without a tenant sees none.

use std::time::Duration;

use axum::{Router, body::Body, extract::Path, routing::get};
use futures_util::{FutureExt, TryStreamExt, future::join_all};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement, StreamTrait,
    TransactionTrait,
    sqlx::{self, Executor},
};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_sea_orm::{DbSession, Error, SessionPool, TransactionLayer};

use crate::support::{
    database::{Kind, TestDb},
    futures::drop_at,
    pool::assert_whole,
    wait::{BOUND, eventually},
    wire::Proxy,
};

#[allow(dead_code, reason = "a test does not call main")]
#[path = "../../../examples/row_level_security.rs"]
mod example;

const TENANTS: &str = "SELECT DISTINCT tenant FROM note ORDER BY tenant";

/// The example on a private database, in which "red" and "blue" have a note each.
struct Service {
    test: TestDb,
    pool: SessionPool,
    size: u32,
    /// A superuser, who sees everything.
    observer: DatabaseConnection,
}

impl Service {
    async fn new(size: u32) -> Self {
        Self::via(size, None).await
    }

    async fn via(size: u32, proxy: Option<&Proxy>) -> Self {
        let test = TestDb::new(Kind::Postgres).await;
        let url = proxy.map_or_else(|| test.url().to_owned(), |proxy| proxy.url(test.url()));
        example::set_up(test.options(1)).await.unwrap();
        let pool = example::connect(test.options_at(&url, size)).await.unwrap();
        let observer = test.observer().await.unwrap();
        for sql in [
            "INSERT INTO note (tenant, text) VALUES ('red', 'r'), ('blue', 'b')",
            // What the check of the pool writes to.
            "GRANT ALL ON item, item_id_seq TO notes_app",
        ] {
            observer.execute_unprepared(sql).await.unwrap();
        }
        Self {
            test,
            pool,
            size,
            observer,
        }
    }

    fn app(&self) -> Router {
        example::app(self.pool.clone())
    }

    fn routes(&self, routes: Router) -> Router {
        example::protected(routes, self.pool.clone())
    }

    /// The notes that there really are, as `tenant text`.
    async fn notes(&self) -> Vec<String> {
        texts(
            &self.observer,
            "SELECT tenant || ' ' || text FROM note ORDER BY 1",
        )
        .await
        .unwrap()
    }

    /// Asserts that nothing of a tenant is left on any connection.
    async fn assert_isolated(&self, after: &str) {
        let session = self.pool.session().await.unwrap();
        assert_eq!(
            texts(&*session, TENANTS).await.unwrap(),
            [""; 0],
            "outside of a request, after {after}"
        );
        drop(session);
        for tenant in ["red", "blue"] {
            let app =
                self.routes(Router::new().route("/", get(async |db: DbSession| see(&db).await)));
            let (status, seen) = send(&app, tenant, "/").await;
            assert_eq!(
                (status, seen.as_str()),
                (StatusCode::OK, tenant),
                "after {after}"
            );
        }
        let session = self.pool.session().await.unwrap();
        assert_eq!(
            see(&*session).await,
            "",
            "outside of a request, after {after} and two tenants"
        );
        let notes = self.notes().await;
        assert!(
            ["blue b", "red r"]
                .iter()
                .all(|note| notes.iter().any(|n| n == note)),
            "after {after}: {notes:?}"
        );
    }

    async fn assert_whole(&self) {
        assert_whole(&self.test, self.pool.database(), self.size).await;
        eventually("no session is out", async || self.pool.status().used == 0).await;
    }
}

async fn texts<C: ConnectionTrait>(db: &C, sql: &str) -> Result<Vec<String>, DbErr> {
    let rows = db
        .query_all_raw(Statement::from_string(DbBackend::Postgres, sql))
        .await?;
    rows.iter().map(|row| row.try_get_by_index(0)).collect()
}

/// Returns the tenants whose notes are visible.
async fn see<C: ConnectionTrait>(db: &C) -> String {
    texts(db, TENANTS).await.unwrap().join(" ")
}

fn request(tenant: &str, path: &str) -> Request<Body> {
    Request::get(path)
        .header("x-tenant", tenant)
        .body(Body::empty())
        .unwrap()
}

async fn answer(app: &Router, request: Request<Body>) -> (StatusCode, String) {
    let response = timeout(BOUND, app.clone().oneshot(request))
        .await
        .unwrap()
        .unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.into()).unwrap())
}

async fn send(app: &Router, tenant: &str, path: &str) -> (StatusCode, String) {
    answer(app, request(tenant, path)).await
}

async fn create(app: &Router, tenant: &str, text: &str) -> (StatusCode, String) {
    let body = serde_json::json!({ "text": text }).to_string();
    let request = Request::post("/notes")
        .header("x-tenant", tenant)
        .header("content-type", "application/json");
    answer(app, request.body(body.into()).unwrap()).await
}

#[tokio::test]
async fn a_tenant_sees_its_own_notes_and_no_others() {
    let service = Service::new(2).await;
    let app = service.app();
    let (status, note) = create(&app, "red", "paint").await;
    assert_eq!(status, StatusCode::CREATED);
    let note: serde_json::Value = serde_json::from_str(&note).unwrap();
    assert_eq!(
        (&note["tenant"], &note["text"]),
        (&"red".into(), &"paint".into())
    );
    assert_eq!(
        service.notes().await,
        ["blue b", "red paint", "red r"],
        "before anybody reads it"
    );

    let path = format!("/notes/{}", note["id"]);
    assert_eq!(send(&app, "red", &path).await.0, StatusCode::OK);
    assert_eq!(send(&app, "blue", &path).await.0, StatusCode::NOT_FOUND);
    let (_, list) = send(&app, "blue", "/notes").await;
    assert!(list.contains("\"b\"") && !list.contains("red"), "{list}");
    // The name is a value: it is nobody's, and does nothing.
    for name in ["red' OR true --", "x'; RESET ROLE; --", "%", "''"] {
        assert_eq!(
            send(&app, name, "/notes").await,
            (StatusCode::OK, "[]".to_owned()),
            "{name}"
        );
    }
    service.assert_isolated("reading").await;
    service.assert_whole().await;
}

#[tokio::test]
async fn a_tenant_cannot_change_or_plant_a_note_of_another_by_any_sql() {
    let service = Service::new(1).await;
    for (sql, done) in [
        ("UPDATE note SET text = 'r' WHERE tenant <> 'red'", Some(0)),
        ("UPDATE note SET text = 'r'", Some(1)),
        ("DELETE FROM note WHERE tenant = 'blue'", Some(0)),
        ("SELECT 1 FROM note FOR UPDATE", Some(1)),
        ("UPDATE note SET tenant = 'blue'", None),
        (
            "INSERT INTO note (tenant, text) VALUES ('blue', 'planted')",
            None,
        ),
        (
            "INSERT INTO note (tenant, text) VALUES ('', 'planted')",
            None,
        ),
        ("TRUNCATE note", None),
        ("ALTER TABLE note DISABLE ROW LEVEL SECURITY", None),
        ("SET LOCAL row_security = off; DELETE FROM note", None),
    ] {
        let run = async move |db: DbSession| match db.execute_unprepared(sql).await {
            Ok(result) => Ok(result.rows_affected().to_string()),
            Err(_) => Err(StatusCode::FORBIDDEN),
        };
        let app = service.routes(Router::new().route("/", get(run)));
        let (status, affected) = send(&app, "red", "/").await;
        match done {
            Some(rows) => assert_eq!(
                (status, affected),
                (StatusCode::OK, rows.to_string()),
                "{sql}"
            ),
            None => assert_eq!(status, StatusCode::FORBIDDEN, "{sql}"),
        }
        assert_eq!(service.notes().await, ["blue b", "red r"], "{sql}");
        service.assert_isolated(sql).await;
    }
    service.assert_whole().await;
}

#[tokio::test]
async fn a_request_without_a_tenant_is_refused_without_a_statement() {
    let test = TestDb::new(Kind::Postgres).await;
    let port = test
        .url()
        .rsplit_once(':')
        .unwrap()
        .1
        .split_once('/')
        .unwrap()
        .0
        .parse()
        .unwrap();
    let proxy = Proxy::start(port).await;
    let service = Service::via(2, Some(&proxy)).await;
    proxy.reset_count();
    let app = service.app();
    for path in ["/notes", "/notes/1"] {
        let bare = Request::get(path).body(Body::empty()).unwrap();
        assert_eq!(answer(&app, bare).await.0, StatusCode::UNAUTHORIZED);
        let odd = Request::get(path)
            .header("x-tenant", [0xFF].as_slice())
            .body(Body::empty())
            .unwrap();
        assert_eq!(answer(&app, odd).await.0, StatusCode::UNAUTHORIZED);
        assert_eq!(send(&app, "", path).await.0, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(proxy.requests(), 0, "round trips");
    assert_eq!(send(&app, "red", "/notes").await.0, StatusCode::OK);
    assert!(proxy.requests() > 0, "a tenant's request is seen here");
    service.assert_whole().await;
}

/// Does in one session all that can be done, and returns what was seen at each turn.
async fn turns(db: &DbSession) -> Result<Vec<(&'static str, String)>, DbErr> {
    let mut seen = vec![("the first statement", see(db).await)];
    let outer = db.begin().await?;
    seen.push(("a nested transaction", see(&outer).await));
    let inner = outer.begin().await?;
    seen.push(("one inside of that", see(&inner).await));
    inner.rollback().await?;
    seen.push(("its rollback", see(&outer).await));
    outer
        .execute_unprepared("INSERT INTO nowhere VALUES (1)")
        .await
        .unwrap_err();
    drop(outer);
    seen.push(("a failed one that was dropped", see(db).await));
    let rows = db
        .stream_raw(Statement::from_string(DbBackend::Postgres, TENANTS))
        .await?;
    let rows: Vec<String> = rows
        .and_then(async |row| row.try_get_by_index(0))
        .try_collect()
        .await?;
    seen.push(("a stream", rows.join(" ")));
    seen.push(("a raw closure", raw(db).await?));
    db.commit().await?;
    seen.push(("an early commit", see(db).await));
    db.rollback().await?;
    seen.push(("an early rollback", see(db).await));
    db.commit().await?;
    seen.push(("a commit, in a raw closure", raw(db).await?));
    db.commit().await?;
    let transaction = db.begin().await?;
    seen.push(("a commit, in a nested transaction", see(&transaction).await));
    transaction.commit().await?;
    db.commit().await?;
    db.release().await?;
    seen.push(("release", see(db).await));
    let within = db
        .transaction_async(async |tx| Ok::<_, DbErr>(see(tx).await))
        .await;
    seen.push(("transaction_async", within.unwrap()));
    Ok(seen)
}

async fn raw(db: &DbSession) -> Result<String, DbErr> {
    let seen = db.with_postgres(|connection| {
        sqlx::query_scalar::<_, String>(TENANTS)
            .fetch_all(connection)
            .map(Result::unwrap)
            .boxed()
    });
    seen.await.map(|tenants| tenants.join(" "))
}

#[tokio::test]
async fn the_tenant_stays_in_force_at_every_turn_within_a_request() {
    let service = Service::new(1).await;
    let app = service.routes(Router::new().route(
        "/{tenant}",
        get(async |db: DbSession, Path(tenant): Path<String>| {
            for (turn, seen) in turns(&db).await.unwrap() {
                assert_eq!(seen, tenant, "{turn}");
            }
        }),
    ));
    for tenant in ["red", "blue", "red"] {
        assert_eq!(
            send(&app, tenant, &format!("/{tenant}")).await.0,
            StatusCode::OK
        );
        service.assert_isolated("all turns").await;
    }
    service.assert_whole().await;
}

/// The ways in which a request's work ends; all of them saw only the tenant's notes.
const ENDS: [&str; 10] = [
    "nothing",
    "commit",
    "rollback",
    "release",
    "open",
    "refused",
    "error",
    "failed",
    "a raw COMMIT",
    "a raw closure that ended the transaction and began another one",
];

async fn end(db: &DbSession, how: &str) -> Result<StatusCode, DbErr> {
    let insert = "INSERT INTO note (text) VALUES ('t')";
    db.execute_unprepared(insert).await?;
    match how {
        "commit" => db.commit().await?,
        "rollback" => db.rollback().await?,
        "release" => {
            db.commit().await?;
            db.release().await?;
        }
        // A handle that outlives the request.
        "open" => drop(tokio::spawn({
            let transaction = db.begin().await?;
            async move { transaction.execute_unprepared(insert).await.map(drop) }
        })),
        "refused" => return Ok(StatusCode::CONFLICT),
        "error" => db.execute_unprepared("SELECT 1 / 0").await.map(drop)?,
        "failed" => drop(db.execute_unprepared("SELECT 1 / 0").await),
        "a raw COMMIT" => drop(
            db.with_postgres(|c| c.execute("COMMIT").map(drop).boxed())
                .await?,
        ),
        _ if how.starts_with("a raw") => drop(
            db.with_postgres(|c| {
                c.execute("COMMIT; BEGIN; SELECT set_config('app.x', 'y', true)")
                    .map(drop)
                    .boxed()
            })
            .await?,
        ),
        _ => {}
    }
    Ok(StatusCode::OK)
}

#[tokio::test]
async fn after_any_end_the_next_request_on_the_connection_has_its_tenant() {
    for how in ENDS {
        let service = Service::new(1).await;
        let run = async move |db: DbSession| {
            end(&db, how)
                .await
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
        };
        let app = service.routes(Router::new().route("/", get(run)));
        for tenant in ["red", "blue"] {
            let (status, _) = send(&app, tenant, "/").await;
            let fails =
                ["open", "refused", "error", "failed"].contains(&how) || how.starts_with("a raw");
            assert_eq!(status.is_success(), !fails, "{how}: {status}");
            service.assert_isolated(how).await;
        }
        service.assert_whole().await;
    }
}

#[tokio::test]
async fn a_request_dropped_at_any_point_leaves_no_tenant_behind() {
    let test = TestDb::new(Kind::Postgres).await;
    let port = test
        .url()
        .rsplit_once(':')
        .unwrap()
        .1
        .split_once('/')
        .unwrap()
        .0
        .parse()
        .unwrap();
    let proxy = Proxy::start(port).await;
    let service = Service::via(1, Some(&proxy)).await;
    let run = async |db: DbSession| drop(turns(&db).await.unwrap());
    let app = service.routes(Router::new().route("/", get(run)));
    proxy.delay_replies(Duration::from_micros(500));
    let mut completed = false;
    for pendings in 1..400 {
        let dropped = drop_at(pendings, app.clone().oneshot(request("red", "/"))).await;
        completed = dropped.is_some();
        service.assert_isolated(&format!("{pendings} polls")).await;
        if completed {
            break;
        }
    }
    assert!(completed, "there are more points to drop a request at");
    proxy.delay_replies(Duration::ZERO);
    service.assert_whole().await;
}

#[tokio::test]
async fn tenants_at_the_same_time_do_not_see_each_other() {
    let service = Service::new(3).await;
    let app = service.app();
    let tenants: Vec<String> = (0..8).map(|n| format!("tenant{n}")).collect();
    let all = tenants.iter().map(async |tenant| {
        for round in 0..20 {
            let (status, _) = create(&app, tenant, &format!("note {round}")).await;
            assert_eq!(status, StatusCode::CREATED);
            // Some leave in the middle.
            let leaves = drop_at(
                1 + round % 7,
                app.clone().oneshot(request(tenant, "/notes")),
            )
            .await;
            drop(leaves);
            let (_, notes) = send(&app, tenant, "/notes").await;
            let notes: Vec<serde_json::Value> = serde_json::from_str(&notes).unwrap();
            assert_eq!(notes.len(), round + 1, "{tenant} sees all of its own");
            assert!(
                notes.iter().all(|note| note["tenant"] == tenant.as_str()),
                "{tenant} sees {notes:?}"
            );
        }
    });
    join_all(all).await;
    service
        .observer
        .execute_unprepared("DELETE FROM note WHERE tenant LIKE 'tenant%'")
        .await
        .unwrap();
    service.assert_isolated("many tenants").await;
    service.assert_whole().await;
}

#[tokio::test]
async fn without_a_request_no_row_is_visible() {
    let service = Service::new(1).await;
    service.assert_isolated("nothing").await;
    // As often as there are ways to a connection, and after a tenant was on it.
    assert_eq!(see(service.pool.database()).await, "");
    let seen = service
        .pool
        .transaction(async |tx| Ok::<_, DbErr>(see(&**tx).await))
        .await;
    assert_eq!(seen.unwrap(), "");
    let session = service.pool.session().await.unwrap();
    session
        .execute_unprepared("INSERT INTO note (text) VALUES ('nobody')")
        .await
        .unwrap_err();
    session.execute_unprepared("RESET ROLE").await.unwrap();
    assert_eq!(
        see(&*session).await,
        "",
        "RESET leads back to the role that the connection began with"
    );
    drop(session);
    service.assert_whole().await;
}

#[tokio::test]
async fn a_streamed_body_has_its_tenant_until_its_end() {
    let service = Service::new(1).await;
    let run = async |db: DbSession| {
        let rows = db
            .rows(Statement::from_string(DbBackend::Postgres, TENANTS))
            .await
            .unwrap();
        let rows = rows.and_then(async |row| row.try_get_by_index::<String>(0));
        Body::new(db.hold_until_body_end(Body::from_stream(rows)))
    };
    let app = service.routes(Router::new().route("/", get(run)));
    for tenant in ["red", "blue"] {
        assert_eq!(
            send(&app, tenant, "/").await,
            (StatusCode::OK, tenant.to_owned())
        );
        drop(app.clone().oneshot(request(tenant, "/")).await.unwrap());
        service.assert_isolated("a body").await;
    }
    service.assert_whole().await;
}

#[tokio::test]
async fn a_route_cannot_be_taken_out_of_the_transaction_that_has_the_tenant() {
    let service = Service::new(1).await;
    let route = get(async |db: DbSession| see(&db).await).layer(TransactionLayer::autocommit());
    let app = service.routes(Router::new().route("/", route));
    assert_eq!(
        send(&app, "red", "/").await,
        (StatusCode::INTERNAL_SERVER_ERROR, String::new())
    );
    service.assert_isolated("a refused order").await;
    service.assert_whole().await;
}

#[tokio::test]
async fn policies_hold_for_the_tables_owner_too() {
    let service = Service::new(1).await;
    service
        .observer
        .execute_unprepared("ALTER TABLE note OWNER TO notes_app")
        .await
        .unwrap();
    service.assert_isolated("a change of owner").await;
    service.assert_whole().await;
}

#[tokio::test]
async fn set_up_can_be_repeated_and_the_service_starts_only_where_policies_apply() {
    let service = Service::new(1).await;
    example::set_up(service.test.options(1)).await.unwrap();
    service.assert_isolated("a second set-up").await;
    service.assert_whole().await;
    service
        .observer
        .execute_unprepared("ALTER TABLE note DISABLE ROW LEVEL SECURITY")
        .await
        .unwrap();
    let error = example::connect(service.test.options(1)).await.unwrap_err();
    assert!(
        Error::of(&error).is_none() && error.to_string().contains("row-level security"),
        "{error}"
    );
}
