//! The app on SQLite: each test has a database of its own.

use std::time::Duration;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode},
    routing::get,
};
use loco_items::{
    announce::is_announced,
    app::App,
    current_user::CurrentUser,
    initializers::{bind_tenant, tenant_of},
    user,
};
use loco_rs::{
    app::{AppContext, Hooks},
    auth::jwt::JWT,
    boot::StartMode,
    config::Database,
    controller::{middleware::MiddlewareLayer, monitoring},
    environment::Environment,
};
use sea_orm::{ActiveModelTrait, ActiveValue::Set, TransactionTrait};
use serde_json::{Map, Value, json};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, SessionPool};

struct Site {
    app: Router,
    ctx: AppContext,
    pool: SessionPool,
    _dir: tempfile::TempDir,
}

impl Site {
    async fn new() -> Self {
        Self::with(|_| ()).await.unwrap()
    }

    /// With other settings of the database.
    async fn with(set: impl FnOnce(&mut Database)) -> loco_rs::Result<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut config = App::load_config(&Environment::Test).await?;
        config.database.uri = format!(
            "sqlite://{}?mode=rwc",
            dir.path().join("items.db").display()
        );
        set(&mut config.database);
        let boot = App::boot(StartMode::ServerOnly, &Environment::Test, config).await?;
        let pool = boot.app_context.shared_store.get::<SessionPool>();
        Ok(Self {
            app: boot.router.unwrap(),
            ctx: boot.app_context,
            pool: pool.unwrap(),
            _dir: dir,
        })
    }

    async fn send(&self, request: Request<Body>) -> (StatusCode, Value) {
        let response = self.app.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn get(&self, uri: &str) -> (StatusCode, Value) {
        self.send(Request::get(uri).body(Body::empty()).unwrap())
            .await
    }

    async fn create(&self, names: &[&str]) -> (StatusCode, Value) {
        let items: Vec<_> = names.iter().map(|name| json!({ "name": name })).collect();
        let request = Request::post("/api/items").header("content-type", "application/json");
        let body = Body::from(json!(items).to_string());
        self.send(request.body(body).unwrap()).await
    }

    async fn rename(&self, uri: &str, name: &str, token: Option<&str>) -> (StatusCode, Value) {
        let mut request = Request::put(uri).header("content-type", "application/json");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let body = Body::from(json!({ "name": name }).to_string());
        self.send(request.body(body).unwrap()).await
    }

    async fn log_in(&self) -> String {
        let user = user::ActiveModel {
            pid: Set("one".to_owned()),
            name: Set("Ann".to_owned()),
            ..Default::default()
        };
        user.insert(&self.ctx.db).await.unwrap();
        let jwt = self.ctx.config.get_jwt_config().unwrap();
        let token = JWT::new(&jwt.secret).generate_token(60, "one".to_owned(), Map::new());
        token.unwrap()
    }
}

/// Waits until `condition` is true, for at most a minute.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    assert!(waited.is_ok(), "{what}");
}

#[tokio::test]
async fn items_are_created_read_renamed_listed_and_deleted() {
    let site = Site::new().await;
    let (status, created) = site.create(&["lamp", "chair"]).await;
    assert_eq!(status, 200, "{created}");
    eventually("both are announced", || {
        is_announced("lamp") && is_announced("chair")
    })
    .await;
    let (_, lamp) = site.get("/api/items/1").await;
    assert_eq!(lamp, json!({ "id": 1, "name": "lamp" }));

    let token = site.log_in().await;
    assert_eq!(site.rename("/api/items/1", "desk lamp", None).await.0, 401);
    let (status, lamp) = site.rename("/api/items/1", "desk lamp", Some(&token)).await;
    assert_eq!(
        (status.as_u16(), &lamp["name"]),
        (200, &json!("desk lamp by Ann"))
    );
    assert_eq!(site.rename("/api/items/9", "x", Some(&token)).await.0, 404);

    let (_, page) = site.get("/api/items?page=2&page_size=1").await;
    assert_eq!(page["page"], json!([{ "id": 2, "name": "chair" }]));
    assert_eq!(page["meta"]["total_items"], 2);
    let delete = Request::delete("/api/items/1").body(Body::empty()).unwrap();
    assert_eq!(site.send(delete).await.0, 200);
    assert_eq!(site.get("/api/items/1").await.0, 404);
}

#[tokio::test]
async fn a_mail_is_sent_once_the_item_is_gone() {
    let site = Site::new().await;
    site.create(&["lamp"]).await;
    let delete = async |uri: &str| {
        let request = Request::delete(uri).body(Body::empty()).unwrap();
        site.send(request).await.0
    };
    assert_eq!(delete("/api/items/9").await, 404);
    assert_eq!(delete("/api/items/1").await, 200);
    let kept = || format!("{:?}", site.ctx.mailer);
    eventually("the mail is sent", || kept().contains("lamp is gone")).await;
    assert_eq!(kept().matches("is gone").count(), 1);
}

#[tokio::test]
async fn a_request_that_is_refused_stores_and_announces_nothing() {
    let site = Site::new().await;
    assert_eq!(site.create(&["refused", ""]).await.0, 400);
    assert_eq!(site.get("/api/items").await.1["page"], json!([]));
    assert_eq!(site.create(&["a later one"]).await.0, 200);
    eventually("the later one is announced", || is_announced("a later one")).await;
    assert!(!is_announced("refused"));
}

