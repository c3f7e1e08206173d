//! Gives each request its session.

use async_trait::async_trait;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, request::Parts},
    routing::get,
};
use loco_rs::{
    Error, Result,
    app::{AppContext, Initializer},
    controller::extractor::auth::extract_jwt_from_request_parts,
};
use sea_orm::{DbBackend, Statement};
use tower_sea_orm::{DbSessionLayer, SessionPool, unsafe_methods};

pub struct DbSessionInitializer;

#[async_trait]
impl Initializer for DbSessionInitializer {
    fn name(&self) -> String {
        "db-session".to_owned()
    }

    /// One pool for requests and workers. Code that still uses `ctx.db` has one connection to itself.
    async fn before_run(&self, ctx: &AppContext) -> Result<()> {
        let pool = SessionPool::builder(ctx.db.clone())
            .reserved_connections(1)
            .build()
            .map_err(Error::wrap)?;
        ctx.shared_store.insert(pool);
        Ok(())
    }

    async fn after_routes(&self, router: Router, ctx: &AppContext) -> Result<Router> {
        let pool = ctx.shared_store.get::<SessionPool>();
        let pool = pool.ok_or_else(|| Error::string("before_run has made no pool"))?;
        // A GET that runs no statement costs no connection; what may write is refused early while there is none.
        let sessions = DbSessionLayer::new(pool.clone())
            .lazy()
            .eager_if(unsafe_methods);
        let health = Router::new()
            .route("/_ping", get(StatusCode::OK))
            .route("/_readiness", get(readiness))
            .with_state(pool);
        Ok(router.layer(sessions).merge(health))
    }
}

/// In place of Loco's own, which waits for one of the pool's connections.
async fn readiness(State(pool): State<SessionPool>) -> StatusCode {
    match pool.ping().await {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The tenant that the request's token names, or none: for row-level security on PostgreSQL, by
/// `sessions.set_local("app.tenant", tenant_of(ctx))`.
pub fn tenant_of(ctx: &AppContext) -> impl Fn(&Parts) -> String + Send + Sync + use<> {
    let ctx = ctx.clone();
    move |parts| {
        let token = extract_jwt_from_request_parts(parts, &ctx).ok();
        let tenant =
            token.and_then(|token| Some(token.claims.claims.get("tenant")?.as_str()?.to_owned()));
        tenant.unwrap_or_default()
    }
}

/// The same where the database has a function that checks the tenant and binds it: by
/// `sessions.on_begin(bind_tenant(ctx))`, for one more round trip.
pub fn bind_tenant(ctx: &AppContext) -> impl Fn(&Parts) -> Vec<Statement> + Send + Sync + use<> {
    let tenant = tenant_of(ctx);
    move |parts| {
        let sql = "SELECT app.bind_tenant($1)";
        let tenant = tenant(parts).into();
        vec![Statement::from_sql_and_values(
            DbBackend::Postgres,
            sql,
            [tenant],
        )]
    }
}