/// What still uses `ctx.db` has a connection, and Loco's own health route needs none.
#[tokio::test]
async fn a_full_pool_fails_no_health_check_and_no_plain_user() {
    let site = Site::new().await;
    let mut held = Vec::new();
    while site.pool.status().used < site.pool.status().max {
        held.push(site.pool.session().await.unwrap());
    }
    assert_eq!(held.len(), 2, "one of three is reserved");
    assert_eq!(site.get("/_ping").await.0, 200);
    assert_eq!(site.get("/_readiness").await.0, 200);
    let plain = site.ctx.db.begin().await.unwrap();
    plain.rollback().await.unwrap();
}

/// Why the layer is not eager, and why the health routes are behind it.
#[tokio::test]
async fn an_eager_layer_fails_locos_ping_while_the_pool_is_full() {
    let briefly = Site::with(|database| database.connect_timeout = 5000);
    let site = briefly.await.unwrap();
    let pool = SessionPool::builder(site.ctx.db.clone())
        .max_pending(0)
        .build()
        .unwrap();
    let mut held = Vec::new();
    while pool.status().used < pool.status().max {
        held.push(pool.session().await.unwrap());
    }
    for (layer, expected) in [
        (DbSessionLayer::new(pool.clone()), 503),
        (DbSessionLayer::new(pool.clone()).lazy(), 200),
    ] {
        let ping = Router::new().route("/_ping", get(monitoring::ping));
        let request = Request::get("/_ping").body(Body::empty()).unwrap();
        let response = ping.layer(layer).oneshot(request).await.unwrap();
        assert_eq!(response.status(), expected);
    }
    // Loco's readiness waits for one of the pool's connections.
    let (status, _) = monitoring::readiness(axum::extract::State(site.ctx.clone())).await;
    assert_eq!(status, 503);
}

/// `JWTWithUser` would ask `ctx.db`, which here is a database without users.
#[tokio::test]
async fn the_current_user_comes_from_the_requests_session() {
    let (site, other) = (Site::new().await, Site::new().await);
    let token = other.log_in().await;
    let name = async |CurrentUser(user): CurrentUser| user.name;
    let app = Router::new()
        .route("/", get(name))
        .layer(DbSessionLayer::new(other.pool.clone()).lazy())
        .with_state(site.ctx.clone());
    let request = Request::get("/").header("authorization", format!("Bearer {token}"));
    let response = app.oneshot(request.body(Body::empty()).unwrap()).await;
    assert_eq!(response.unwrap().status(), 200);
}

/// Loco's documentation has such a pool for development.
#[tokio::test]
async fn a_pool_of_one_is_refused_at_the_start() {
    let site = Site::with(|database| database.max_connections = 1);
    let error = site.await.err().expect("an error").to_string();
    assert!(error.contains("reserved_connections"), "{error}");
}

/// In place of the initializer's layer, inside Loco's own middleware: `Hooks::middlewares` has it first.
struct Innermost(DbSessionLayer);

impl MiddlewareLayer for Innermost {
    fn name(&self) -> &'static str {
        "db-session"
    }

    fn config(&self) -> serde_json::Result<Value> {
        Ok(Value::Null)
    }

    fn apply(&self, app: Router<AppContext>) -> loco_rs::Result<Router<AppContext>> {
        Ok(app.layer(self.0.clone()))
    }
}

#[tokio::test]
async fn the_layer_can_be_one_of_locos_middlewares() {
    let site = Site::new().await;
    let routes = Router::new().route("/", get(async |_: DbSession| StatusCode::OK));
    let sessions = Innermost(DbSessionLayer::new(site.pool.clone()).lazy());
    let app = sessions.apply(routes).unwrap().with_state(site.ctx.clone());
    let request = Request::get("/").body(Body::empty()).unwrap();
    assert_eq!(app.oneshot(request).await.unwrap().status(), 200);
}

#[tokio::test]
async fn the_tenant_is_the_tokens() {
    let site = Site::new().await;
    let tenant = tenant_of(&site.ctx);
    let jwt = site.ctx.config.get_jwt_config().unwrap();
    let claims = Map::from_iter([("tenant".to_owned(), json!("red"))]);
    let token = JWT::new(&jwt.secret).generate_token(60, "one".to_owned(), claims);
    let request = Request::get("/").header("authorization", format!("Bearer {}", token.unwrap()));
    let (parts, ()) = request.body(()).unwrap().into_parts();
    assert_eq!(tenant(&parts), "red");
    assert_eq!(tenant(&Request::new(()).into_parts().0), "");
    let bound = bind_tenant(&site.ctx)(&parts);
    assert_eq!(bound[0].to_string(), "SELECT app.bind_tenant('red')");
}

#[tokio::test]
async fn a_shutdown_refuses_new_requests_and_closes_the_pool() {
    let site = Site::new().await;
    site.create(&["lamp"]).await;
    App::on_shutdown(&site.ctx).await;
    assert_eq!(site.get("/api/items").await.0, 503);
    assert_eq!(site.get("/_ping").await.0, 200);
    assert_eq!(site.get("/_readiness").await.0, 503);
    assert!(site.ctx.db.ping().await.is_err());
}
